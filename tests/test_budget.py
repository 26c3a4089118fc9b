"""Budgets: units read, limits tested on upper bounds, files refused with file, key and fix, the same text each time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.budget import LIMITS, Budget, Check, Entry, check, exit_status, limits, load_budget, quantity
from costmodel.device import load_device
from costmodel.errors import CostmodelError, FileError, UnknownName
from costmodel.estimate import Estimate, Range, estimate
from costmodel.graph import OpGraph
from costmodel.job import request_of, training_job
from costmodel.measure.job import Job
from costmodel.report import render

from . import report_cases as cases

GOOD = """\
# a comment
schema = 1

[[budget]]
model = "mobilenet-v3-small"
device = "raspberry-pi-4b"
mode = "train"
batch = 2
threads = 4
latency = "60 s"
memory = "3 GiB"

  [[budget]]
model = "conv-small"
device = "raspberry-pi-5"
latency = 1e-9
memory_live = 1073741824
"""


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("50ms", "time", 0.05), ("50 ms", "time", 0.05), ("3 µs", "time", 3e-6), ("3 μs", "time", 3e-6),
        ("2 min", "time", 120.0), (0.5, "time", 0.5), (2, "time", 2.0), ("1e-3s", "time", 1e-3),
        ("256MiB", "bytes", 2.0**28), ("1 GB", "bytes", 1e9), ("1.5 gib", "bytes", 1.5 * 2**30), ("3 B", "bytes", 3.0),
        ("250 mJ", "energy", 0.25), ("1 Wh", "energy", 3600.0),
    ],
)  # fmt: skip
def test_quantities_are_read_with_their_units(text: str | float, dimension: str, value: float) -> None:
    assert quantity(text, dimension) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("50", "time"), ("50 MiB", "time"), ("-1 s", "time"), ("0 s", "time"), ("", "time"), ("1.2.3 s", "time"),
        (True, "time"), (None, "time"), (float("nan"), "time"), (float("inf"), "bytes"), (-2, "energy"),
        ("1e999 s", "time"), ("ms", "time"), ("1 s\n2 s", "time"),
    ],
)  # fmt: skip
def test_what_is_no_quantity_is_refused_with_the_units(text, dimension: str) -> None:
    with pytest.raises(CostmodelError, match="positive number with one of the units"):
        quantity(text, dimension)


def test_limits_of_the_command_line_are_axes() -> None:
    assert limits("latency=50ms, memory_live = 1GiB,energy=2J") == {
        "latency_s": 0.05, "peak_live_bytes": 2.0**30, "energy_j": 2.0
    }  # fmt: skip
    with pytest.raises(UnknownName, match="did you mean latency"):
        limits("latencey=5ms")
    for wrong in ("latency", "", "memory=1GiB,memory_rss=2GiB", "latency=5"):
        with pytest.raises(CostmodelError):
            limits(wrong)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (limits, lambda t: quantity(t, "bytes")):
        with suppress(CostmodelError):  # anything else is a bug
            read(text)


def test_a_budget_is_read_with_lines(tmp_path) -> None:
    path = tmp_path / "budget.toml"
    path.write_text(GOOD)
    budget = load_budget(path)
    assert [e.line for e in budget.budget] == [4, 13]
    assert budget.budget[0].limits == {"latency": 60.0, "memory": 3.0 * 2**30}
    assert budget.budget[1].limits == {"latency": 1e-9, "memory_live": 2.0**30}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("schema = 1", "schema = 2", "schema: is 2"),
        ("schema = 1\n", "", "schema: is None"),
        ('latency = "60 s"', 'latency = "60"', "budget.0.latency: '60' is not a limit"),
        ('latency = "60 s"', 'latencey = "60 s"', "budget.0.latencey: Extra inputs"),
        ('latency = "60 s"\nmemory = "3 GiB"\n', "", "has no limit"),
        ('mode = "train"', 'mode = "trian"', "budget.0.mode"),
        ("batch = 2", "batch = 0", "budget.0.batch"),
        ("batch = 2", "line = 2", "budget.line: is not a key"),
        ("[[budget]]", "[budget]", "budget"),
        ("[[budget]]", "[[", "is not TOML"),
        (GOOD, "schema = 1\n", "budget: Field required"),
        (GOOD, "schema = 1\nbudget = []\n", "budget"),
        (GOOD, "schema = 1\nbudget = [3]\n", "budget.0"),
    ],
)
def test_a_broken_budget_names_file_key_and_fix(tmp_path, old: str, new: str, words: str) -> None:
    path = tmp_path / "budget.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(FileError) as error:
        load_budget(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_budget_says_so(tmp_path) -> None:
    with pytest.raises(FileError, match="no such file"):
        load_budget(tmp_path / "none.toml")


def entry(**limits: object) -> Entry:
    return Entry.model_validate(
        {"model": "m", "device": "raspberry-pi-4b", "mode": "train", "batch": 2, "threads": 4, **limits}
    )


def with_latency(low: float, point: float, high: float) -> Estimate:
    return replace(cases.train_estimate(), latency_s=Range(low, point, high))


@pytest.mark.parametrize(
    ("low", "point", "high", "verdict", "surely", "over"),
    [
        (0.1, 0.2, 0.3, "within", False, -0.7),
        (0.5, 0.9, 1.0, "within", False, 0.0),
        (0.5, 0.9, 1.1, "over", False, 0.1),
        (1.5, 2.0, 3.0, "over", True, 2.0),
    ],
)
def test_limits_are_tested_on_the_upper_bound(
    low: float, point: float, high: float, verdict: str, surely: bool, over: float
) -> None:
    (row,) = check([entry(latency=1.0)], [with_latency(low, point, high)])
    assert (row.verdict, row.surely_over) == (verdict, surely)
    assert row.over == pytest.approx(over)


def test_memory_is_what_must_fit() -> None:
    cpu = cases.train_estimate()
    (row,) = check([entry(memory="1 GiB")], [cpu])
    assert row.predicted == cpu.memory.peak_rss
    gpu = cases.gpu_estimate()
    on_gpu = Entry(model="m", device="jetson-nano", mode="train", batch=2, memory=2.0**30, memory_rss=2.0**30)
    first, second = check([on_gpu], [gpu])
    assert (first.predicted, second.predicted) == (gpu.memory.peak_reserved, gpu.memory.peak_rss)


def test_energy_without_constants_is_unknown_not_zero() -> None:
    assert cases.train_estimate().energy_j is None
    row, latency = check([entry(energy="1 kJ", latency="1 h")], [cases.train_estimate()])[::-1]
    assert row.verdict == "unknown"
    assert row.over is None
    assert exit_status([row, latency]) == 2
    joules = replace(cases.train_estimate(), energy_j=Range(1.0, 2.0, 3.0))
    assert check([entry(energy=2.5)], [joules])[0].verdict == "over"


def test_exit_status_is_0_1_or_2() -> None:
    within = check([entry(latency=1.0)], [with_latency(0.1, 0.2, 0.3)])
    over = check([entry(latency=0.25)], [with_latency(0.1, 0.2, 0.3)])
    unknown = check([entry(energy=1.0)], [cases.train_estimate()])
    assert exit_status(within) == 0
    assert exit_status(within + over) == 1
    assert exit_status(within + unknown) == 2
    assert exit_status(unknown + over) == 1
    assert exit_status([]) == 0


@pytest.mark.parametrize(
    ("change", "words"), [({"batch": 3}, "batch"), ({"mode": "infer"}, "mode"), ({"device": "x"}, "device")]
)
def test_an_estimate_of_another_step_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(CostmodelError, match=words):
        check([entry(latency=1.0, **change)], [cases.train_estimate()])
    with pytest.raises(CostmodelError, match="one each"):
        check([entry(latency=1.0)], [])


def test_rows_are_in_the_order_of_the_file(tmp_path) -> None:
    path = tmp_path / "budget.toml"
    path.write_text(GOOD)
    rows = check(load_budget(path), [cases.train_estimate(), cases.infer_estimate()])
    assert [(r.line, r.limit_name) for r in rows] == [
        (4, "latency"),
        (4, "memory"),
        (13, "latency"),
        (13, "memory_live"),
    ]
    assert [r.verdict for r in rows] == ["within", "within", "over", "within"]
    assert {r.file for r in rows} == {str(path)}


def test_every_limit_is_a_key_of_an_entry() -> None:
    assert set(LIMITS) <= set(Entry.model_fields)
    assert Budget.model_fields.keys() == {"schema_", "budget"}


# GitHub's annotations


def annotated(rows: tuple[Check, ...] | list[Check]) -> list[tuple[str, dict[str, str], str]]:
    """Parse the workflow commands as the runner does."""
    found = []
    for line in str(render(list(rows), "github")).splitlines():
        match = re.fullmatch(r"::(\w+) ([^:]*)::(.*)", line)
        if match:
            properties = dict(p.split("=", 1) for p in match[2].split(","))
            found.append((match[1], properties, match[3]))
    return found


def test_annotations_are_workflow_commands() -> None:
    rows = cases.checks()
    commands = annotated(rows)
    assert [c[0] for c in commands] == ["error", "notice", "warning"]
    for _, properties, message in commands:
        assert properties["file"] == "budget.toml"
        assert properties["line"] == "3"
        assert "mobilenet-v3-small" in properties["title"]
        assert message
    assert "over by" in commands[0][2]
    assert "no sourced constants" in commands[2][2]
    assert render(rows, "github") == render(rows, "github")


def test_annotations_escape_what_the_runner_reads() -> None:
    row = replace(cases.checks()[0], model="a:b,c\n::error::x%", file="odd,name:1.toml")
    text = str(render([row], "github"))
    first, *rest = text.splitlines()
    assert first.startswith("::error file=odd%2Cname%3A1.toml,line=3,title=")
    assert "%0A" in first
    assert "%25" in first
    assert not any(line.startswith("::") for line in rest)


JOBS = """\
schema = 1

