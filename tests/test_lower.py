"""Lowering: columns add up to the graph, users' formulas count, and whatever a formula does is a gap and no crash."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from costmodel.capture import capture
from costmodel.costs import _USERS as users
from costmodel.costs import Cost, OpSpec, cost, formula_for
from costmodel.device import load_device
from costmodel.errors import CostmodelError
from costmodel.estimate import estimate
from costmodel.graph import OpGraph
from costmodel.lower import (
    UNPRICED,
    class_scale_of,
    cpu_rates,
    efficiency_of,
    levels_of,
    lower,
    peak_flops_per_s,
    team_flops_per_s,
)
from costmodel.report import render

from .fuzz.fuzz import graph as hand_made


@torch.library.custom_op("lowertest::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@mystery.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Mysterious(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.lowertest.mystery(torch.ops.lowertest.mystery(self.a(x)))


@pytest.fixture
def mysterious() -> Iterator[OpGraph]:
    yield capture(Mysterious(), torch.zeros(8, 64))
    users.pop("lowertest::mystery", None)


def test_columns_are_the_graph() -> None:
    g = hand_made()
    low = lower(g)
    t = low.table
    assert len(t.kind) == len(low.costs) == len(g)
    assert t.flops.sum() == sum(c.flops for c in low.costs)
    assert t.use_ptr[-1] == len(t.use_bytes) == len(t.use_storage)
    expected = [sum(g.tensor_bytes(x) for x in (*i, *o)) for i, o in zip(g.op_inputs, g.op_outputs)]
    relu = g.op_name.index("aten::relu")
    assert low.op_bytes[relu] == expected[relu] == 2 * 4 * 8 * 16 * 16 * 4
    mm = g.op_name.index("aten::mm")
    assert low.costs[mm].flops == 2 * 4 * 2048 * 10
    assert low.unpriced == {}
    assert (low.distance >= t.use_bytes - 1e-6).all(), "an operand's own bytes are part of its distance"


def test_an_unknown_op_is_listed_by_name_and_priced_by_its_bytes(mysterious: OpGraph) -> None:
    low = lower(mysterious)
    assert low.unpriced == {"lowertest::mystery": 2}
    k = mysterious.op_name.index("lowertest::mystery")
    assert low.costs[k].kind == UNPRICED
    assert low.op_bytes[k] == 2 * 8 * 64 * 4
    board = load_device("raspberry-pi-4b")
    e = estimate(mysterious, board)
    assert e.coverage.unpriced == {"lowertest::mystery": 2}
    assert e.coverage.ops == pytest.approx(1 - 2 / len(mysterious))
    assert e.coverage.time < 1
    assert e.seconds[k] > 0
    with pytest.raises(CostmodelError, match=r"ops without a formula: lowertest::mystery ×2; .*@costmodel\.cost"):
        estimate(mysterious, board, strict=True)


def test_your_own_formula_in_five_lines(mysterious: OpGraph) -> None:
    import costmodel as cm

    unknown = estimate(mysterious, load_device("raspberry-pi-4b"))

    @cm.cost("lowertest::mystery")
    def formula(op: OpSpec) -> Cost:
        n = op.outputs[0].numel
        return cm.Cost(flops=n, kind="elementwise")

    assert formula_for("lowertest::mystery.default") is formula
    low = lower(mysterious)
    assert low.unpriced == {}
    assert sum(c.flops for n, c in zip(mysterious.op_name, low.costs) if "mystery" in n) == 2 * 8 * 64
    known = estimate(mysterious, load_device("raspberry-pi-4b"), strict=True)
    assert known.coverage.ops == known.coverage.time == 1
    width = [math.log(e.latency_s.high / e.latency_s.low) for e in (known, unknown)]
    assert width[0] < width[1], "what has no formula widens the interval"


@pytest.mark.parametrize("name", ["mystery", "lowertest::mystery.default"])
def test_a_formula_needs_an_ops_name(name: str) -> None:
    with pytest.raises(CostmodelError, match="named 'namespace::op' without an overload"):
        cost(name)


WRONG: dict[str, Any] = {
    "raises": lambda op: op.attrs["none"],
    "divides by zero": lambda op: Cost(flops=1 // 0, kind="x"),
    "stops": lambda op: Cost(flops=next(iter(())), kind="x"),
    "negative": lambda op: Cost(flops=-1, kind="x"),
    "nan": lambda op: Cost(flops=float("nan"), kind="x"),
    "infinite": lambda op: Cost(flops=float("inf"), kind="x"),
    "huge": lambda op: Cost(flops=10**400, kind="x"),
    "negative work": lambda op: Cost(flops=1, work=-1.0, kind="x"),
    "bytes of too few": lambda op: Cost(flops=1, kind="x", read=()),
    "negative bytes": lambda op: Cost(flops=1, kind="x", read=(-1,)),
    "absurd workspace": lambda op: Cost(flops=1, kind="x", workspace=1 << 70),
    "nan term": lambda op: Cost(flops=1, kind="x", terms={"a": float("nan")}),
    "unknown unit": lambda op: Cost(flops=1, kind="x", unit="fp31"),
    "no cost": lambda op: None,
    "text": lambda op: Cost(flops="many", kind="x"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_formula_that_is_wrong_is_a_gap_by_name(name: str, mysterious: OpGraph) -> None:
    cost("lowertest::mystery")(WRONG[name])
    low = lower(mysterious)
    ((gap, count),) = low.unpriced.items()
    assert gap.startswith("lowertest::mystery (its formula ")
    assert count == 2
    assert "\n" not in gap
    e = estimate(mysterious, load_device("raspberry-pi-4b"))
    assert math.isfinite(e.latency_s.high)


def test_alike_ops_are_priced_once() -> None:
    calls = []

    def counting(op: OpSpec) -> Cost:
        calls.append(op)
        return Cost(flops=1, kind="elementwise")

    cost("lowertest::mystery")(counting)
    try:
        lower(capture(Mysterious(), torch.zeros(8, 64)))
        assert len(calls) == 1
    finally:
        users.pop("lowertest::mystery")


def test_threads_beyond_the_cores_say_how_many_there_are() -> None:
    board = load_device("raspberry-pi-4b")
    with pytest.raises(CostmodelError, match="raspberry-pi-4b has 4 cores; ask for at most as many threads, not 5"):
        cpu_rates(board, next(iter(board.runtime.values())), lower(hand_made(), threads=5))


def test_threads_fill_the_fastest_cluster_first() -> None:
    device = load_device("rk3588")
    big = device.cpu[0]
    peaks = [peak_flops_per_s(device, "fp32", n) for n in range(1, device.cores + 1)]
    steps = np.diff([0.0, *peaks])
    assert (steps > 0).all()
    assert (np.diff(steps) <= 0).all()
    assert steps[0] == pytest.approx(big.clock_hz.value * big.flops_per_cycle["fp32"].value)


def test_rates_of_a_class_come_from_the_class_that_it_is_a_kind_of() -> None:
    board = load_device("raspberry-pi-4b")
    runtime = board.runtime["torch-eager"]
    number = next(iter(runtime.efficiency.values()))
    table = {k: number.model_copy(update={"value": v}) for k, v in (("default", 0.1), ("conv", 0.5), ("gemm_x", 0.7))}
    runtime = runtime.model_copy(update={"efficiency": table, "class_scale": {"conv_direct": table["gemm_x"]}})
    assert efficiency_of(runtime, "conv_depthwise_backward") == 0.5
    assert efficiency_of(runtime, "gemm_x_y") == 0.7
    assert efficiency_of(runtime, "gemm") == efficiency_of(runtime, "softmax") == 0.1
    assert class_scale_of(runtime, "conv_direct_k3") == 0.7
    assert class_scale_of(runtime, "conv") == 1.0


@pytest.mark.parametrize("name", ["raspberry-pi-4b", "i9-10940x", "rk3588", "jetson-nano"])
def test_a_nearer_level_is_never_slower(name: str) -> None:
    device = load_device(name)
    runtime = next(r for r in device.runtime.values() if r.engine == "cpu")
    for threads in range(1, device.cores + 1):
        rates = cpu_rates(device, runtime, lower(hand_made(), threads))
        assert rates.read_s.shape[1] == len(levels_of(device)) == len(rates.capacity) + 1
        assert (np.diff(rates.capacity) > 0).all()
        if not runtime.fit:
            assert (np.diff(rates.read_s, axis=1) >= 0).all()
        for column in rates:
            assert np.isfinite(column).all()
            assert (np.asarray(column) >= 0).all()


class Masked(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.ones(8, 8, dtype=torch.bool).triu(1)
        return x.exp() + x.masked_fill(hidden, 0.0).exp() + x.masked_fill(hidden, float("-inf")).exp()


def test_exp_of_what_is_masked_with_infinity_takes_the_slow_path() -> None:
    lowered = lower(capture(Masked(), torch.ones(8, 8)))
    calls = [c.terms["library"] / 64 for c, n in zip(lowered.costs, lowered.graph.op_name) if n == "aten::exp"]
    assert calls == pytest.approx([1.0, 1.0, 5.3])


def test_equal_parts_wait_for_the_slowest_core() -> None:
    board = load_device("rk3399")
    big, little = board.cpu
    ncnn, eager = board.runtime["ncnn"], board.runtime["torch-eager"]
    assert (ncnn.schedule, eager.schedule) == ("static", "dynamic")
    assert little.per_cycle is not None
    of_big = big.clock_hz.value * big.flops_per_cycle["fp32"].value
    of_little = little.clock_hz.value * little.flops_per_cycle["fp32"].value * little.per_cycle.value
    assert team_flops_per_s(board, ncnn, "fp32", 2) == pytest.approx(2 * of_big)
    assert team_flops_per_s(board, ncnn, "fp32", 6) == pytest.approx(6 * of_little)
    assert team_flops_per_s(board, eager, "fp32", 6) == pytest.approx(2 * of_big + 4 * of_little)
    alike = load_device("raspberry-pi-4b")
    assert team_flops_per_s(alike, alike.runtime["ncnn"], "fp32", 4) == peak_flops_per_s(alike, "fp32", 4)


class Stacked(nn.Module):
    """Pairs of numbers, as rotary embeddings stack them: a run of the result is one number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack((x, -x), dim=-1)


