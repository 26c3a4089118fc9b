"""Gradients that meet are added in place, in the trace as in a real run."""

from __future__ import annotations

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from costmodel.capture import capture
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
