"""Supported versions, tried: an environment each, the tests in it, and a table of what ran (`reports/versions.md`).

    python tests/matrix.py                 # every case that this machine can make
    python tests/matrix.py py3.13 lowest   # these
    python tests/matrix.py --table         # the table again, from what is kept in reports/versions.json

A case makes a virtual environment, installs the package as a user would (a wheel, with pins of the case), prices the
shipped trace on a Raspberry Pi with torch out of reach or present, and runs tests. Cases with torch take exact versions
only: an unpinned torch brings gigabytes of CUDA. `OUTSIDE` are cases that were run by hand, with the commands.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "reports" / "versions.json"
PAGE = ROOT / "reports" / "versions.md"
TRACE = "traces/mobilenet-v3-small-train-b8.json.gz"
# Tests that need no torch, and tests that show whether a torch does: capture, steps, kernels, methods, memory.
LIGHT = ("core", "device", "pareto", "runs", "validate", "memory_allocator", "costs_ops", "properties")
WITH_TORCH = (
    *LIGHT, "capture", "graph", "step", "estimate", "methods", "mobiletl", "lbp_wht", "gemm_int8", "selective_scan",
    "memory_live", "cli",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An environment: which Python, what is pinned in it, which extras, which tests; why, in words."""

    name: str
    why: str
    python: str = "3.11"
    pins: tuple[str, ...] = ()
    extras: str = ""
    tests: tuple[str, ...] = LIGHT


LOWEST = (
    "numpy==2.0.2", "numba==0.61.2", "networkx==3.2.1", "scipy==1.13.1", "pydantic==2.7.4", "platformdirs==4.0.0",
    "psutil==5.9.8", "typer==0.15.4", "rich==13.7.1", "moocore==0.1.7",
)  # fmt: skip
CASES = (
    Case("py3.11", "light install, newest of everything"),
    Case("py3.12", "light install, newest of everything", "3.12"),
    Case("py3.13", "light install, newest of everything", "3.13"),
    Case("lowest", "light install, the lower bounds of pyproject.toml", pins=LOWEST),
    Case(
        "torch-2.13.0", "the version that `make` installs", pins=("torch==2.13.0",), extras="[torch]", tests=WITH_TORCH
    ),
    Case(
        "torch-2.14.1", "a CUDA build, run on the CPU", pins=("torch==2.14.1",), extras="[torch]", tests=WITH_TORCH
    ),
)  # fmt: skip


def python_of(version: str) -> str | None:
    """An interpreter of this version: this one, one on the path, or one that pyenv keeps."""
    if platform.python_version().startswith(version + "."):
        return sys.executable
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return shutil.which(f"python{version}") if not pyenv else str(pyenv[-1])


def run(case: Case, wheel: Path, folder: Path) -> dict[str, object]:
    """Make the environment, install, price the trace, run the tests; what came of each."""
    python = python_of(case.python)
    if python is None:
        return {"result": f"not run: no Python {case.python} on this machine"}
    environment = folder / case.name
    start = time.monotonic()
    if not environment.exists():  # MATRIX_HOME keeps them
        subprocess.run([python, "-m", "venv", environment], check=True)
        pip = [environment / "bin" / "pip", "install", "-q", "--disable-pip-version-check"]
        packages = (f"costmodel{case.extras} @ {wheel.as_uri()}", "pytest", "hypothesis", *case.pins)
        installed = subprocess.run([*pip, *packages], capture_output=True, text=True)
        if installed.returncode != 0:
            shutil.rmtree(environment)
            return {"result": "does not install: " + _last(installed.stderr)}
    inside = {**os.environ, "OMP_NUM_THREADS": "1", "COSTMODEL_HOME": str(folder / "home"), "MPLBACKEND": "Agg"}
    inside.pop("PYTHONPATH", None)
    python = str(environment / "bin" / "python")
    versions = subprocess.run(
        [python, "-c", _VERSIONS], capture_output=True, text=True, check=True, cwd=folder, env=inside
    )
    priced = subprocess.run(
        [environment / "bin" / "costmodel", "estimate", ROOT / TRACE, "--device", "raspberry-pi-4b", "--json"],
        capture_output=True, text=True, cwd=folder, env=inside,
    )  # fmt: skip
    if priced.returncode != 0:
        return {"result": "does not price a trace: " + _last(priced.stderr), **json.loads(versions.stdout)}
    place = folder / f"{case.name}-tests"  # no checkout beside them: the installed package is what is tested
    for name in ("tests", "traces", "pyproject.toml", "hwprofiles"):
        target = place / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, dirs_exist_ok=True)
        else:
            shutil.copy2(ROOT / name, target)
    options = ("-q", "-m", "not slow", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib")
    tested = subprocess.run(
        [python, "-m", "pytest", *options, *(f"tests/test_{name}.py" for name in case.tests)],
        capture_output=True, text=True, cwd=place, env=inside,
    )  # fmt: skip
    (folder / f"{case.name}.log").write_text(tested.stdout + tested.stderr)
    return {
        **json.loads(versions.stdout),
        "latency_s": json.loads(priced.stdout)["latency_s"]["point"],
        "result": _last(tested.stdout).strip("= "),
        "minutes": round((time.monotonic() - start) / 60, 1),
    }


_VERSIONS = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version(), "machine": platform.machine()}
for name in ("torch", "numpy", "numba", "scipy", "pydantic", "networkx"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = ""
print(json.dumps(found))
"""


def _last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")[:200]


def table(kept: dict[str, dict[str, object]]) -> str:
    """The page: what ran, with what, and what is declared only."""
    columns = ("python", "machine", "torch", "numpy", "numba", "scipy", "pydantic", "networkx")
    lines = [f"| case | {' | '.join(columns)} | trace on the Pi 4 | tests |", f"|{'---|' * (len(columns) + 3)}"]
    for name, found in kept.items():
        cells = [str(found.get(c, "")) or "–" for c in columns]
        seconds = f"{found['latency_s']:.4f} s" if "latency_s" in found else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds} | {found['result']} |")
    return "\n".join(lines)


def write_page(kept: dict[str, dict[str, object]]) -> None:
    """Put the table between the marks of the page; the words around it are written by hand."""
    head, _, rest = PAGE.read_text().partition("<!-- table -->\n")
    _, _, tail = rest.partition("<!-- end -->")
    PAGE.write_text(f"{head}<!-- table -->\n{table(kept)}\n<!-- end -->{tail}")


def main(names: list[str]) -> None:
    kept: dict[str, dict[str, object]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if names != ["--table"]:
        with tempfile.TemporaryDirectory(prefix="matrix-") as temporary:
            folder = Path(os.environ.get("MATRIX_HOME", temporary))
            folder.mkdir(exist_ok=True)
            build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "dist", ROOT]
            subprocess.run(build, check=True)
            wheel = next((folder / "dist").glob("costmodel-*.whl"))
            for case in CASES:
                if names and case.name not in names:
                    continue
                print(f"{case.name}: {case.why}", flush=True)
                kept[case.name] = run(case, wheel, folder)
                print(f"    {kept[case.name]}", flush=True)
                KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    write_page(kept)


if __name__ == "__main__":
    main(sys.argv[1:])
