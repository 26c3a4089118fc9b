"""Few-shot fits: zero rows are the prior, many rows the truth, and what is chosen is worth more than what is not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from costmodel import fewshot
from costmodel.device import load_device
from costmodel.errors import CostmodelError, UnknownName
from costmodel.fewshot import _NAMES, Prior, Row, choose_rows, fit_priced, fit_rows, leave_families_out
from costmodel.runs import Run

N = len(_NAMES)


def table(truth: np.ndarray, n: int = 40, noise: float = 0.0, seed: int = 0) -> list[Row]:
    """n runs of random mixtures of classes, measured on a device whose classes are `truth` times the profile's."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        seconds = rng.dirichlet(np.full(N, 0.4)) * rng.lognormal(0, 1)
        measured = float(seconds @ truth) * math.exp(noise * rng.standard_normal())
        family = ("resnet", "vit", "swin", "mixer")[i % 4]
        rows.append(Row(Run(f"{family}{i}", "infer", measured), seconds))
    return rows


def errors(fit: fewshot.FewShot, rows: list[Row]) -> np.ndarray:
    return np.array([abs(fit.seconds(row) / row.run.latency_s - 1) for row in rows])


def fitted(rows: list[Row], k: int, prior: Prior | None = None) -> fewshot.FewShot:
    spreads = prior or Prior()
    return fewshot._fit_chosen(rows, choose_rows(rows, k, spreads), spreads)


def test_no_rows_is_the_profile_as_it_is() -> None:
    rows = table(np.full(N, 3.0))
    fit = fitted(rows, 0)
    assert fit.device_scale == 1
    assert set(fit.scales.values()) == {1.0}
    assert all(fit.seconds(row) == pytest.approx(row.predicted) for row in rows)
    assert fit.spread(rows[0]) > 0.5


def test_one_row_moves_the_device_and_every_class_with_it() -> None:
    fit = fitted(table(np.full(N, 3.0)), 1)
    assert fit.device_scale > 1.3
    assert min(fit.scales.values()) > 1.3  # classes that the row hardly has go along


def test_many_rows_find_each_class() -> None:
    truth = np.exp(np.random.default_rng(3).normal(0, 0.5, N))
    fit = fitted(table(truth, 60), 60, Prior(run=0.02))
    assert np.array(list(fit.scales.values())) == pytest.approx(truth, rel=0.1)
    assert fit.mape < 0.01


def test_errors_and_spreads_fall_with_rows() -> None:
    truth = 2.0 * np.exp(np.random.default_rng(5).normal(0, 0.5, N))
    rows = table(truth, 60, noise=0.03)
    held_out = table(truth, 40, seed=9)
    fits = [fitted(rows, k) for k in (0, 1, 3, 8, 24)]
    mape = [errors(fit, held_out).mean() for fit in fits]
    assert mape[0] > mape[2] > mape[4]
    assert mape[3] < 0.25
    assert mape[4] < 0.1
    spread = [np.mean([fit.spread(row) for row in held_out]) for fit in fits]
    assert spread == sorted(spread, reverse=True)
    assert [step.spread for step in fits[4].steps] == sorted((s.spread for s in fits[4].steps), reverse=True)


def test_chosen_rows_are_worth_more_than_any_rows() -> None:
    truth = np.exp(np.random.default_rng(7).normal(0, 0.6, N))
    rows = table(truth, 60, noise=0.02)
    prior = Prior()
    chosen = errors(fitted(rows, 6), rows).mean()
    rng = np.random.default_rng(0)
    others = [
        errors(fewshot._fit_chosen(rows, list(rng.choice(60, 6, replace=False)), prior), rows).mean() for _ in range(30)
    ]
    assert chosen < np.median(others)


def test_choice_looks_at_nothing_measured_and_takes_no_row_twice() -> None:
    rows = table(np.ones(N))
    lies = [Row(Run(row.run.model, "infer", 1e9), row.seconds) for row in rows]
    assert choose_rows(rows, 10) == choose_rows(lies, 10)
    assert len(set(choose_rows(rows, 40))) == 40


def test_one_wild_row_does_not_drag_the_rest() -> None:
    rows = table(np.full(N, 2.0), 30)
    wild = Row(Run("resnet0", "infer", rows[0].run.latency_s * 20), rows[0].seconds)
    fit = fitted([wild, *rows[1:]], 30)
    assert np.median(errors(fit, rows[1:])) < 0.05


def test_families_are_held_out_whole() -> None:
    rows = table(np.full(N, 2.0), 40)
    # a family that is measured three times slower than its classes say cannot be known from the others
    slow = [
        Row(Run(r.run.model, "infer", r.run.latency_s * (3 if "vit" in r.run.model else 1)), r.seconds) for r in rows
    ]
    error = leave_families_out(slow, None)
    vit = np.array(["vit" in row.run.model for row in slow])
    assert not np.allclose(np.exp(error[~vit]), 1 / 3, rtol=0.3)
    assert np.exp(error[vit]) == pytest.approx(np.full(vit.sum(), 1 / 3), rel=0.1)


def test_scales_go_into_the_profile_and_back_out() -> None:
    device = load_device("raspberry-pi-4b")
    rows = table(np.full(N, 2.0), 10)
    fit = fitted(rows, 10)
    after = fit.applied(device, "torch-eager", "runs.csv")
    old, new = device.runtime["torch-eager"], after.runtime["torch-eager"]
    from costmodel.lower import class_scale_of

    for kind in ("gemm_nt", "conv_1x1_backward", "conv_depthwise", "softmax", "batch_norm_train", "elementwise"):
        factor = fit.scales[fewshot._class_of(kind)]
        assert class_scale_of(new, kind) == pytest.approx(factor * class_scale_of(old, kind))
    assert new.overhead_s.value == pytest.approx(old.overhead_s.value * fit.scales["overhead"])
    assert new.interval["infer"].cases == 10
    assert new.interval["infer"].kind == "fitted"
    assert new.interval["infer"].high < 0.7
    for place, number in after.numbers():
        assert number.source in after.sources, place
    assert "10 runs of runs.csv" in after.sources[new.overhead_s.source]