[[budget]]
model = "mobilenet-v3-small"
device = "raspberry-pi-4b"
mode = "train"
batch = 2
threads = 4
epochs = 2
samples = 1000
{}

[[budget]]
model = "transformers:gpt2-tiny"
device = "raspberry-pi-4b"
prompt = 16
generate = 4
{}
"""


def _job_checks(tmp_path: Path, run: str, asked: str) -> list[Check]:
    path = tmp_path / "budget.toml"
    path.write_text(JOBS.format(run, asked))
    budget = load_budget(path)
    first, second = budget.budget
    step = cases.train_estimate()
    job = training_job(step, epochs=2, samples=1000, start_s=first.start_seconds)

    def trace(mode: str, tokens: int) -> OpGraph:
        return Job(second.model, mode, seq=tokens).trace()

    request = request_of(trace, lambda g: estimate(g, load_device(second.device)), prompt=16, generate=4)
    return check(budget, [job, request])


def test_a_whole_job_has_its_limits(tmp_path: Path) -> None:
    run = 'start_seconds = 20\njob = "1 s"\njob_energy = "1 Wh"'
    rows = _job_checks(tmp_path, run, 'request = "2 h"\nfirst_token = "1 h"\nmemory = "3 GiB"')
    verdicts = {c.limit_name: c.verdict for c in rows}
    assert verdicts == {
        "job": "over", "job_energy": "unknown", "request": "within", "first_token": "within", "memory": "within",
    }  # fmt: skip
    assert rows[0].predicted is not None
    reading = load_device("raspberry-pi-4b").runtime["torch-eager"].sample_s
    assert reading is not None
    step = cases.train_estimate().latency_s.point
    assert rows[0].predicted.point == pytest.approx(1000 * step + 20 + 2000 * reading.value)
    assert rows[2].mode == "request"
    assert "job" in str(render(rows, "github"))


def test_a_job_with_a_gap_cannot_be_tested(tmp_path: Path) -> None:
    rows = _job_checks(tmp_path, 'job = "20 h"', 'request = "2 h"')
    assert [c.verdict for c in rows] == ["unknown", "within"]
    assert exit_status(rows) == 2


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"epochs": 2}, "go together"), ({"prompt": 2}, "go together"), ({"job": "1 h"}, "give epochs and samples"),
        ({"request": "1 s"}, "give prompt and generate"), ({"prompt": 2, "generate": 2, "latency": "1 s"}, "one step"),
        ({"epochs": 1, "samples": 1, "job": "1 s"}, 'mode = "train"'),
        ({"epochs": 1, "samples": 0, "mode": "train", "job": "1 s"}, "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_keys_of_jobs_that_do_not_go_together_are_refused(keys: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Entry.model_validate({"model": "m", "device": "d", "memory": "1 GiB", **keys})


def test_the_job_must_be_the_one_asked_for() -> None:
    entry = Entry(
        model="m", device="raspberry-pi-4b", mode="train", batch=2, threads=4, epochs=3, samples=10, job=1.0
    )  # fmt: skip
    with pytest.raises(CostmodelError, match="epochs 3, its estimate 2"):
        check([entry], [training_job(cases.train_estimate(), epochs=2, samples=10)])
    with pytest.raises(CostmodelError, match="epochs 3, its estimate None"):
        check([entry], [cases.train_estimate()])


def test_a_trace_says_its_own_mode_and_batch() -> None:
    step = cases.train_estimate()
    of_trace = Entry(model="step.json.gz", device=step.device.name, threads=step.threads, memory="8 GiB")
    (row,) = check([of_trace], [step])
    assert (row.mode, row.verdict) == ("train", "within")
    wrong = of_trace.model_validate({**of_trace.model_dump(exclude_unset=True), "mode": "infer", "memory": "8 GiB"})
    with pytest.raises(CostmodelError, match="mode 'infer', its estimate 'train'"):
        check([wrong], [step])
    with pytest.raises(CostmodelError, match="mode 'infer', its estimate 'train'"):
        check([of_trace.model_copy(update={"model": "timm:resnet18"})], [step])


def test_annotations_are_the_same_in_every_process(tmp_path: Path) -> None:
    path = tmp_path / "budget.toml"
    trace = Path(__file__).parents[1] / "traces" / "mobilenet-v3-small-train-b8.json.gz"
    path.write_text(
        f'schema = 1\n[[budget]]\nmodel = "{trace}"\ndevice = "raspberry-pi-4b"\nmode = "train"\nbatch = 8\n'
        'latency = "1 s"\nmemory = "3 GiB"\nenergy = "1 J"\nepochs = 1\nsamples = 80\njob = "1 h"\n'
    )
    command = [sys.executable, "-m", "costmodel", "check", "--budget", str(path), "--format", "github"]
    said = [
        subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert said[0].returncode == 1, said[0].stderr
    assert said[0].stdout == said[1].stdout
    assert said[0].stdout.count("::error ") == 1
    assert said[0].stdout.count("::warning ") == 2
