"""Footprints: columns that add up, reserved and resident in order, first step, what fits, and bad traces."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from costmodel.capture import capture
from costmodel.core.malloc import MALLOC, PINNED_MALLOC, SMALL
from costmodel.device import load_device
from costmodel.errors import CaptureError, CostmodelError
from costmodel.estimate import estimate
from costmodel.footprint import (
    _micro_batches,
    _with_objects,
    addresses,
    blocks_of,
    fits_in,
    footprint,
    runtime_bytes,
)
from costmodel.graph import OpGraph
from costmodel.largest import largest_that_fits
from costmodel.lower import Lowered, lower

CPU: Any = SimpleNamespace(engine="cpu", rss_bytes=None, resident_bytes={})
GPU: Any = SimpleNamespace(engine="gpu", rss_bytes=None, resident_bytes={})


def net(width: int = 64) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def traced(batch: int = 4, **options: Any) -> Lowered:
    return lower(capture(net(), torch.randn(batch, 3, 32, 32), **options))


@pytest.fixture(scope="module", params=["sgd", "adamw"])
def training(request: pytest.FixtureRequest) -> Lowered:
    return traced(mode="train", optimizer=request.param)


def test_a_quarter_of_the_objects_that_stay_has_a_place_of_its_own(training: Lowered) -> None:
    blocks = blocks_of(training)
    assert blocks.stay.sum() > 5
    with_them = [_with_objects(blocks, blocks.events(3), 0.0, throw)[1] for throw in range(200)]
    apart = np.mean([(size == SMALL).sum() for size in with_them])
    assert apart == pytest.approx(0.25 * blocks.stay.sum(), rel=0.15)


def test_objects_of_autograd_live_as_long_in_each_of_several_micro_batches(training: Lowered) -> None:
    """As a share of one pass forward and backward, so in four of them a quarter of the events of a step."""
    assert _micro_batches(training.graph) == 1
    assert _micro_batches(traced().graph) == 1
    assert _micro_batches(traced(mode="train", accumulate=4).graph) == 4
    blocks = blocks_of(training)
    events = blocks.events(3)

    def outlived_by(passes: int) -> float:
        """Events from the end of a tensor to that of the object behind it, in the mean of many throws."""
        found: list[int] = []
        for throw in range(20):
            event, size = _with_objects(blocks, events, 1.0, throw, passes)
            for at in np.flatnonzero((event > 0) & (size[np.abs(event) - 1] == SMALL)):
                tensor, end = np.flatnonzero(event == -event[at - 1]), np.flatnonzero(event == -event[at])
                if event[at - 1] > 0 and (tensor > at).any() and (end > at).any():
                    found.append(int(end[end > at][0] - tensor[tensor > at][0]))
        return float(np.mean(found))

    assert 1 < outlived_by(12) < 0.5 * outlived_by(3)


@pytest.mark.parametrize("runtime", [CPU, GPU], ids=["cpu", "gpu"])
def test_columns_add_up(training: Lowered, runtime: Any) -> None:
    f = footprint(training, runtime)
    assert sum(f.at_peak.values()) == f.peak_live == f.live.max()
    rows = f.held_at_peak()
    assert sum(held for _, held, _ in rows) == f.peak_live
    assert sum(share for *_, share in rows) == pytest.approx(1.0)
    assert [held for _, held, _ in rows] == sorted((held for _, held, _ in rows), reverse=True)
    assert sum(f.resident.values()) == f.peak_rss
    assert sum(h.bytes for h in f.holders) <= f.peak_live
    assert all(h.bytes >= 0 for h in f.holders)


@pytest.mark.parametrize("runtime", [CPU, GPU], ids=["cpu", "gpu"])
def test_reserved_is_at_least_live(training: Lowered, runtime: Any) -> None:
    f = footprint(training, runtime)
    low, high = f.reserved_range
    assert f.peak_live <= low <= f.peak_reserved <= high
    assert f.peak_rss >= f.resident["runtime"] + f.peak_live
    assert 0 < f.shared <= f.resident["runtime"]


def test_first_step_is_without_what_the_update_has_not_made() -> None:
    """AdamW: state is twice the parameters, so a peak before the update is that much lower in the first step."""
    steady, sgd = footprint(traced(mode="train", optimizer="adamw"), CPU), footprint(traced(mode="train"), CPU)
    parameters = steady.at_peak["parameters"]
    assert steady.at_peak["optimizer_state"] >= 2 * parameters
    assert steady.first_peak_live == sgd.peak_live
    assert sgd.first_peak_live == sgd.peak_live


def test_loading_counts_where_it_is_more_than_the_step() -> None:
    step = traced(batch=1)
    built, read = footprint(step, CPU), footprint(step, CPU, weight_copies=1e6)
    assert built.resident["loading"] == 0
    assert read.resident["loading"] > 0
    assert read.peak_rss > built.peak_rss


def test_a_tied_head_is_made_twice() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50_000, 64)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.embedding(ids) @ self.embedding.weight.T

    f = footprint(lower(capture(Tied(), torch.zeros(1, 1, dtype=torch.long))), CPU)
    table = 50_000 * 64 * 4
    assert f.resident["allocator"] + f.resident["loading"] == pytest.approx(2 * table, rel=0.01)


def test_kept_gradients_are_made_in_the_first_step() -> None:
    f = footprint(traced(batch=1, mode="train", keep_gradients=True), CPU)
    assert f.first_peak_live < f.peak_live


def test_profile_says_what_the_runtime_needs() -> None:
    step, device = traced(batch=1), load_device("raspberry-pi-4b")
    own = next(r for r in device.runtime.values() if r.rss_bytes is not None)
    assert runtime_bytes(step.graph, own) == own.rss_bytes
    fallback = runtime_bytes(step.graph, CPU)
    assert fallback.kind == "guess"
    assert "torch 2.13" in fallback.source


@pytest.mark.parametrize("rules", [MALLOC, PINNED_MALLOC], ids=["default", "pinned"])
def test_storages_that_live_together_are_apart(training: Lowered, rules: Any) -> None:
    m = training.memory
    where = addresses(training, rules)
    assert where.shape == m.bytes.shape
    placed = (m.bytes > 0) & (m.birth < m.death)
    assert (where[placed] >= 0).all()
    assert (where[placed] % 64 == 0).all()
    for op in range(0, len(training.graph), 7):
        alive = np.flatnonzero(placed & (m.birth <= op) & (op < m.death))
        order = alive[np.argsort(where[alive])]
        assert (where[order][:-1] + m.bytes[order][:-1] <= where[order][1:]).all()


def test_workspaces_are_taken_apart_without_loss(training: Lowered) -> None:
    blocks = blocks_of(training)
    assert blocks.size[: blocks.storage].sum() == training.memory.workspace.sum()


def test_capacity_of_a_gpu_is_what_its_allocator_can_serve(training: Lowered) -> None:
    f = footprint(training, GPU)
    assert fits_in(training, GPU, f.peak_reserved)
    assert not fits_in(training, GPU, f.peak_live - 1)


def test_a_device_that_is_too_small_does_not_fit() -> None:
    graph = capture(net(), torch.randn(2, 3, 32, 32))
    device = load_device("raspberry-pi-4b")
    assert estimate(graph, device).fits
    graph.storage_bytes[0] += 1 << 40
    assert not estimate(graph, device).fits


def test_largest_batch_is_traced_on_both_sides() -> None:
    asked: list[int] = []

    def peak(batch: int) -> int:
        asked.append(batch)
        return footprint(traced(batch=batch, mode="train"), CPU).peak_live

    capacity = 50e6
    found = largest_that_fits(peak, capacity)
    assert peak(found.size) == found.peak_bytes <= capacity < peak(found.size + 1)
    assert abs(found.error) < 0.01
    assert found.bytes_each > 0
    assert len(asked) <= 8


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 10**5), st.integers(0, 10**4), st.integers(1, 10**8), st.integers(1, 5))
def test_largest_is_largest_though_the_peak_bends(fixed: int, each: int, step: int, capacity: int, first: int) -> None:
    """Peaks of real steps are affine with steps: copies into padded layouts, other algorithms."""

    def peak(size: int) -> int:
        return fixed + each * size + step * (size // 7)

    found = largest_that_fits(peak, capacity, (first, first + 3), limit=1000)
    want = max((k for k in range(1001) if k == 0 or peak(k) <= capacity), default=0)
    assert found.size == want


@pytest.mark.parametrize(
    ("sizes", "capacity", "message"),
    [((2, 1), 1e6, "increasing"), ((0, 1), 1e6, "positive"), ((1, 2), 0, "more than 0")],
)
def test_questions_that_make_no_sense(sizes: tuple[int, int], capacity: float, message: str) -> None:
    with pytest.raises(CostmodelError, match=message):
        largest_that_fits(lambda size: size, capacity, sizes)


def test_a_peak_that_ignores_the_size() -> None:
    with pytest.raises(CostmodelError, match="does not grow"):
        largest_that_fits(lambda size: 5, 100)


def test_a_peak_that_grows_only_beyond_what_loading_takes() -> None:
    """Up to size 40 the process held more while the model was loaded."""
    found = largest_that_fits(lambda size: max(4_000, 100 * size), 10_050)
    assert (found.size, found.peak_bytes, found.bound_by) == (100, 10_000, "memory")
    assert found.traced[101] == 10_100


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(100, 40_000))
def test_a_size_that_the_model_refuses_bounds_the_answer(most: int, capacity: int) -> None:
    def peak(size: int) -> int:
        if size > most:
            raise CaptureError(f"no position {size}")
        return 100 * size

    found = largest_that_fits(peak, capacity, limit=1000)
    assert found.size == min(most, capacity // 100)
    assert found.bound_by == ("model" if most <= capacity // 100 else "memory")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("storage_bytes", -5, "negative size"),
        ("storage_bytes", 1 << 60, "above 2\\^50"),
        ("storage_bytes", (1 << 50) - 1, "together"),
        ("storage_death", -7, "dies before"),
    ],
)
def test_traces_that_cannot_be(column: str, value: int, message: str) -> None:
    graph: OpGraph = capture(net(), torch.randn(1, 3, 32, 32))
    getattr(graph, column)[2] = value
    with pytest.raises(CostmodelError, match=message):
        footprint(lower(graph), CPU)


def test_a_step_that_never_frees() -> None:
    graph = capture(net(), torch.randn(1, 3, 32, 32), mode="train")
    footprint(lower(graph), CPU)
    graph.storage_death = [len(graph)] * len(graph.storage_death)
    with pytest.raises(CostmodelError, match="never frees"):
        footprint(lower(graph), CPU)


def test_a_few_results_that_stay_are_no_leak() -> None:
    graph = capture(nn.Sequential(nn.Linear(3, 3)), torch.randn(1, 3))
    graph.storage_death = [len(graph)] * len(graph.storage_death)
    assert footprint(lower(graph), CPU).peak_live >= sum(graph.storage_bytes)


def test_nothing_at_all() -> None:
    f = footprint(lower(OpGraph()), CPU)
    assert (f.peak_live, f.peak_op, f.holders) == (0, -1, ())
