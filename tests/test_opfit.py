"""Fitting: constants that made the data are found again, priors fill what no point says, and nothing is negative."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from costmodel.core.traffic import CODE_BYTES, CODE_SHARE, beyond
from costmodel.costs import OpSpec, TensorSpec, formula_for
from costmodel.opfit import LEVELS, best_spin_s, choose_capacity, fit_kinds, fit_whole, points_of

FLUSH, BETWEEN = 64e6, 5e6
CAPACITY = {"L2": 1e6, "L3": 16e6}
# seconds: what the made-up machine costs
OVERHEAD, COLD = 4e-6, {"L3": 2e-6, "dram": 6e-6}
RATE = {"read L3": 4e-11, "read dram": 1.2e-10, "write L3": 6e-11, "write dram": 2e-10}
WORK = 3e-11
# bytes that went by since the op's code ran, by state
STATES = {"hot": 0.0, "between": BETWEEN, "warm": FLUSH, "cold": FLUSH}


def lines(name: str, shapes: list[tuple[int, ...]], noise: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    """What `measure.micro` would write of a machine with the constants above, `noise` in each repeat."""
    rng = np.random.default_rng(seed)
    made = []
    for i, shape in enumerate(shapes):
        stride = [int(np.prod(shape[k + 1 :])) for k in range(len(shape))]
        inputs, outputs = [[list(shape), "float32", stride]], [[list(shape), "float32", stride]]
        line: dict[str, Any] = {
            "op": f"{name}.default", "inputs": inputs, "outputs": outputs, "attrs": {}, "storage": [0, 1],
            "weight": [False], "cold_output": i % 2 == 0, "between_bytes": BETWEEN,
        }  # fmt: skip
        spec = TensorSpec(shape, "float32", tuple(stride))
        formula = formula_for(name)
        assert formula is not None
        terms = formula(OpSpec(name, (spec,), (spec,), {}, 1)).terms
        size = float(spec.nbytes)
        for state, code_away in STATES.items():
            d = CODE_BYTES + 2 * size + code_away
            past2, past3 = (beyond(d, CODE_SHARE * CAPACITY[level]) for level in ("L2", "L3"))
            t = OVERHEAD + past2 * ((1 - past3) * COLD["L3"] + past3 * COLD["dram"]) + WORK * sum(terms.values())
            away = (1.0, float(line["cold_output"])) if state == "cold" else (0.0, 0.0)
            for way, moved in zip(("read", "write"), away):
                d = 2 * size + FLUSH * moved
                past2, past3 = beyond(d, CAPACITY["L2"]), beyond(d, CAPACITY["L3"])
                t += size * past2 * ((1 - past3) * RATE[f"{way} L3"] + past3 * RATE[f"{way} dram"])
            line[state] = list(t * (1 + noise * rng.standard_normal(9)))
        made.append(line)
    return made


def shapes(n: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [(int(x),) for x in np.exp(rng.uniform(np.log(64), np.log(8e6), n))]


def fit(raw: list[dict[str, Any]], **more: Any) -> Any:
    return fit_kinds(raw, threads=1, dtype="float32", flush_bytes=FLUSH, source="made up", **more)


@pytest.fixture(scope="module")
def made() -> list[dict[str, Any]]:
    return lines("aten::relu", shapes(60))


def test_constants_that_made_the_points_are_found(made: list[dict[str, Any]]) -> None:
    found = fit(made)
    ((_, k),) = found.kinds.items()
    assert k.error < 0.01, "held-out points are predicted"
    assert k.most == {"n": max(math.prod(line["inputs"][0][0]) for line in made)}, "how far the points reach"
    assert k.overhead_s == pytest.approx(OVERHEAD, rel=0.05)
    assert k.cold_s == pytest.approx(COLD, rel=0.05)
    assert k.read_s["dram"] == pytest.approx(RATE["read dram"], rel=0.1)
    assert k.write_s["dram"] == pytest.approx(RATE["write dram"], rel=0.1)
    assert k.points == found.points == 60
    assert found.noise == pytest.approx(0.0, abs=1e-9)


def test_effective_cache_sizes_are_found(made: list[dict[str, Any]]) -> None:
    points, gaps = points_of(made, 1, 16, FLUSH)
    assert not gaps
    assert choose_capacity(points, {}) == CAPACITY
    assert choose_capacity(points, {"L2": 0.5e6})["L2"] == 0.5e6, "the machine has no more"


def test_noise_is_averaged_and_told() -> None:
    found = fit(lines("aten::relu", shapes(120), noise=0.05))
    ((_, k),) = found.kinds.items()
    assert k.error < 0.06
    assert 0.03 < found.noise < 0.15
    assert k.overhead_s == pytest.approx(OVERHEAD, rel=0.15)


def test_outliers_do_not_move_the_fit() -> None:
    raw = lines("aten::relu", shapes(80))
    for line in raw[::13]:
        line["hot"] = [5 * t for t in line["hot"]]
    ((_, k),) = fit(raw).kinds.items()
    assert k.overhead_s == pytest.approx(OVERHEAD, rel=0.1)


def test_a_rate_that_no_point_shows_is_the_priors() -> None:
    small = lines("aten::relu", [(n,) for n in range(64, 2000, 60)])
    prior = {"read L3": 1e-11, "read dram": 2e-11, "write L3": 3e-11, "write dram": 4e-11}
    for line in small:
        line["between"], line["warm"], line["cold"] = [], [], []  # nothing ever left the nearest cache
    ((_, k),) = fit(small, device_s_per_byte=prior).kinds.items()
    for level in LEVELS:
        assert k.read_s[level] <= 4 * prior[f"read {level}"] * (1 + 1e-9)
        assert k.write_s[level] <= 4 * prior[f"write {level}"] * (1 + 1e-9)
        assert k.read_s[level] > 0


def test_nothing_is_negative_whatever_the_points(made: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng(1)
    for line in (raw := [dict(line) for line in made]):
        for state in STATES:
            line[state] = list(10 ** rng.uniform(-7, -1, 9))
    for k in fit(raw).kinds.values():
        for value in (k.overhead_s, *k.cold_s.values(), *k.term_s.values(), *k.read_s.values(), *k.write_s.values()):
            assert 0 <= value < np.inf


def test_too_few_points_make_no_class_and_unknown_ops_are_counted() -> None:
    raw = lines("aten::relu", shapes(3))
    raw += [{**line, "op": "nobody::knows.default"} for line in raw[:2]]
    points, gaps = points_of(raw, 1, 16, FLUSH)
    assert len(points) == 3
    assert gaps == {"nobody::knows": 2}
    found = fit(raw)
    assert found.kinds == {}
    assert found.error is None
    assert fit([]).points == 0


def test_code_from_l3_is_never_dearer_than_from_dram(made: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng(2)
    noisy = [{**line, **{s: list(np.array(line[s]) * rng.uniform(0.5, 2, 9)) for s in STATES}} for line in made]
    for k in fit(noisy).kinds.values():
        assert 0 <= k.cold_s["L3"] <= k.cold_s["dram"]


def test_a_factor_a_mode_is_found() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(1, 5, 12)
    modes = ["infer", "train"] * 6
    true = np.where(np.array(modes) == "infer", 1.05, 0.95)
    ops = np.full(12, 100.0)
    found, between = fit_whole(predicted, true * predicted, ops, modes)
    assert found == pytest.approx({"infer": 1.05, "train": 0.95}, rel=0.01)
    assert between == {"infer": 0.0, "train": 0.0}
    hidden, between = fit_whole(predicted, 3.0 * predicted, ops, modes)
    assert hidden == {"infer": 1.15, "train": 1.15}, "what the model has no room for is not hidden in a constant"
    assert max(between.values()) <= 15e-6


def test_a_time_between_ops_is_told_from_a_factor_by_nets_of_small_ops() -> None:
    rng = np.random.default_rng(1)
    ops = np.array([150.0, 200.0, 180.0] * 3)
    predicted = ops * np.array([12e-6] * 3 + [200e-6] * 3 + [900e-6] * 3)
    measured = (1.04 * predicted + 6e-6 * ops) * np.exp(rng.normal(0.0, 0.02, 9))
    whole, between = fit_whole(predicted, measured, ops, ["infer"] * 9)
    assert whole["infer"] == pytest.approx(1.04, abs=0.04)
    assert between["infer"] == pytest.approx(6e-6, abs=1.5e-6)


def test_a_slow_state_of_the_machine_is_taken_out_of_its_points(made: list[dict[str, Any]]) -> None:
    """Every third point measured while all took 1.4 times as long, and the spin beside it as well."""
    slowed = []
    for i, line in enumerate(made):
        by = 1.4 if i % 3 == 0 else 1.0
        spins = {state: [2e-3 * by] * 2 for state in STATES}
        slowed.append({**line, **{s: [by * t for t in line[s]] for s in STATES}, "spin": spins})
    calm, told, blind = (fit(r) for r in (made, slowed, [{k: v for k, v in p.items() if k != "spin"} for p in slowed]))
    assert told.spin_s == pytest.approx(2e-3)
    assert calm.spin_s is None
    kind = next(iter(calm.kinds))
    terms = [f.kinds[kind].term_s["n"] for f in (calm, told, blind)]
    assert terms[1] == pytest.approx(terms[0], rel=1e-6)
    assert abs(terms[2] / terms[0] - 1.0) > 0.02, "without the spin the slow state is in the constants"


def test_a_spin_that_changed_around_a_state_counts_by_its_mean(made: list[dict[str, Any]]) -> None:
    line = {**made[0], "spin": {"hot": [2e-3, 4e-3], "warm": [2e-3, 2e-3]}}
    (point,), _ = points_of([line], 1, 16, FLUSH)
    (plain,), _ = points_of([made[0]], 1, 16, FLUSH)
    assert point.seconds["hot"] / plain.seconds["hot"] == pytest.approx(best_spin_s([line]) / 3e-3)
    assert point.seconds["between"] == plain.seconds["between"], "a state without a spin stays as it was measured"
