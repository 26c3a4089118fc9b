# Two commands on a fresh machine:  make demo  (the whole loop on small cases)  and  make test.
# Each makes .venv and installs what it needs. torch comes first and by its exact version: it decides between a CPU
# build and gigabytes of CUDA.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
STAMP  := $(VENV)/.installed

.PHONY: demo test lint validate bench coverage fuzz matrix docs clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check "$(TORCH)" -c constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -e ".[test,lint]" -c constraints.txt
	touch $@

demo: $(STAMP)
	$(BIN)/costmodel demo

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

validate: $(STAMP)
	$(BIN)/costmodel validate --suite host
	$(BIN)/costmodel validate --suite memory
	$(BIN)/costmodel validate --suite papers

bench: $(STAMP)
	for b in tests/benchmarks/bench_*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

# traces and prices one architecture a family of timm, torchvision and transformers (ARGS=--all: every one, hours), in
# inference and training; goes on where it was stopped; writes reports/coverage.md
coverage: $(STAMP)
	$(BIN)/costmodel coverage $(ARGS)

# the long form of tests/test_fuzz.py, an hour on one core, after property tests on examples never tried before
fuzz: $(STAMP)
	$(BIN)/python -m pytest -q tests --hypothesis-profile=search -k "properties or allocator or core or budget"
	$(BIN)/python -m tests.fuzz.fuzz $(or $(COUNT),10000) $(KINDS)

# supported versions, an environment each: writes reports/versions.md
matrix: $(STAMP)
	$(BIN)/python tests/matrix.py $(CASES)

# runs every command on the pages of reports/docs and writes what they print; builds the API reference
docs: $(STAMP)
	$(BIN)/python reports/docs/build.py $(PAGES)

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
