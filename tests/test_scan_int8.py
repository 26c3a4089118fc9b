"""Quantized scan and convolution against float64 on the dequantized inputs; prefill equals steps bit for bit."""

from __future__ import annotations

import pytest
import torch

from costmodel.kernels.conv_int8 import conv_silu
from costmodel.kernels.scan_int8 import scan_quantized
from costmodel.kernels.selective_scan import decay_panels, from_panels, to_panels

from .naive import mamba as naive

B, L, D, N = 2, 45, 48, 16
SCALES = torch.tensor([0.02, 0.01, 0.01, 0.02])


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)

    def q(*shape):
        return torch.randint(-127, 128, shape, generator=g, dtype=torch.int8)

    sequences = [q(B, L, D), q(B, L, D), q(B, L, N), q(B, L, N), q(B, L, D)]
    u_scale = torch.rand(D, generator=g) * 0.02 + 1e-3
    a = -torch.rand(D, N, generator=g) * 4
    small = [u_scale, SCALES, decay_panels(a)[0], torch.randn(D, generator=g), torch.randn(D, generator=g) - 2]
    return sequences, small, a


def exact(sequences, small, a):
    u, delta, b, c, z = (t.double() for t in sequences)
    u_scale, _, _, skip, bias = (t.double() for t in small)
    s = SCALES.double()
    return naive.selective_scan(u * u_scale, delta * s[0], a.double(), b * s[1], c * s[2], skip, z * s[3], bias)


def run(sequences, small, state, state_scale, tokens=slice(None)):
    return scan_quantized(*(t[:, tokens] for t in sequences), *small, state, state_scale)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3)])
def test_scan_on_int8_inputs(dtype, tolerance):
    sequences, small, a = inputs()
    y, h = exact(sequences, small, a)
    state = torch.zeros(B, D // 16, N, 16, dtype=dtype)
    got = run(sequences, small, state, state)
    assert (got - y).abs().max() < 1e-6 * y.abs().max()
    assert (from_panels(state) - h).abs().max() < tolerance * h.abs().max()
    correlation = torch.corrcoef(torch.stack([got.double().flatten(), y.flatten()]))[0, 1]
    assert 1 - correlation**2 < 1e-3


def test_prefill_equals_steps_bit_for_bit():
    sequences, small, _ = inputs()
    whole, stepped = (torch.zeros(B, D // 16, N, 16) for _ in range(2))
    y = run(sequences, small, whole, whole)
    steps = [run(sequences, small, stepped, stepped, slice(t, t + 1)) for t in range(L)]
    assert torch.equal(torch.cat(steps, 1), y)
    assert torch.equal(whole, stepped)


def test_int8_state_is_rounded_once_in_prefill():
    sequences, small, a = inputs()
    _, h = exact(sequences, small, a)
    scale = (h.abs().amax(0) / 127).float()
    state = torch.zeros(B, D // 16, N, 16, dtype=torch.int8)
    run(sequences, small, state, to_panels(scale[None])[0])
    error = (from_panels(state).double() * scale - h).abs()
    assert (error <= scale * 0.501).all()


def test_error_of_an_int8_state_is_contracted_by_the_decay():
    """|E_t| <= |a|·|E_{t-1}| + s/2: every step adds half a unit and shrinks what was there."""
    sequences, small, a = inputs()
    probe, top = torch.zeros(B, D // 16, N, 16), torch.zeros(D, N)
    for t in range(L):
        run(sequences, small, probe, probe, slice(t, t + 1))
        top = torch.maximum(top, from_panels(probe).abs().amax(0))
    scale = top / 120  # no clamping, with room for the error itself
    panels = to_panels(scale[None])[0]
    rounded, exact_state = torch.zeros(B, D // 16, N, 16, dtype=torch.int8), torch.zeros(B, D // 16, N, 16)
    dt = torch.nn.functional.softplus(sequences[1] * SCALES[0] + small[4])
    before = torch.zeros(B, D, N)
    for t in range(L):
        run(sequences, small, rounded, panels, slice(t, t + 1))
        run(sequences, small, exact_state, panels, slice(t, t + 1))
        error = (from_panels(rounded) * scale - from_panels(exact_state)).abs()
        decay = torch.exp(dt[:, t, :, None] * a)
        assert (error <= decay * before + scale * 0.501 + 1e-6).all()
        before = error


def test_wide_inputs_are_the_fp32_scan():
    sequences, small, a = inputs()
    y, _ = exact(sequences, small, a)
    u, delta, b, c, z = (t.float() for t in sequences)
    wide = [u * small[0], delta * SCALES[0], b * SCALES[1], c * SCALES[2], z * SCALES[3]]
    state = torch.zeros(B, D // 16, N, 16)
    got = run(wide, [torch.ones(D), torch.ones(4), *small[2:]], state, state)
    assert (got - y).abs().max() < 1e-6 * y.abs().max()


@pytest.mark.parametrize("length", [1, 2, 9, 33, 70])
def test_convolution_and_its_state(length):
    g = torch.Generator().manual_seed(4)
    x, state = (torch.randint(-127, 128, (B, n, D), generator=g, dtype=torch.int8) for n in (length, 3))
    w = torch.randint(-127, 128, (4, D), generator=g, dtype=torch.int8)
    scale, bias, inverse = torch.rand(D) * 1e-3, torch.randn(D), torch.rand(D) * 10 + 5
    before = state.clone()
    weight = (w.double() * scale).T
    want = (naive.causal_conv1d(x.double(), weight, bias.double(), before.double()) * inverse).round().clamp(-128, 127)
    got = conv_silu(x, w, scale, bias, inverse, state)
    assert (got - want).abs().max() <= 1
    assert ((got - want) != 0).double().mean() < 1e-3
    assert torch.equal(state, torch.cat([before, x], 1)[:, -3:])
    stepped = before.clone()
    steps = [conv_silu(x[:, t : t + 1], w, scale, bias, inverse, stepped) for t in range(length)]
    assert torch.equal(torch.cat(steps, 1), got)


def test_wide_convolution_keeps_an_fp16_state():
    x, state = torch.randn(B, 5, D), torch.randn(B, 3, D).half()
    w = torch.randint(-127, 128, (4, D), dtype=torch.int8)
    scale, bias = torch.full((D,), 0.01), torch.randn(D)
    before = state.clone()
    got = conv_silu(x, w, scale, bias, scale, state)
    want = naive.causal_conv1d(x.double(), w.double().T * 0.01, bias.double(), before.double())
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(state, x[:, -3:].half())
