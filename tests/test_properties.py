"""Numbers that cannot be: whatever the step and the device, figures are finite, add up, and grow with what is asked.

Steps are drawn as chains of ops without torch (a light install runs them) and as small modules that are captured;
devices are all that ship, and shipped ones with any of their numbers made better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.core.malloc import MALLOC
from costmodel.device import Device, devices, load_device
from costmodel.estimate import Estimate, estimate
from costmodel.graph import GraphMeta, OpGraph

from .fuzz.fuzz import check_estimate

SHIPPED = sorted(name for name, path in devices().items() if path.parent.name == "hwprofiles" and "host" not in name)
LOOSE = 1 + 1e-9  # sums in another order
PAGE = 4096  # what is resident is counted in pages


# Steps without torch


@dataclass
class Builder:
    """Appends ops to a graph; every tensor has a storage of its own, views apart."""

    graph: OpGraph = field(default_factory=OpGraph)

    def tensor(self, *shape: int, role: str = "activation", dtype: str = "float32") -> int:
        g, stride, step = self.graph, [], 1
        for n in reversed(shape):
            stride.insert(0, step)
            step *= n
        g.storage_bytes.append(step * {"float32": 4, "int64": 8, "bool": 1}[dtype])
        g.storage_role.append(role)
        g.storage_birth.append(-1 if role in ("parameter", "buffer", "input") else len(g))
        g.storage_death.append(-2)  # to be set by `done`
        g.storage_name.append("")
        return self._number(len(g.storage_bytes) - 1, shape, tuple(stride), dtype)

    def view(self, of: int, *shape: int) -> int:
        stride, step = [], 1
        for n in reversed(shape):
            stride.insert(0, step)
            step *= n
        return self._number(self.graph.tensor_storage[of], shape, tuple(stride), self.graph.tensor_dtype[of])

    def _number(self, storage: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: str) -> int:
        g = self.graph
        g.tensor_storage.append(storage)
        g.tensor_offset.append(0)
        g.tensor_shape.append(shape)
        g.tensor_stride.append(stride)
        g.tensor_dtype.append(dtype)
        return len(g.tensor_storage) - 1

    def op(self, name: str, inputs: tuple[int, ...], *outputs: int, **attrs: Any) -> int:
        g = self.graph
        g.op_name.append(f"aten::{name}")
        g.op_phase.append("forward")
        g.op_module.append("")
        g.op_inputs.append(inputs)
        g.op_outputs.append(outputs)
        g.op_attrs.append(attrs)
        return outputs[0]

    def done(self, meta: GraphMeta) -> OpGraph:
        """Storages die after their last use, but for what the step is given and what it returns."""
        g, last = self.graph, {}
        for k in range(len(g)):
            for t in (*g.op_inputs[k], *g.op_outputs[k]):
                last[g.tensor_storage[t]] = k + 1
        stays = ("parameter", "buffer", "input")
        for s, role in enumerate(g.storage_role):
            g.storage_death[s] = len(g) if role in stays else last.get(s, g.storage_birth[s])
        g.meta = meta
        return g.check()


@dataclass(frozen=True)
class Net:
    """A chain of layers on (batch, width, side, side), repeated `depth` times, then a head on its mean."""

    layers: tuple[str, ...]
    batch: int = 1
    width: int = 8
    side: int = 8
    depth: int = 1

    def graph(self) -> OpGraph:
        b = Builder()
        n, c, s = self.batch, self.width, self.side
        x = b.tensor(n, c, s, s, role="input")
        for _ in range(self.depth):
            for layer in self.layers:
                x = getattr(self, f"_{layer}")(b, x)
        pooled = b.op("mean", (x,), b.tensor(n, c, 1, 1), dim=[2, 3], keepdim=True)
        flat = b.view(pooled, n, c)
        head = b.op("mm", (flat, b.tensor(c, 10, role="parameter")), b.tensor(n, 10))
        b.op("_softmax", (head,), b.tensor(n, 10), dim=1, half_to_float=False)
        return b.done(GraphMeta("drawn", "infer", batch=n, producer="tests/test_properties.py"))

    def _square(self, b: Builder) -> int:
        return b.tensor(self.batch, self.width, self.side, self.side)

    def _convolution(self, b: Builder, x: int, k: int, groups: int) -> int:
        weight = b.tensor(self.width, self.width // groups, k, k, role="parameter")
        window = {"stride": [1, 1], "padding": [k // 2] * 2, "dilation": [1, 1]}
        return b.op("convolution", (x, weight), self._square(b), **window, groups=groups, transposed=False)

    def _pointwise(self, b: Builder, x: int) -> int:
        return self._convolution(b, x, 1, 1)

    def _full(self, b: Builder, x: int) -> int:
        return self._convolution(b, x, 3, 1)

    def _depthwise(self, b: Builder, x: int) -> int:
        return self._convolution(b, x, 3, self.width)

    def _relu(self, b: Builder, x: int) -> int:
        return b.op("relu", (x,), self._square(b))

    def _gelu(self, b: Builder, x: int) -> int:
        return b.op("gelu", (x,), self._square(b))

    def _residual(self, b: Builder, x: int) -> int:
        return b.op("add", (x, b.op("relu", (x,), self._square(b))), self._square(b), alpha=1)

    def _pool(self, b: Builder, x: int) -> int:
        n, c, s = self.batch, self.width, self.side
        window = {"kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1]}
        indices = b.tensor(n, c, s, s, dtype="int64")
        return b.op("max_pool2d_with_indices", (x,), self._square(b), indices, **window)

    def _norm(self, b: Builder, x: int) -> int:
        n, c, s = self.batch, self.width, self.side
        affine = (b.tensor(s, role="parameter"), b.tensor(s, role="parameter"))
        statistics = (b.tensor(n, c, s, 1), b.tensor(n, c, s, 1))
        return b.op("native_layer_norm", (x, *affine), self._square(b), *statistics, normalized_shape=[s], eps=1e-5)

    def _attention(self, b: Builder, x: int) -> int:
        n, c, s = self.batch, self.width, self.side
        q = b.view(x, n * c, s, s)
        scores = b.op("bmm", (q, q), b.tensor(n * c, s, s))
        weights = b.op("_softmax", (scores,), b.tensor(n * c, s, s), dim=-1, half_to_float=False)
        return b.view(b.op("bmm", (weights, q), b.tensor(n * c, s, s)), n, c, s, s)


LAYERS = ("pointwise", "full", "depthwise", "relu", "gelu", "residual", "pool", "norm", "attention")
nets = st.builds(
    Net,
    st.lists(st.sampled_from(LAYERS), min_size=1, max_size=5).map(tuple),
    batch=st.integers(1, 16),
    width=st.sampled_from([1, 3, 8, 16, 24, 64, 100]),
    side=st.integers(1, 33),
    depth=st.integers(1, 3),
)
EVERY_LAYER = Net(LAYERS)


def test_every_layer_that_is_drawn_has_a_price() -> None:
    e = estimate(EVERY_LAYER.graph(), load_device("raspberry-pi-4b"), strict=True)
    assert e.coverage.unpriced == {}
    assert len({c.kind for c in e.lowered.costs}) > 8


@cache
def device_of(name: str) -> Device:
    return load_device(name)


@cache
def places_of(*engines: str) -> list[tuple[str, str]]:
    """Every shipped device and runtime with one of these engines."""
    return [(d, name) for d in SHIPPED for name, r in device_of(d).runtime.items() if r.engine in engines]


def places() -> list[tuple[str, str]]:
    return places_of("cpu", "gpu")


def anywhere(draw: st.DrawFn) -> tuple[Device, str, int]:
    """A shipped device, one of its runtimes, and a thread count that it has."""
    name, runtime = draw(st.sampled_from(places()))
    device = device_of(name)
    return device, runtime, draw(st.integers(1, device.cores))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_figures_can_be_and_add_up(data: st.DataObject) -> None:
    net = data.draw(nets)
    device, runtime, threads = anywhere(data.draw)
    e = estimate(net.graph(), device, runtime=runtime, threads=threads)
    check_estimate(e)
    for column in (e.seconds, e.start, e.end, e.parts, e.lowered.op_bytes, e.lowered.table.flops):
        assert np.isfinite(column).all()
        assert (column >= 0).all()
    for rows in (e.by_op(), e.by_phase(), e.by_module()):
        assert sum(r.latency_s for r in rows) == pytest.approx(e.seconds.sum())
        assert sum(r.flops for r in rows) == e.flops
        assert sum(r.bytes for r in rows) == e.bytes_moved
    if device.runtime[runtime].engine == "cpu":
        assert e.latency_s.point == pytest.approx(e.seconds.sum())
    m = e.memory
    assert m.peak_live.point <= m.peak_reserved.point <= m.peak_rss.point
    assert m.peak_live.point == e.footprint.live.max()


def larger(net: Net, axis: str, by: int) -> Net:
    return replace(net, **{axis: getattr(net, axis) + by})


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_more_work_is_more_operations_and_bytes(data: st.DataObject) -> None:
    net, axis = data.draw(nets), data.draw(st.sampled_from(["batch", "width", "side", "depth"]))
    device, runtime, threads = anywhere(data.draw)
    small, large = (
        estimate(n.graph(), device, runtime=runtime, threads=threads)
        for n in (net, larger(net, axis, data.draw(st.integers(1, 40 if axis != "depth" else 2))))
    )
    assert small.flops < large.flops
    joined = bool(device.runtime[runtime].fuse)  # an op that joins its producer moves nothing
    assert small.bytes_moved < large.bytes_moved or (joined and small.bytes_moved == large.bytes_moved)
    assert small.memory.peak_live.point <= large.memory.peak_live.point


def same_branch(a: Estimate, b: Estimate) -> bool:
    """Whether every op of two steps runs the same algorithm."""
    return [c.kind for c in a.lowered.costs] == [c.kind for c in b.lowered.costs]


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_more_samples_take_longer_within_one_algorithm(data: st.DataObject) -> None:
    net, by = data.draw(nets), data.draw(st.integers(1, 200))
    device, runtime, threads = anywhere(data.draw)
    small, large = (
        estimate(n.graph(), device, runtime=runtime, threads=threads) for n in (net, larger(net, "batch", by))
    )
    if same_branch(small, large):
        assert small.latency_s.point <= large.latency_s.point * LOOSE


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_deeper_net_takes_longer(data: st.DataObject) -> None:
    net = data.draw(nets)
    device, runtime, threads = anywhere(data.draw)
    small, large = (
        estimate(n.graph(), device, runtime=runtime, threads=threads) for n in (net, larger(net, "depth", 1))
    )
    assert small.latency_s.point <= large.latency_s.point * LOOSE


def test_the_next_wave_is_not_a_gift() -> None:
    """One tile more than the SMs hold at once may not make a kernel faster."""
    graphs = [Net(("full",), batch, width=100, side=33).graph() for batch in range(1, 60, 2)]
    for name, runtime in places_of("gpu")[::3]:
        found = [estimate(g, device_of(name), runtime=runtime).latency_s.point for g in graphs]
        assert all(a <= b * LOOSE for a, b in pairwise(found)), (name, runtime)


# Devices made better

# Dotted places of numbers of which more is better, and of those of which less is.
MORE = (
    ".clock_hz",
    ".flops_per_cycle.",
    "bytes_per_s",
    ".flops_per_s.",
    ".l2_bytes",
    ".efficiency.",
    "].bytes",
)
LESS = (".overhead_s", ".issue_s", ".serial.", ".scale.", ".class_scale.")


def better(device: Device, factor: st.SearchStrategy[float], draw: Any) -> Device:
    """The same device with each of its numbers as good or better.

    More SMs at the same FLOP/s would be weaker SMs, harder to fill; so they come with what they compute.
    """
    document = device.model_dump(by_alias=True)
    if gpu := document.get("gpu"):
        more = draw(factor)
        for rate in (gpu["sms"], *gpu["flops_per_s"].values()):
            rate["value"] *= more
    for runtime in document["runtime"].values():
        runtime["fit"] = []  # constants fitted on the device as it is

    def walk(value: Any, place: str) -> None:
        if isinstance(value, dict) and "value" in value and "kind" in value:
            if any(m in place for m in MORE):
                value["value"] *= draw(factor)
            elif any(m in place for m in LESS):
                value["value"] /= draw(factor)
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, f"{place}.{key}")
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                walk(item, f"{place}[{i}]")

    walk(document, "")
    return Device.model_validate(document)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_better_device_is_never_slower(data: st.DataObject) -> None:
    net = data.draw(nets)
    device, runtime, threads = anywhere(data.draw)
    plain = better(device, st.just(1.0), data.draw)
    best = better(device, st.sampled_from([1.0, 1.0, 1.01, 2.0, 20.0]), data.draw)
    slow, fast = (estimate(net.graph(), d, runtime=runtime, threads=threads) for d in (plain, best))
    assert fast.latency_s.point <= slow.latency_s.point * LOOSE
    assert fast.baseline_latency_s <= slow.baseline_latency_s * LOOSE


# Steps of real modules


def small_models() -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    nn = torch.nn
    return {
        "mlp": lambda b, w: (nn.Sequential(nn.Linear(w, w), nn.GELU(), nn.Linear(w, 4)), torch.zeros(b, w)),
        "conv": lambda b, w: (
            nn.Sequential(
                nn.Conv2d(3, w, 3, 2), nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, w, 3, groups=w), nn.Conv2d(w, w, 1),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(w, 4),
            ),
            torch.zeros(b, 3, 20, 20),
        ),
        "transformer": lambda b, w: (
            nn.TransformerEncoderLayer(w, 2, 2 * w, batch_first=True, dropout=0.0), torch.zeros(b, 12, w)
        ),
        "lstm": lambda b, w: (nn.LSTM(w, w, batch_first=True), torch.zeros(b, 7, w)),
    }  # fmt: skip


@cache
def captured(name: str, mode: str, batch: int, width: int, optimizer: str = "sgd") -> OpGraph:
    models = small_models()  # skips a light install, before anything imports torch
    from costmodel.capture import capture

    return capture(*models[name](batch, width), mode=mode, optimizer=optimizer, name=name)


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer", "lstm"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_is_never_cheaper_than_inference(name: str, optimizer: str) -> None:
    infer, train = captured(name, "infer", 4, 16), captured(name, "train", 4, 16, optimizer)
    for place, runtime in places():
        device = device_of(place)
        a, b = (estimate(g, device, runtime=runtime) for g in (infer, train))
        assert a.latency_s.point < b.latency_s.point, (place, runtime)
        assert a.flops < b.flops
        assert a.bytes_moved < b.bytes_moved
        for of, step in (("peak_live", 0), ("peak_reserved", MALLOC.top_pad), ("peak_rss", MALLOC.top_pad)):
            # a heap grows by so much at a time, so that of nets as small as these says nothing finer
            assert getattr(a.memory, of).point <= getattr(b.memory, of).point + step, (place, runtime, of)


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer", "lstm"])
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_captured_steps_grow_with_batch_and_width(name: str, mode: str) -> None:
    rows = [(1, 8), (2, 8), (2, 16), (5, 16), (5, 32), (16, 32)]
    for place in ("raspberry-pi-4b", "i9-10940x", "jetson-nano", "a100"):
        found = [estimate(captured(name, mode, *row), device_of(place)) for row in rows]
        for less, more in pairwise(found):
            assert less.flops < more.flops, (place, rows)
            assert less.bytes_moved < more.bytes_moved
            assert less.memory.peak_live.point < more.memory.peak_live.point
            assert less.memory.peak_rss.point <= more.memory.peak_rss.point + PAGE
            check_estimate(more)
            assert math.isfinite(more.baseline_latency_s)
