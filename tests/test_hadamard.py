"""Rotation, quantization and norms of rows against float64 matrices."""

from __future__ import annotations

import pytest
import torch

from costmodel.errors import CostmodelError
from costmodel.kernels.hadamard import hadamard_matrix, hadamard_order, rotate_quantize, rotate_split
from costmodel.kernels.linear_f16 import embed_rows, linear_f16, pack_f16
from costmodel.kernels.rms_norm import gated_rms_norm, rms_norm_quantize, rms_norm_split

SIZES = [16, 32, 64, 128, 192, 256, 320, 768, 1536, 2560, 5120]


@pytest.mark.parametrize("n", SIZES)
def test_rotation_is_orthogonal_and_the_kernel_applies_it(n):
    h = hadamard_matrix(n)
    assert torch.equal(h @ h.T, n * torch.eye(n, dtype=torch.float64))
    y = torch.randn(3, n, generator=torch.Generator().manual_seed(n))
    before, want = y.clone(), y.double() @ h.T
    scale = (want.abs().max() / 127).float().reshape(1)
    q = rotate_quantize(y, scale, True)
    assert torch.equal(y, before)
    assert (q - (want / scale).round().clamp(-127, 127)).abs().max() <= 1
    halves, row = rotate_split(y, True)
    got = (256.0 * halves[:, 0].double() + halves[:, 1]) * row[:, None].double()
    assert (got - want).abs().max() < 2e-5 * want.abs().max()


def test_without_rotation_it_is_a_quantizer_that_clamps():
    y = torch.tensor([0.5, 1.5, -0.5, 300.0, -300.0, 126.7] + [0.0] * 10)[None]
    assert rotate_quantize(y, torch.ones(1), False)[0, :6].tolist() == [0, 2, 0, 127, -128, 127]


@pytest.mark.parametrize("n", [8, 24, 96, 100, 1000])
def test_sizes_without_a_hadamard_are_named(n):
    with pytest.raises(CostmodelError, match=f"no Hadamard matrix of size {n}"):
        hadamard_order(n)


def norm(x, weight, groups=1):
    parts = x.double().unflatten(-1, (groups, -1))
    parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + 1e-5)
    return parts.flatten(-2) * weight


def test_norms_that_quantize():
    x, weight, scale = torch.randn(2, 3, 96) * 3, torch.rand(96), torch.tensor([0.02])
    want = norm(x, weight)
    q = rms_norm_quantize(x, weight, scale, 1e-5)
    assert (q - (want / scale).round().clamp(-127, 127)).abs().max() <= 1
    halves, row = rms_norm_split(x, weight, 1e-5)
    got = (256.0 * halves[..., 0, :].double() + halves[..., 1, :]) * row[..., None].double()
    assert (got - want).abs().max() < 2e-5 * want.abs().max()


@pytest.mark.parametrize("quantized", [True, False])
def test_gated_norm(quantized):
    y, weight = torch.randn(2, 3, 64), torch.rand(64)
    wide = torch.randint(-127, 128, (2, 3, 160), dtype=torch.int8) if quantized else torch.randn(2, 3, 160)
    z, scale = wide[..., 32:96], torch.tensor([0.03 if quantized else 1.0])
    gate = torch.nn.functional.silu(z.double() * scale)
    got = gated_rms_norm(y, z, scale, weight, 1e-5, 2)
    torch.testing.assert_close(got.double(), norm(y * gate, weight, 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "n"), [(1, 67), (3, 8), (20, 5000)])
def test_linear_f16(rows, n):
    x, w = torch.randn(rows, 48), torch.randn(n, 48).half()
    got = linear_f16(x, pack_f16(w), n)
    torch.testing.assert_close(got.double(), x.double() @ w.double().T, rtol=1e-5, atol=1e-5)


def test_embeddings_of_16_8_and_4_bits():
    ids, scale = torch.tensor([[0, 3], [2, 2]]), torch.rand(4)
    table = torch.randn(4, 32).half()
    assert torch.equal(embed_rows(ids, pack_f16(table), scale), table.float()[ids])
    table = torch.randint(-128, 128, (4, 32), dtype=torch.int8)
    assert torch.equal(embed_rows(ids, table, scale), (table.float() * scale[:, None])[ids])
    q = torch.randint(0, 16, (4, 32), dtype=torch.uint8)
    packed = q[:, 0::2] | (q[:, 1::2] << 4)
    assert torch.equal(embed_rows(ids, packed, scale), ((q.float() - 8) * scale[:, None])[ids])
    with pytest.raises(CostmodelError, match="token ids 0 to 9"):
        embed_rows(torch.tensor([0, 9]), table, scale)
