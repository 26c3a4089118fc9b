"""Gradients that meet are added in place, in the trace as in a real run."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from costmodel.capture import capture
from costmodel.core.memory import live_bytes
from costmodel.host import detect
from costmodel.lower import lower
from costmodel.measure.memory import measure_live_peak
from costmodel.models.step import make_step


class Fork(nn.Module):
    """One activation read by four branches, whose gradients meet: three additions."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(8, 8)

    def forward(self, x):
        y = self.trunk(x).tanh()
        return (y.sin() + y.cos() + y.exp() + y.sigmoid()).sum(1, keepdim=True)


class Doubled(torch.autograd.Function):
    """Its backward adds in Python: that sum is a new tensor in a real run as well."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return g.clone() + g


def additions(model: nn.Module, x: torch.Tensor) -> tuple[int, int, int, int]:
    """Additions of matrices in place and out of place in the backward: traced, traced, run, run."""
    graph = capture(model, x, mode="train")
    traced = [
        name
        for name, phase, inputs in zip(graph.op_name, graph.op_phase, graph.op_inputs)
        if phase == "backward" and graph.tensor_shape[inputs[0]] == tuple(x.shape)
    ]
    step = make_step(model, x, mode="train")
    loss = step.forward()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        step.backward(loss)
    run = [e.name for e in profiled.events() if e.input_shapes and e.input_shapes[0] == list(x.shape)]
    return (
        traced.count("aten::add_.Tensor"),
        traced.count("aten::add.Tensor"),
        run.count("aten::add_"),
        run.count("aten::add"),
    )


def test_meeting_gradients_are_added_in_place():
    assert additions(Fork(), torch.zeros(4, 8)) == (3, 0, 3, 0)


def test_additions_of_a_python_backward_stay_as_they_are():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Linear(8, 8)

        def forward(self, x):
            return Doubled.apply(self.trunk(x)).sum(1, keepdim=True)

    assert additions(Net(), torch.zeros(4, 8)) == (0, 1, 0, 1)


def test_the_changed_trace_checks_out():
    graph = capture(Fork(), torch.zeros(4, 8), mode="train").check()
    sums = [
        k for k, name in enumerate(graph.op_name) if name == "aten::add_.Tensor" and graph.op_phase[k] == "backward"
    ]
    assert len(sums) == 3
    for k in sums:
        assert graph.op_outputs[k] == graph.op_inputs[k][:1]


class Shared(nn.Module):
    """One layer three times: the gradients of its weight (a transpose) and bias (a reshaped sum) meet twice each."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        return self.layer(self.layer(self.layer(x)))


class Tied(nn.Module):
    """An embedding that is also the head: the gradient of the product is a view, that of the look-up is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 64)
        self.head = nn.Linear(64, 1000, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


class Sum(nn.Module):
    """y + y: the two gradients that meet are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        y = self.layer(x)
        return y + y


class Convolved(nn.Module):
    """One convolution three times: its gradients are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.layer(self.layer(self.layer(x).relu()).relu()).mean((2, 3))


INPUTS = {
    Shared: torch.zeros(8, 64),
    Tied: torch.zeros(4, 8, dtype=torch.long),
    Sum: torch.zeros(8, 64),
    Convolved: torch.zeros(4, 8, 16, 16),
}


@pytest.mark.parametrize("net", INPUTS, ids=lambda net: net.__name__)
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate": 2}, {"accumulate": 3, "keep_gradients": True}, {"accumulate": 2, "optimizer": "adamw"}],
    ids=lambda o: " ".join(map(str, o.values())) or "plain",
)
def test_the_engine_adds_what_the_trace_says_and_holds_its_peak(net, options):
    model, x = net(), INPUTS[net]
    graph = capture(model, x, mode="train", **options)
    names = [name.partition(".")[0] for name in graph.op_name]
    step = make_step(model, x, mode="train", **options)
    step.run()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step.run()
    run = [e.name for e in profiled.events()]
    for op in ("aten::add", "aten::add_", "aten::clone"):
        assert names.count(op) == run.count(op), op
    m = lower(graph, lanes=detect().lanes).memory
    peak = int(live_bytes(m.bytes, m.birth, m.death, m.workspace).max())
    assert peak == pytest.approx(measure_live_peak(step), rel=2e-4)
