"""Coverage: each case ends in a result; runs resume, crashes and hangs are one case's, failures have a class."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from costmodel.errors import CaptureError, CostmodelError, MissingExtra
from costmodel.measure import coverage
from costmodel.measure.coverage import CLASSES, Case, Result, cases, classify, load_results, run
from costmodel.measure.coverage_table import page, summary

NET = Case("mlp-small", "infer")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_cases_are_traced_priced_and_kept(results: Path) -> None:
    wanted = [NET, Case("mlp-small", "train"), Case("conv-small", "train")]
    found = list(run(wanted, results))
    assert [Case(r.model, r.mode) for r in found] == wanted
    assert all(r.traced and r.ops > 0 and r.flops > 0 and r.priced_time == 1.0 for r in found)
    assert load_results(results) == dict(zip(wanted, found))
    assert list(run(wanted, results)) == [], "what was done is not done again"


def test_a_run_that_was_killed_goes_on(results: Path) -> None:
    list(run([NET], results))
    with open(results, "a") as file:
        file.write('{"model": "conv-small", "mo')  # the line that a kill cut off
    found = list(run([NET, Case("conv-small", "infer")], results))
    assert [r.model for r in found] == ["conv-small"]
    assert Case("conv-small", "infer") in load_results(results)


def test_failures_are_tried_again_when_asked(results: Path) -> None:
    wanted = [Case("no-such-net", "infer")]
    (failed,) = run(wanted, results)
    assert failed.failure == "ours"
    assert "no model named 'no-such-net'" in failed.why
    assert list(run(wanted, results)) == []
    assert len(list(run(wanted, results, again=True))) == 1


def test_hangs_and_crashes_are_one_cases(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examine = coverage.examine

    def misbehave(case: Case, device: object) -> Result:
        if case.model == "hang":
            time.sleep(60)
        if case.model == "crash":
            os.abort()
        return examine(case, device)  # type: ignore[arg-type]

    monkeypatch.setattr(coverage, "examine", misbehave)
    start = time.monotonic()
    hang, crash, net = run([Case("hang", "infer"), Case("crash", "infer"), NET], results, timeout_s=5)
    assert time.monotonic() - start < 50
    assert (hang.failure, hang.why) == ("limit", "over 5 s")
    assert crash.failure == "limit"
    assert "signal 6" in crash.why
    assert net.traced


def test_memory_has_a_limit(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(case: Case, _device: object) -> Result:
        if case.model == "greedy":
            held = bytearray(8 << 30)
            return Result(case.model, case.mode, float(len(held)))
        return Result(case.model, case.mode, 0.0)

    monkeypatch.setattr(coverage, "examine", greedy)
    (result,) = run([Case("greedy", "infer")], results, memory_bytes=4 << 30)
    assert result.failure == "limit"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CaptureError("aten::item in module 'a' reads a tensor's values to decide"), "data"),
        (CaptureError("x::y has no fake implementation; register one"), "custom op"),
        (MissingExtra("timm", "models"), "extra"),
        (ImportError("Net requires the natten library but it was not found"), "extra"),
        (
            CostmodelError("no parameter of the model needs a gradient; mode 'train' has nothing to train"),
            "no training",
        ),
        (CaptureError("Net cannot run this step: ValueError: no"), "ours"),
        (ZeroDivisionError("division by zero"), "ours"),
    ],
)
def test_failures_have_a_class_and_one_line(error: Exception, kind: str) -> None:
    found, line = classify(error)
    assert found == kind
    assert found in CLASSES
    assert line
    assert "\n" not in line


def test_one_a_family_and_all() -> None:
    few, all_of_them = cases("torchvision"), cases("torchvision", every=True)
    assert set(few) < set(all_of_them)
    assert {c.model for c in few} >= {"torchvision:resnet18", "torchvision:maskrcnn_resnet50_fpn"}
    assert len(all_of_them) > 200


def test_the_page_says_what_is_missing_and_why() -> None:
    found = [
        Result("timm:a", "infer", 1.0, ops=10, flops=20),
        Result("timm:a", "train", 1.0, ops=10, flops=20, priced_time=0.9, unpriced=[("x::y", 2, 0.1)]),
        Result("timm:b", "infer", 1.0, failure="data", why="a | b"),
    ]
    assert [(r["cases"], r["traced"], r["unpriced"]) for r in summary(found)] == [(2, 1, 0), (1, 1, 1)]
    text = page(found, producer="torch 0", device="d", command="c")
    assert "| x::y | 1 | 10.00% |" in text
    assert "| timm:b | infer | data | a / b |" in text
    assert f"* **data** (1): {CLASSES['data']}" in text