def test_what_is_far_beyond_the_calibration_is_told() -> None:
    device = load_device("epyc-zen4-vm-2c")
    eager = device.runtime["torch-eager"]

    def with_cat(**changed: Any) -> Any:
        fits = tuple(
            f.model_copy(update={"kinds": {**f.kinds, "cat": f.kinds["cat"].model_copy(update=changed)}})
            for f in eager.fit
        )
        runtime = eager.model_copy(update={"fit": fits})
        return device.model_copy(update={"runtime": {**device.runtime, "torch-eager": runtime}})

    graph = capture(Stacked(), torch.zeros(8, 400, 16))
    near = estimate(graph, with_cat(term_s={"runs": 2.5e-7}, most={"runs": 60_000.0}))
    assert near.beyond_calibration == ()
    far = estimate(graph, with_cat(term_s={"runs": 2.5e-7}, most={"runs": 24.0}))
    (found,) = far.beyond_calibration
    assert (found.kind, found.term, found.ops) == ("cat", "runs", 1)
    assert found.times == pytest.approx(2 * 8 * 400 * 16 / 24)
    assert found.seconds == pytest.approx(far.seconds.sum(), rel=0.1)
    assert far.as_dict()["coverage"]["beyond_calibration"][0]["term"] == "runs"
    said = " ".join(str(render(far, "text")).split())
    assert "beyond the calibration cat: runs up to 4,267 times the largest calibrated in 1 ops" in said
    assert "beyond the calibration" not in str(render(near, "text"))
    little = estimate(graph, with_cat(term_s={"n": 1e-9, "runs": 1e-15}, most={"runs": 24.0}))
    assert little.beyond_calibration == (), "what is far out and does not matter is not told"
