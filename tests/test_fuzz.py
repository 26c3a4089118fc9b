"""The small form of `tests/fuzz/fuzz.py`: a few hundred broken files of each kind, and properties of the mutators."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.budget import load_budget
from costmodel.errors import CostmodelError
from costmodel.runs import read_runs

from .fuzz.archives import pack, programs
from .fuzz.fuzz import BUDGET, KINDS, POINTS, RUNS, board, fuzz, graph, trace_document
from .fuzz.listen import watched
from .fuzz.mutate import mutate_bytes, mutate_document

COUNT = {"profiles": 100, "traces": 150, "runs": 300, "budgets": 200, "points": 40, "pt2": 60, "onnx": 150}
SMALL = [kind for kind in COUNT if kind != "onnx"]


@pytest.mark.parametrize("kind", COUNT)
def test_every_input_ends_in_a_result_or_one_line(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tally = fuzz(kind, 0, COUNT[kind], tmp_path)
    assert tally.failures == []
    assert "Traceback" not in "".join(capfd.readouterr()), "no library may log what is then said in one line"
    assert tally.results > 0, "some broken files are still right: the doors were opened"
    assert tally.refused > 0
    assert len(tally.reasons) >= 10, "and refused for many reasons"


@pytest.mark.parametrize("seed", [126, 1082, 2015])
def test_onnx_files_that_once_ended_in_a_traceback(seed: int, tmp_path: Path) -> None:
    """A weight of more elements than a float counts; an operator that is no text; an attribute without a type."""
    tally = fuzz("onnx", seed, 1, tmp_path)
    assert (tally.failures, tally.refused) == ([], 1)


@pytest.mark.parametrize("kind", SMALL)
def test_what_it_starts_from_is_right(kind: str, tmp_path: Path) -> None:
    trace = graph().save(tmp_path / "whole.json.gz")
    good = {
        "profiles": (Path(__file__).parents[1] / "hwprofiles" / "raspberry-pi-4b.toml").read_text(),
        "traces": json.dumps(trace_document()),
        "runs": RUNS,
        "budgets": BUDGET,
        "points": POINTS.format(trace=trace),
    }
    if kind == "pt2":
        for k, members in enumerate(programs()):
            path = tmp_path / f"good{k}.pt2"
            path.write_bytes(pack(members))
            KINDS[kind].open(path)
        return
    suffix = {"profiles": ".toml", "traces": ".json", "budgets": ".toml"}.get(kind, ".csv")
    path = tmp_path / f"good{suffix}"
    path.write_text(good[kind])
    KINDS[kind].open(path)


def test_a_seed_makes_the_same_file_again(tmp_path: Path) -> None:
    for kind in SMALL:
        how = KINDS[kind]
        assert how.make(random.Random(f"{kind} 7"), tmp_path) == how.make(random.Random(f"{kind} 7"), tmp_path)


@given(st.binary(max_size=300), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_mutators_take_anything(data: bytes, seed: int) -> None:
    assert isinstance(mutate_bytes(data, random.Random(seed)), bytes)
    json.dumps(mutate_document(trace_document(), random.Random(seed)))


def test_what_a_door_opens_is_heard(tmp_path: Path) -> None:
    with watched() as heard:
        (tmp_path / "mark").write_text("x")
        subprocess.run(["true"], check=True)
        (tmp_path / "mark").read_text()
    assert [h.split()[0] for h in heard] == ["open", "subprocess.Popen"]


def one_line(read: Callable[[], object]) -> bool:
    """Whether a door gives a result, or refuses in one line."""
    try:
        read()
    except CostmodelError as error:
        return "\n" not in str(error)
    return True


@given(st.binary(max_size=400))
@settings(max_examples=150, deadline=None)
def test_any_bytes_at_all(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    for kind, suffix in (("profiles", "toml"), ("traces", "json.gz"), ("runs", "csv"), ("budgets", "toml")):
        path = folder / f"any.{suffix}"
        path.write_bytes(data)
        assert one_line(lambda path=path, kind=kind: KINDS[kind].open(path))


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_below_a_right_start(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "any.csv").write_text(RUNS + text, encoding="utf-8", newline="")
    (folder / "any.toml").write_text(BUDGET + text, encoding="utf-8", newline="")
    for read in (lambda: read_runs(folder / "any.csv", board()), lambda: load_budget(folder / "any.toml")):
        assert one_line(read)
