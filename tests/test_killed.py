"""kill -9 at any moment loses at most what was being made then; two processes that write one file lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from costmodel.runs import read_runs

ROOT = Path(__file__).resolve().parents[1]

WRITER = """
import sys
from costmodel.runs import Run, append_runs
name, n = sys.argv[2], int(sys.argv[3])
for i in range(n):
    append_runs(sys.argv[1], [Run(model=f"{name}-{i}", mode="infer", latency_s=1e-3 * (i + 1))])
    print(i, flush=True)
"""

GRID = """
import sys
import torch
from costmodel.tasks import data, result, train
from tests.test_tasks import tiny_task
torch.set_num_threads(1)
for seed in range(4):
    found = train.run_arm(tiny_task(), "all", seed, "demo", data.digits())
    print(seed, found.value, flush=True)
"""


def start(code: str, *words: str, cache: Path | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, cwd=ROOT,
    )  # fmt: skip


def kill_after(process: subprocess.Popen[str], lines: int) -> list[str]:
    """Kill -9 once it has said so many lines; what it said by then."""
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(lines)]
    os.kill(process.pid, signal.SIGKILL)
    rest, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed: the test tests nothing"
    return [*said, *rest.splitlines(keepends=True)]


def finish(process: subprocess.Popen[str]) -> list[str]:
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return said.splitlines()


@pytest.mark.slow
def test_a_grid_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    whole = finish(start(GRID, cache=tmp_path / "whole"))
    kill_after(start(GRID, cache=tmp_path / "cut"), 2)
    folder = tmp_path / "cut" / "costmodel" / "tasks" / "results"
    kept = {f: f.stat().st_mtime_ns for f in folder.glob("*.json")}
    assert len(kept) >= 2
    for file in kept:
        json.loads(file.read_text())  # whole, not torn
    resumed = finish(start(GRID, cache=tmp_path / "cut"))
    assert resumed == whole, "a resumed grid gives what an uninterrupted one gives"
    assert {f: f.stat().st_mtime_ns for f in kept} == kept, "what was done is not done again"
    assert len(list(folder.glob("*.json"))) == 4


def test_runs_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    said = kill_after(start(WRITER, str(path), "a", "100000"), 5)
    kept = [run.model for run in read_runs(path).runs]
    acknowledged = [f"a-{line.strip()}" for line in said if line.endswith("\n")]
    assert kept[: len(acknowledged)] == acknowledged, "a run that was said to be kept is kept"
    assert len(kept) <= len(acknowledged) + 1
    finish(start(WRITER, str(path), "b", "3"))  # the lock of a killed process holds nobody
    assert [run.model for run in read_runs(path).runs][len(kept) :] == ["b-0", "b-1", "b-2"]


def test_two_processes_write_one_file_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "device" / "runs.csv"
    writers = [start(WRITER, str(path), name, "40") for name in "abc"]
    for writer in writers:
        finish(writer)
    runs = read_runs(path).runs
    assert sorted(run.model for run in runs) == sorted(f"{name}-{i}" for name in "abc" for i in range(40))
    for run in runs:
        assert run.latency_s == pytest.approx(1e-3 * (int(run.model[2:]) + 1))


@pytest.mark.slow
def test_two_measurements_into_one_file_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    command = [
        sys.executable, "-m", "costmodel", "measure", "conv-small", "--seconds", "0.05", "--processes", "1", "-o",
        str(path),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [*command, "--batch", batch], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for batch in ("1", "2")
    ]
    for process in both:
        finish(process)
    assert sorted(run.batch or 0 for run in read_runs(path).runs) == [1, 2]


def _request(path: Path, seconds: float) -> list[str]:
    request = {"path": str(path), "points": 40, "train": False, "threads": 1, "dtype": "float32", "seconds": seconds}
    return [sys.executable, "-m", "costmodel.measure.micro", json.dumps(request)]


def _calibrating(path: Path, seconds: float) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        _request(path, seconds), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
def test_a_calibration_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    kill_after(_calibrating(path, 120.0), 3)
    before = path.read_text()
    assert before.count("\n") >= 2
    with open(path, "a") as file:  # killed in the middle of a line
        file.write('{"generator": "torn", "se')
    finish(_calibrating(path, 6.0))
    after = path.read_text()
    assert after.startswith(before)
    lines = after.splitlines()
    usable = [_parsed(line) for line in lines]
    assert usable.count(None) == 1, "only the torn line is lost, not the one that was written after it"
    points = [(p["generator"], p["seed"]) for p in usable if p is not None]
    assert len(set(points)) == len(points), "no point is measured twice"
    assert len(points) > before.count("\n"), "the second run went on"


def _parsed(line: str) -> dict[str, object] | None:
    try:
        parsed: dict[str, object] = json.loads(line)
    except ValueError:
        return None
    return parsed


def test_an_atomic_write_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    """Killed at random moments while a large file is written over and over: it is one of the two, whole."""
    code = """
import sys
from costmodel.graph import write_atomic
old, new = b"a" * 3_000_000, b"b" * 3_000_000
write_atomic(sys.argv[1], old)
print("ready", flush=True)
while True:
    write_atomic(sys.argv[1], new)
    write_atomic(sys.argv[1], old)
"""
    for wait in (0.0, 0.01, 0.03):
        target = tmp_path / f"{wait}.bin"
        process = start(code, str(target))
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        content = target.read_bytes()
        assert len(content) == 3_000_000
        assert set(content) in ({ord("a")}, {ord("b")})
