"""Quantized Mamba-2 scan against float64: steps, prefills that equal them bit for bit, and prefills in chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.costs.quantized import ssd_in_chunks
from costmodel.kernels.ssd_int8 import ssd_quantized

from .naive import mamba as naive

B, L, H, P, G, N = 2, 41, 4, 8, 2, 32


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)

    def q(*shape):
        return torch.randint(-127, 128, shape, generator=g, dtype=torch.int8)

    sequences = [q(B, L, H * P), q(B, L, H), q(B, L, G * N), q(B, L, G * N)]
    x_scale = torch.rand(H * P, generator=g) * 0.02 + 1e-3
    delta_scale, b_scale, c_scale = torch.tensor([0.02]), torch.tensor([0.01, 0.02]), torch.tensor([0.02, 0.005])
    a = -torch.rand(H, generator=g) * 4
    small = [x_scale, delta_scale, b_scale, c_scale, a * 1.4426950408889634]
    return sequences, [*small, torch.randn(H, generator=g), torch.randn(H, generator=g) - 2], a


def dequantized(sequences, small):
    x, delta, b, c = (t.double() for t in sequences)
    x_scale, delta_scale, b_scale, c_scale = (t.double() for t in small[:4])
    b, c = (t.unflatten(-1, (G, N)) * s[:, None] for t, s in ((b, b_scale), (c, c_scale)))
    return (x * x_scale).unflatten(-1, (H, P)), delta * delta_scale, b, c


def exact(sequences, small, a, limit):
    x, delta, b, c = dequantized(sequences, small)
    y, h = naive.ssd_scan(x, delta, a.double(), b, c, small[5].double(), small[6].double(), limit)
    return y.flatten(2), h


ROWS = torch.arange(H * P // 4, dtype=torch.int32) // 2
LIMIT = (0.01, 1.5)


def run(sequences, small, state, state_scale, tokens=slice(None)):
    return ssd_quantized(*(t[:, tokens] for t in sequences), *small, state, state_scale, ROWS, *LIMIT)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3)])
def test_scan_on_int8_inputs(dtype, tolerance):
    sequences, small, a = inputs()
    y, h = exact(sequences, small, a, LIMIT)
    state = torch.zeros(B, H, P, N, dtype=dtype)
    got = run(sequences, small, state, torch.ones(4, N))
    assert (got - y).abs().max() < 1e-6 * y.abs().max()
    assert (state - h).abs().max() < tolerance * h.abs().max()


def test_prefill_equals_steps_bit_for_bit():
    sequences, small, _ = inputs()
    whole, stepped, ones = torch.zeros(B, H, P, N), torch.zeros(B, H, P, N), torch.ones(4, N)
    y = run(sequences, small, whole, ones)
    steps = [run(sequences, small, stepped, ones, slice(t, t + 1)) for t in range(L)]
    assert torch.equal(torch.cat(steps, 1), y)
    assert torch.equal(whole, stepped)


def test_int8_state_steps_equal_a_per_element_reference():
    """The grouped step against dequantize, update, round, clamp in float64, element by element."""
    sequences, small, a = inputs()
    x, delta, b, c = dequantized(sequences, small)
    scale = torch.rand(4, N) * 0.02 + 0.01
    channels = ROWS.repeat_interleave(4)
    unit = scale[channels.long()].reshape(H, P, N).double()
    state = torch.randint(-100, 100, (B, H, P, N), dtype=torch.int8)
    dt = torch.nn.functional.softplus(delta + small[6]).clamp(*LIMIT)
    for t in range(6):
        before = state.double() * unit
        drive = (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t].repeat_interleave(H // G, 1)[:, :, None]
        h = torch.exp(dt[:, t] * a.double())[..., None, None] * before + drive
        want = (h * c[:, t].repeat_interleave(H // G, 1)[:, :, None]).sum(-1) + small[5].double()[:, None] * x[:, t]
        got = run(sequences, small, state, scale, slice(t, t + 1))
        torch.testing.assert_close(got[:, 0].double(), want.flatten(1), rtol=1e-5, atol=1e-5)
        rounded = (h / unit).round().clamp(-128, 127)
        assert (state - rounded).abs().max() <= 1
        assert (state != rounded).double().mean() < 1e-3


def test_int8_state_is_rounded_once_in_prefill():
    sequences, small, a = inputs()
    _, h = exact(sequences, small, a, LIMIT)
    tops = h.abs().amax(0).reshape(4, P, N).amax(1)  # a head is two rows of four channels, ROWS pairs them
    scale = (tops / 127).float()
    state = torch.zeros(B, H, P, N, dtype=torch.int8)
    run(sequences, small, state, scale)
    unit = scale[ROWS.repeat_interleave(4).long()].reshape(H, P, N)
    assert ((state * unit - h).abs() <= unit * 0.501).all()


def test_wide_inputs():
    sequences, small, a = inputs()
    y, _ = exact(sequences, small, a, LIMIT)
    x, delta, b, c = (t.float().flatten(2) for t in dequantized(sequences, small))
    ones = [torch.ones(H * P), torch.ones(1), torch.ones(G), torch.ones(G)]
    state = torch.zeros(B, H, P, N)
    got = run([x, delta, b, c], [*ones, *small[4:]], state, torch.ones(4, N))
    assert (got - y).abs().max() < 2e-6 * y.abs().max()


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 2), length=st.integers(16, 150), groups=st.integers(1, 2), per_group=st.integers(1, 3),
    p=st.sampled_from([16, 48, 64]), states=st.sampled_from([32, 64, 128]), decay=st.sampled_from([0.01, 1.0, 100.0]),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_chunks_equal_the_recurrence(batch, length, groups, per_group, p, states, decay, seed):
    """In chunks, from a state that is not zero, row strides that are not dense: within the rounding to 16 bits."""
    assert ssd_in_chunks(length, p, states, int8=True, rounded=True)
    g, heads = torch.Generator().manual_seed(seed), groups * per_group
    width, bc = heads * p, groups * states

    def q(*shape):
        return torch.randint(-127, 128, shape, generator=g, dtype=torch.int8)

    x, b, c = q(batch, length, width + 2 * bc).split([width, bc, bc], -1)
    sequences = [x, q(batch, length, heads + 3)[..., 3:], b, c]
    x_scale, bc_scales = torch.rand(width, generator=g) * 0.02 + 1e-3, torch.rand(2, groups, generator=g) * 0.02 + 0.005
    a = -torch.rand(heads, generator=g) * decay
    small = [x_scale, torch.tensor([0.02]), *bc_scales, a * 1.4426950408889634]
    small += [torch.randn(heads, generator=g), torch.randn(heads, generator=g) - 2]
    start = torch.randn(batch, heads, p, states, generator=g).half()
    rows = torch.zeros(width // 4, dtype=torch.int32)
    state = start.clone()
    got = ssd_quantized(*sequences, *small, state, torch.ones(1, states), rows, *LIMIT)
    ends = start.float()  # a state in fp32 runs the recurrence
    want = ssd_quantized(*sequences, *small, ends, torch.ones(1, states), rows, *LIMIT)
    assert (got - want).abs().max() < 2e-4 * want.abs().max()
    assert (got - want).norm() < 1e-4 * want.norm()
    assert (state - ends).abs().max() < 6e-4 * ends.abs().max()


def test_chunks_with_a_rounded_state_and_nothing_in():
    """All inputs zero: y is 0, and an int8 state decays by what its scale can tell."""
    x, delta, bc = (torch.zeros(1, 70, n, dtype=torch.int8) for n in (64, 1, 32))
    small = [torch.ones(64), torch.ones(1), torch.ones(1), torch.ones(1), torch.tensor([-0.01]), torch.ones(1)]
    state = torch.full((1, 1, 64, 32), 100, dtype=torch.int8)
    y = ssd_quantized(
        x, delta, bc, bc, *small, torch.zeros(1), state, torch.ones(1, 32), torch.zeros(16, dtype=torch.int32), *LIMIT
    )
    assert not y.any()
    dt = torch.nn.functional.softplus(torch.zeros(1))
    assert (state == torch.round(100 * torch.exp2(-0.01 * dt * 70))).all()
