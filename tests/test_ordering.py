"""Published orderings against runs: verdicts by paired differences, the page that shows them, which grid it is of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from costmodel.device import load_device
from costmodel.report._fronts_page import fronts_page
from costmodel.tasks import collect, families, family, result
from costmodel.tasks.ordering import CLAIMS, orderings
from costmodel.tasks.result import TaskResult

from . import report_cases as cases


def runs(arm: str, values: tuple[float, ...], kind: str = "irb", higher: bool = True) -> list[TaskResult]:
    return [
        TaskResult(kind, arm, seed, "quick", "accuracy", value, higher, 1.0, 1.0, "none", "tiny", {})
        for seed, value in enumerate(values)
    ]


def test_a_chain_is_judged_by_differences_of_the_same_seed() -> None:
    # 0.02 better at every seed, though seeds differ by 0.2: surely apart in pairs, never on average
    low, high = (0.5, 0.6, 0.7), (0.521, 0.619, 0.72)
    (holds,) = orderings([*runs("bias", low), *runs("mobiletl:blocks=1", high)])
    assert (holds.worse, holds.better, holds.verdict, holds.seeds) == ("bias", "mobiletl:blocks=1", "holds", 3)
    assert holds.gain == pytest.approx(0.02)
    (turned,) = orderings([*runs("bias", high), *runs("mobiletl:blocks=1", low)])
    assert (turned.verdict, turned.gain) == ("reversed", pytest.approx(-0.02))
    (alike,) = orderings([*runs("bias", low), *runs("mobiletl:blocks=1", (0.55, 0.55, 0.71))])
    assert alike.verdict == "tie"


def test_less_is_better_for_bits() -> None:
    (step,) = [
        s
        for s in orderings([*runs("quamba", (1.9, 1.8), "ssm", False), *runs("fp32", (1.8, 1.7), "ssm", False)])
        if s.claim.chain[0] == "naive_w8a8"
    ]
    assert (step.worse, step.better, step.verdict) == ("quamba", "fp32", "holds")
    assert step.gain == pytest.approx(0.1)


def test_equal_as_published_is_no_difference_beyond_the_error() -> None:
    def of(values: tuple[float, ...]) -> str:
        found = orderings([*runs("full", (0.7, 0.7, 0.7), "vit"), *runs("lbp_wht:order=8", values, "vit")])
        return next(s.verdict for s in found if s.claim.alike)

    assert of((0.71, 0.69, 0.7)) == "holds"
    assert of((0.61, 0.6, 0.605)) == of((0.81, 0.8, 0.805)) == "does not hold"


def test_an_arm_that_was_not_run_is_left_out_of_its_chain() -> None:
    steps = orderings([*runs("mobiletl:blocks=1", (0.5, 0.5)), *runs("mobiletl:blocks=5", (0.6, 0.61))])
    assert [(s.worse, s.better) for s in steps] == [("mobiletl:blocks=1", "mobiletl:blocks=5")]


def test_every_arm_of_a_claim_is_in_a_grid() -> None:
    for claim in CLAIMS:
        assert claim.family in families()
        arms = {arm for arm, _ in family(claim.family).grid("full")}
        assert set(claim.chain) <= arms, claim.text
        assert len(claim.chain) > 1


def test_the_page_has_every_point_and_choice_and_verdict() -> None:
    fronts = cases.fronts()
    steps = orderings([*runs("bias", (0.5, 0.6)), *runs("mobiletl:blocks=1", (0.6, 0.71))])
    family_of = fronts[0].points[0].family
    steps = [replace(step, claim=replace(step.claim, family=family_of)) for step in steps]
    devices = [load_device(name) for name in dict.fromkeys(f.device for f in fronts)]
    page = fronts_page(fronts, steps, devices)
    for front in fronts:
        assert f"## {front.points[0].family}" in page
        for point in front.points:
            assert point.name.replace("_", "\\_") in page
    assert sum(line.startswith("## ") for line in page.splitlines()) == len({f.points[0].family for f in fronts})
    assert "+0.1050 ± 0.0050" in page
    assert "Published orderings: of 1 steps, 1 holds." in page


def test_the_grid_of_a_report_is_the_largest_that_has_three_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result, "_COMMITTED", tmp_path)
    result._committed_by_key.cache_clear()
    assert collect.kept_grid("irb") is None

    def kept(budget: result.Budget, seeds: int) -> None:
        grid = [(arm, seed) for arm, seed in family("irb").grid(budget) if seed < seeds]
        results = [
            TaskResult("irb", arm, seed, budget, "a", 0.5, True, 1.0, 1.0, "d", "m", {}, key=f"{budget}{arm}{seed}")
            for arm, seed in grid
        ]
        result.publish("irb", budget, results)

    kept("quick", 3)
    assert collect.kept_grid("irb") == "quick"
    kept("full", 2)
    assert collect.kept_grid("irb") == "quick"
    kept("full", 3)
    assert collect.kept_grid("irb") == "full"
    result._committed_by_key.cache_clear()