def test_the_prior_of_a_fitted_profile_is_narrow() -> None:
    fitted_one = Prior.of(load_device("raspberry-pi-4b").runtime["torch-eager"])
    assert fitted_one.device < Prior.of(load_device("intel-n100").runtime["torch-eager"]).device


def test_what_cannot_be_fitted_is_said() -> None:
    device = load_device("raspberry-pi-4b")
    with pytest.raises(UnknownName, match="torch-eager"):
        fit_rows(device, "torch-eagre", [], [])
    with pytest.raises(CostmodelError, match="0 to 0 runs"):
        fit_rows(device, "torch-eager", [], [], k=3)
    assert fit_rows(device, "torch-eager", [], []).device_scale == 1


def test_the_fit_is_a_minimum() -> None:
    """Its analytic slope agrees with differences: at the solution no step is better."""
    rows = table(np.exp(np.random.default_rng(2).normal(0, 0.5, N)), 12, noise=0.2)
    prior = Prior()
    p, _ = fewshot._solve(rows, range(12), prior)
    root = np.linalg.cholesky(fewshot._prior_precision(prior)).T

    def objective(q: np.ndarray) -> float:
        r = (
            np.log([row.seconds @ np.exp(q[1:]) for row in rows]) - np.log([row.run.latency_s for row in rows])
        ) / prior.run
        return float(np.sum(2 * (np.sqrt(1 + r * r) - 1)) + np.sum((root @ q) ** 2))

    best = objective(p)
    rng = np.random.default_rng(1)
    for size in (1e-3, 1e-2, 0.1):
        assert all(objective(p + size * rng.standard_normal(N + 1)) >= best - 1e-6 for _ in range(50))
    assert fewshot._milestones(3) == [1, 2, 3]
    assert fewshot._milestones(50) == [*range(1, 11), 20, 40, 50]
    assert fewshot._milestones(0) == []


def test_a_fit_remembers_what_was_there_before_it() -> None:
    device = load_device("intel-n100")
    rows = table(np.full(N, 2.0), 10)
    once = fitted(rows, 10).applied(device, "torch-eager", "a.csv")
    twice = fitted(rows, 10).applied(once, "torch-eager", "b.csv")
    before = twice.before_fit("torch-eager").runtime["torch-eager"]
    own = device.runtime["torch-eager"]
    assert twice.runtime["torch-eager"].overhead_s.value > own.overhead_s.value
    assert before.overhead_s.value == own.overhead_s.value
    from costmodel.lower import class_scale_of

    assert all(class_scale_of(before, kind) == class_scale_of(own, kind) for kind in ("gemm", "conv", "default"))


def test_before_any_run_a_shipped_profile_is_a_guess() -> None:
    before = load_device("raspberry-pi-4b").before_fit("torch-eager")
    kinds = {n.kind for place, n in before.numbers() if place.startswith("runtime.torch-eager")}
    assert "fitted" not in kinds
    assert before.runtime["torch-eager"].interval["default"].high >= 0.5


def test_scales_that_move_to_another_device_are_less_sure() -> None:
    fit = fitted(table(np.full(N, 2.0), 12), 12)
    moved = fit.moved()
    assert moved.scales["matmul"] == fit.scales["matmul"]
    assert moved.scales[fewshot.OVERHEAD] == 1.0
    row = fit.chosen[0]
    assert moved.spread(row) > 2 * fit.spread(row)


def test_rows_that_stand_for_a_large_table_are_not_its_extremes() -> None:
    rows = table(np.ones(N), 200)
    chosen = choose_rows(rows, 10)
    assert len(set(chosen)) == 10
    place = np.argsort(np.argsort([row.predicted for row in rows]))
    assert all(40 <= place[i] < 160 for i in chosen)


def test_the_profile_says_how_far_off_other_families_are() -> None:
    runtime = load_device("raspberry-pi-4b").runtime["torch-eager"]
    exact = table(np.full(N, 2.0), 24)
    assert fit_priced(exact, None, runtime).left_out == pytest.approx(0.0, abs=0.05)
    # one family is three times slower than its classes say: nothing that the others tell can know it
    slow = [
        Row(replace(r.run, latency_s=r.run.latency_s * (3 if "vit" in r.run.model else 1)), r.seconds) for r in exact
    ]
    fit = fit_priced(slow, None, runtime)
    assert fit.left_out is not None
    assert fit.left_out > 0.15
    after = fit.applied(load_device("raspberry-pi-4b"), "torch-eager", "runs.csv")
    assert f"families of models left out {fit.left_out:.1%}" in after.sources["fewshot-runs-csv"]
    assert fit_priced([r for r in exact if "vit" in r.run.model], None, runtime).left_out is None


def test_thousands_of_rows_are_fitted_in_seconds() -> None:
    runtime = load_device("raspberry-pi-4b").runtime["torch-eager"]
    many = table(np.full(N, 2.0), 3000)
    fit = fit_priced(many, None, runtime)
    assert len(fit.chosen) == 3000
    assert fit.device_scale == pytest.approx(2.0, rel=0.05)
    source = fit.applied(load_device("raspberry-pi-4b"), "torch-eager", "runs.csv").sources["fewshot-runs-csv"]
    assert source.startswith("3000 runs of runs.csv: ")
    assert len(source) < 1000
