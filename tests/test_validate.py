"""Validation: the arithmetic of errors, of the leave-one-out baseline, and of ranks, on cases made by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, kendalltau

from costmodel.calibrate import with_intervals
from costmodel.device import load_device
from costmodel.errors import CostmodelError
from costmodel.estimate import estimate
from costmodel.runs import Run
from costmodel.validate import (
    MOST_SPREAD,
    QUANTITIES,
    Case,
    Validation,
    binomial_interval,
    cases_of,
    class_errors,
    conformal,
    fit_baseline,
    summarize,
    validate,
)

from .fuzz.fuzz import graph as hand_made


def case(predicted: float, measured: float | None, **more: object) -> Case:
    values: dict[str, object] = {
        "model": "m", "device": "d", "runtime": "r", "mode": "infer", "method": None, "batch": 1, "threads": 1,
        "dtype": "float32", "quantity": "latency_s", "predicted": predicted, "low": 0.9 * predicted,
        "high": 1.1 * predicted, "measured": measured,
    }  # fmt: skip
    return Case(**(values | more))  # type: ignore[arg-type]


def test_errors_by_hand() -> None:
    cases = [case(1.05, 1.0, noise=0.02), case(0.8, 1.0, noise=0.04), case(3.0, 2.0), case(5.0, 5.0, baseline=10.0)]
    assert [c.error for c in cases] == pytest.approx([0.05, -0.2, 0.5, 0.0])
    s = summarize(cases)
    assert s.n == 4
    assert s.mape == pytest.approx(0.1875)
    assert s.median_ape == pytest.approx(0.125)
    assert s.within_10 == 0.5
    assert s.worst == 0.5
    assert s.interval_coverage == 0.5  # 1.05 ± 10 % and 5 ± 10 % hold theirs
    assert s.noise_floor == pytest.approx(0.03)
    assert s.baseline_mape == 1.0
    with pytest.raises(CostmodelError, match="no cases"):
        summarize([])


def test_measured_goes_before_published() -> None:
    assert case(1.0, 2.0, published=3.0).truth == 2.0
    assert case(1.0, None, published=4.0).error == -0.75
    with pytest.raises(CostmodelError, match=r"case m infer b1 latency_s has neither"):
        _ = case(1.0, None).error
    assert case(0.0, 0.0).error == 0.0
    assert case(2.0, 0.0).error == 1.0


def test_kendall_counts_pairs_within_a_factor_of_two() -> None:
    truth = [1.0, 1.5, 1.9, 10.0]
    assert summarize([case(p, t) for p, t in zip([1, 2, 3, 0.5], truth)]).kendall_tau == 1.0  # the far pair is easy
    assert summarize([case(p, t) for p, t in zip([3, 2, 1, 9], truth)]).kendall_tau == -1.0
    assert summarize([case(p, t) for p, t in zip([1, 3, 2, 9], truth)]).kendall_tau == pytest.approx(1 / 3)
    assert summarize([case(1, 1), case(2, 2)]).kendall_tau is None, "one pair ranks nothing"


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(1.0, 1.99)), min_size=3, max_size=12, unique_by=lambda x: x[1]))
@settings(max_examples=60, deadline=None)
def test_kendall_is_scipys_where_all_pairs_count(pairs: list[tuple[float, float]]) -> None:
    predicted = np.array([p for p, _ in pairs])
    if len(set(predicted)) < len(predicted):
        return
    ours = summarize([case(p, t) for p, t in pairs]).kendall_tau
    assert ours == pytest.approx(kendalltau(predicted, [t for _, t in pairs]).statistic)


def test_the_baseline_never_saw_its_own_case() -> None:
    cases = [case(1.0, m, baseline=1.0) for m in (2.0, 4.0, 8.0)]
    fitted = [c.baseline for c in fit_baseline(cases)]
    # the constant of each is the median (in logs: the geometric mean of two) of the others
    assert fitted == pytest.approx([math.sqrt(32), 4.0, math.sqrt(8)])
    changed = fit_baseline([replace(cases[0], measured=1000.0), *cases[1:]])
    assert changed[0].baseline == pytest.approx(fitted[0]), "its own run does not move it"


def test_the_baseline_has_a_constant_a_device_runtime_mode_and_thread_count() -> None:
    cases = [case(1, 2, baseline=1.0), case(1, 30, baseline=1.0, mode="train"), case(1, 2, baseline=1.0, threads=2)]
    assert [c.baseline for c in fit_baseline(cases)] == [1.0, 1.0, 1.0], "one case alone keeps the bare roofline"
    two = fit_baseline([*cases, case(1, 40, baseline=1.0, mode="train")])
    assert [c.baseline for c in two] == pytest.approx([1.0, 40.0, 1.0, 30.0])
    other = case(1e6, 2e6, quantity="peak_live_bytes", baseline=None)
    assert fit_baseline([other]) == (other,)


def run_of(**more: object) -> Run:
    e = estimate(hand_made(), load_device("raspberry-pi-4b"))
    values: dict[str, object] = {
        "model": "hand", "mode": "train", "batch": 4, "latency_s": 2 * e.latency_s.point, "noise": 0.01,
        "peak_live_bytes": int(e.memory.peak_live.point), "peak_rss_bytes": None, "energy_j": 1.0,
    }  # fmt: skip
    return Run(**(values | more))  # type: ignore[arg-type]


def test_cases_are_the_quantities_that_both_have() -> None:
    e = estimate(hand_made(), load_device("raspberry-pi-4b"))
    found = {c.quantity: c for c in cases_of(e, run_of())}
    shared = {"latency_s", "peak_live_bytes"} | ({"energy_j"} if e.energy_j is not None else set())
    assert set(found) == shared
    latency = found["latency_s"]
    assert latency.error == pytest.approx(-0.5)
    assert (latency.predicted, latency.low, latency.high) == (e.latency_s.point, e.latency_s.low, e.latency_s.high)
    assert latency.noise == 0.01
    assert latency.baseline == e.baseline_latency_s
    assert found["peak_live_bytes"].error == pytest.approx(0.0, abs=1e-9)
    assert (latency.model, latency.device, latency.mode, latency.batch) == ("hand", "raspberry-pi-4b", "train", 4)


@pytest.mark.parametrize(
    ("more", "message"), [({"mode": "infer"}, "mode 'train'"), ({"batch": 8}, "batch 4, the run 8")]
)
def test_only_the_same_step_is_compared(more: dict[str, object], message: str) -> None:
    e = estimate(hand_made(), load_device("raspberry-pi-4b"))
    with pytest.raises(CostmodelError, match=message):
        validate(e, run_of(**more))


def test_json_is_what_the_design_promises() -> None:
    e = estimate(hand_made(), load_device("raspberry-pi-4b"))
    v = validate([e, e], [run_of(), run_of(latency_s=1.0)], skipped={"other": "no such model"})
    d = json.loads(json.dumps(v.as_dict(), allow_nan=False))
    assert list(d) == ["schema", "cases", "summary", "skipped"]
    assert d["skipped"] == {"other": "no such model"}
    keys = [
        "model", "device", "runtime", "mode", "method", "batch", "threads", "dtype", "quantity", "predicted", "low",
        "high", "measured", "baseline", "noise",
    ]  # fmt: skip
    assert all(list(c) == keys for c in d["cases"])
    assert [q for q in QUANTITIES if q in d["summary"]] == list(d["summary"])
    assert list(d["summary"]["latency_s"]) == [
        "n", "mape", "median_ape", "within_10", "worst", "kendall_tau", "interval_coverage", "noise_floor",
        "baseline_mape", "interval_coverage_ci",
    ]  # fmt: skip
    assert d["summary"]["latency_s"]["n"] == 2


def test_estimates_and_runs_come_in_pairs() -> None:
    e = estimate(hand_made(), load_device("raspberry-pi-4b"))
    with pytest.raises(CostmodelError, match="1 estimates against 2 runs"):
        validate(e, [run_of(), run_of()])


def test_a_case_that_disagrees_with_itself_is_listed_and_not_scored() -> None:
    steady, wild = case(1.1, 1.0, spread=MOST_SPREAD), case(9.0, 1.0, spread=MOST_SPREAD + 1e-9)
    v = Validation((steady, wild))
    assert [c.scored for c in v.cases] == [True, False]
    assert v.summary["latency_s"].n == 1
    assert v.summary["latency_s"].worst == pytest.approx(0.1)
    listed = v.as_dict()["cases"]
    assert "scored" not in listed[0]
    assert listed[1]["scored"] is False
    taught = fit_baseline([case(1, 2, baseline=1.0), case(1, 4, baseline=1.0), case(1, 9e9, baseline=1.0, spread=1.0)])
    assert [c.baseline for c in taught[:2]] == pytest.approx([4.0, 2.0]), "it teaches the baseline nothing"


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (20, 20), (18, 20), (36, 40)])
def test_the_binomial_interval_is_scipys(hits: int, n: int) -> None:
    exact = binomtest(hits, n).proportion_ci(0.95, method="exact")
    assert binomial_interval(hits, n) == pytest.approx((exact.low, exact.high))


@given(st.integers(9, 60), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_a_conformal_interval_holds_its_share_of_the_cases_it_is_from(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases = [case(1.0, float(np.exp(r))) for r in rng.normal(0.0, 0.1, n)]
    interval = conformal(cases, "here")
    assert interval.low == -interval.high
    assert interval.cases == n
    inside = sum(abs(math.log(c.truth / c.predicted)) <= interval.high for c in cases)
    assert inside >= math.ceil(0.9 * (n + 1))
    assert inside <= math.ceil(0.9 * (n + 1)), "and it is no wider than that"


def test_a_conformal_interval_covers_what_it_has_not_seen() -> None:
    rng = np.random.default_rng(5)
    hits = [
        abs(r[-1]) <= conformal([case(1.0, float(np.exp(x))) for x in r[:-1]], "here").high
        for r in rng.standard_t(3, (2000, 20)) * 0.05
    ]
    assert 0.89 < np.mean(hits) < 0.93, "19 cases: rank 18 of 20 is exactly 0.9"


def test_too_few_cases_give_no_interval() -> None:
    with pytest.raises(CostmodelError, match="90% needs at least 9 scored cases, not 8"):
        conformal([case(1.0, 1.1)] * 8, "here")


def test_errors_by_class_by_hand() -> None:
    found = class_errors(
        ["gemm", "gemm", "copy", "copy"],
        ["infer", "infer", "infer", "train"],
        np.array([2.0, 4.0, 1.0, 5.0]),
        np.array([1.0, 5.0, 2.0, 4.0]),
    )
    rows = {(c.phase, c.kind): c for c in found}
    assert list(rows) == [("infer", "gemm"), ("infer", "copy"), ("train", "copy")], "the largest share first"
    gemm = rows["infer", "gemm"]
    assert (gemm.ops, gemm.share, gemm.signed, gemm.absolute) == (2, 0.75, 0.0, pytest.approx(2 / 6))
    assert rows["train", "copy"].signed == 0.25


def test_measured_models_recentre_a_calibration_and_set_its_intervals() -> None:
    device = load_device("epyc-zen4-vm-2c")
    before = device.runtime["torch-eager"].fit[0].whole
    noise = np.exp(np.random.default_rng(0).uniform(-0.05, 0.05, 21))
    slow = tuple(case(1.0, float(1.2 * n)) for n in noise)
    quick = tuple(case(2.0, float(1.8 * n), mode="train") for n in noise)
    after = with_intervals(device, Validation(slow + quick, {}), None, "made up").runtime["torch-eager"]
    assert after.fit[0].whole["infer"] == pytest.approx(1.2 * float(np.median(noise)) * before["infer"])
    assert after.fit[0].whole["train"] == pytest.approx(0.9 * float(np.median(noise)) * before["train"])
    for mode in ("infer", "train", "default"):
        assert 0.03 < after.interval[mode].high < 0.13, "the bias is in the factor, not in the interval"
    board = load_device("raspberry-pi-4b")  # nothing to recentre: the bias is part of the interval
    assert with_intervals(board, Validation(slow, {}), "torch-eager", "made up").runtime["torch-eager"].interval[
        "infer"
    ].high == pytest.approx(1.6 * (0.182 + 0.05), abs=0.02), "cases never looked at are off by more"
