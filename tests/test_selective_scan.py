"""The fp32 scans and the convolution, forward and backward, against the recurrences token by token in float64."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from costmodel.errors import CostmodelError
from costmodel.kernels.causal_conv1d import causal_conv1d
from costmodel.kernels.selective_scan import from_panels, selective_scan, to_panels
from costmodel.kernels.ssd_scan import ssd_scan

from .naive import mamba as naive


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def scan_inputs(batch, length, width, states, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = -torch.rand(width, states, generator=g, dtype=torch.float64) * 3
    rows = normal(g, batch, length, width), normal(g, batch, length, width) - 1
    bc = normal(g, batch, length, states), normal(g, batch, length, states)
    return [*rows, a, *bc, normal(g, width), normal(g, batch, length, width), normal(g, width)]


def ssd_inputs(batch, length, heads, width, groups, states, seed=0):
    g = torch.Generator().manual_seed(seed)
    a = -torch.rand(heads, generator=g, dtype=torch.float64) * 3
    bc = [normal(g, batch, length, groups, states) for _ in range(2)]
    x, delta = normal(g, batch, length, heads, width), normal(g, batch, length, heads) - 1
    return [x, delta, a, *bc, normal(g, heads), normal(g, heads)]


def gradients(function, inputs, outputs_gradients):
    outputs = function(*inputs)
    return outputs, torch.autograd.grad(outputs, inputs, outputs_gradients)


def assert_close(got, want, tolerance=2e-6):
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        error = (a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)
        assert error < tolerance, (i, error)


def both(fused, reference, inputs, grads):
    """Outputs and gradients of the kernel in fp32 and of the twin in fp64."""
    exact = gradients(reference, [t.clone().requires_grad_() for t in inputs], grads)
    single = gradients(fused, [t.float().requires_grad_() for t in inputs], [g.float() for g in grads])
    for got, want in zip(single, exact):
        assert_close(got, want)


@pytest.mark.parametrize("length", [1, 7, 32, 33, 70])
@pytest.mark.parametrize(("batch", "width", "states"), [(1, 16, 16), (2, 48, 4)])
def test_selective_scan_matches_the_recurrence(batch, length, width, states):
    inputs = [*scan_inputs(batch, length, width, states), torch.randn(batch, width, states, dtype=torch.float64)]
    grads = [torch.randn(batch, length, width, dtype=torch.float64), torch.randn_like(inputs[-1])]

    def fused(*tensors):
        y, h = selective_scan(*tensors[:-1], to_panels(tensors[-1]))
        return y, from_panels(h)

    both(fused, naive.selective_scan, inputs, grads)


@pytest.mark.parametrize("length", [1, 5, 32, 45])
@pytest.mark.parametrize(("heads", "width", "groups", "states"), [(4, 8, 2, 16), (3, 4, 1, 64)])
def test_ssd_scan_matches_the_recurrence(length, heads, width, groups, states):
    inputs = ssd_inputs(2, length, heads, width, groups, states)
    inputs.append(torch.randn(2, heads, width, states, dtype=torch.float64))
    grads = [torch.randn(2, length, heads, width, dtype=torch.float64), torch.randn_like(inputs[-1])]

    def reference(*tensors):
        return naive.ssd_scan(*tensors[:-1], h=tensors[-1])

    both(ssd_scan, reference, inputs, grads)


def test_ssd_step_limit_clamps_values_and_gradients():
    inputs = ssd_inputs(1, 12, 2, 4, 1, 16)
    grads = [torch.randn(1, 12, 2, 4, dtype=torch.float64)]
    limit = (0.2, 0.5)
    both(
        lambda *t: [ssd_scan(*t, None, limit)[0]],
        lambda *t: [naive.ssd_scan(*t, limit)[0]],
        inputs,
        grads,
    )


@pytest.mark.parametrize("taps", [2, 4])
def test_causal_conv_matches_torch_with_a_state(taps):
    g = torch.Generator().manual_seed(3)
    inputs = [normal(g, 2, 9, 32), normal(g, 32, taps), normal(g, 32), normal(g, 2, taps - 1, 32)]
    grads = [normal(g, 2, 9, 32)]
    both(lambda *t: [causal_conv1d(*t)], lambda *t: [naive.causal_conv1d(*t)], inputs, grads)


def test_slices_of_a_projection_are_read_in_place():
    inputs = [t.float() for t in scan_inputs(2, 9, 32, 16)]
    wide = torch.cat([inputs[0], inputs[6]], -1)
    narrow = torch.cat([inputs[3], inputs[4]], -1)
    strided = [*inputs]
    strided[0], strided[6] = wide.chunk(2, -1)
    strided[3], strided[4] = narrow.chunk(2, -1)
    assert torch.equal(selective_scan(*inputs)[0], selective_scan(*strided)[0])


def test_two_halves_equal_the_whole_bit_for_bit():
    inputs = [t.float() for t in scan_inputs(1, 50, 32, 16)]
    whole, state = selective_scan(*inputs)
    sequence = {0, 1, 3, 4, 6}
    head = [t[:, :17] if i in sequence else t for i, t in enumerate(inputs)]
    tail = [t[:, 17:] if i in sequence else t for i, t in enumerate(inputs)]
    first, middle = selective_scan(*head)
    second, last = selective_scan(*tail, middle)
    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(last, state)


def test_without_gradients_nothing_is_saved():
    inputs = [t.float() for t in scan_inputs(1, 40, 16, 16)]
    saved = torch.ops.costmodel.selective_scan(*inputs, None, False)[2]
    assert saved.numel() == 0


@pytest.mark.parametrize("name", ["selective_scan", "ssd_scan"])
def test_one_op_with_exact_fake_shapes(name):
    if name == "selective_scan":
        inputs, extra = [t.float() for t in scan_inputs(2, 40, 32, 16)], (None, True)
    else:
        inputs, extra = [t.float() for t in ssd_inputs(2, 40, 4, 8, 2, 16)], (None, 0.0, 1.0, True)
    op = getattr(torch.ops.costmodel, name).default
    real = op(*inputs, *extra)
    with FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(t) for t in inputs), *extra)
    assert [(t.shape, t.stride(), t.dtype) for t in fake] == [(t.shape, t.stride(), t.dtype) for t in real]
    trained = [t.requires_grad_() for t in inputs]
    torch.library.opcheck(op, (*trained, *extra), atol=1e-4, rtol=1e-4)


def test_shapes_that_do_not_fit_are_refused():
    inputs = [t.float() for t in scan_inputs(1, 4, 24, 16)]
    with pytest.raises(CostmodelError, match="multiple of 16"):
        selective_scan(*inputs)
    inputs = [t.float() for t in ssd_inputs(1, 4, 3, 6, 1, 16)]
    with pytest.raises(CostmodelError, match="P a multiple of 4"):
        ssd_scan(*inputs)
