"""Integer GEMMs against float64: exact sums, every epilogue, tails in every dimension, 16-bit rows, packing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from costmodel.errors import CostmodelError
from costmodel.kernels.gemm_int4 import gemm_int4, gemm_int4_add, gemm_int4_quantized, pack_int4, unpack_int4
from costmodel.kernels.gemm_int8 import gemm_int8, gemm_int8_add, gemm_int8_quantized, pack_int8
from costmodel.kernels.panels import split16, unpack_rows


def bytes_of(generator, *shape):
    return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)


def int8_case(rows, n, k, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, w = bytes_of(g, rows, k), bytes_of(g, n, k)
    panels, rowsum = pack_int8(w)
    scale = torch.zeros(len(rowsum))
    scale[:n] = torch.rand(n, generator=g) + 0.1
    return x, w.double() * scale[:n, None].double(), panels, rowsum, scale


def int4_case(rows, n, k, group, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, q = bytes_of(g, rows, k), torch.randint(0, 16, (n, k), generator=g, dtype=torch.uint8)
    panels = pack_int4(q)
    padded = panels.shape[0] * 64
    groups = torch.rand(panels.shape[0], k // group, 64, generator=g).half()
    scale = torch.rand(padded, generator=g)
    each = groups.transpose(1, 2).reshape(padded, -1)[:n].double().repeat_interleave(group, 1)
    return x, (q.double() - 8) * each * scale[:n, None].double(), panels, groups, scale


CASES = [("int8", 1, 80, 50), ("int8", 7, 100, 64), ("int8", 13, 64, 40), ("int8", 2, 1, 4), ("int8", 6, 129, 768)]
CASES += [("int4", 1, 80, 128), ("int4", 7, 100, 256), ("int4", 6, 64, 128), ("int4", 3, 1, 384)]


def case_of(kind, rows, n, k):
    if kind == "int8":
        return (*int8_case(rows, n, k), gemm_int8, gemm_int8_quantized, gemm_int8_add)
    return (*int4_case(rows, n, k, 128), gemm_int4, gemm_int4_quantized, gemm_int4_add)


@pytest.mark.parametrize(("kind", "rows", "n", "k"), CASES)
def test_every_epilogue_against_float64(kind, rows, n, k):
    x, w, panels, second, scale, plain, quantized, add = case_of(kind, rows, n, k)
    row_scale = torch.rand(rows) + 0.5
    want = (x.double() @ w.T) * row_scale[:, None].double()
    top = want.abs().max()
    got = plain(x, panels, second, scale, row_scale, n, False)
    assert (got - want).abs().max() < 2e-7 * top
    small = scale * float(100 / top)
    q = quantized(x, panels, second, small, row_scale, n, False)
    assert (q.double() - (want * float(100 / top)).round()).abs().max() <= 1  # ties of fp32
    clamped = quantized(x, panels, second, small * 100, row_scale, n, False)
    assert (clamped[want > 0.02 * top] == 127).all()
    assert (clamped[want < -0.02 * top] == -128).all()
    out = torch.randn(rows, n)
    before = out.clone()
    add(x, panels, second, scale, row_scale, n, False, out)
    assert (out - before.double() - want).abs().max() < 4e-7 * max(top, before.abs().max())


@pytest.mark.parametrize(("kind", "rows", "n", "k"), CASES)
def test_sixteen_bit_activations(kind, rows, n, k):
    _, w, panels, second, scale, plain, _, _ = case_of(kind, rows, n, k)
    x = torch.randn(rows, k, generator=torch.Generator().manual_seed(1))
    halves, row_scale = split16(x)
    rounded = (256.0 * halves[:, 0] + halves[:, 1]) * row_scale[:, None]
    assert ((rounded - x).abs() <= row_scale[:, None] * 0.501).all()
    got = plain(halves, panels, second, scale, row_scale, n, True)
    want = rounded.double() @ w.T
    assert (got - want).abs().max() < 1e-6 * want.abs().max()


def test_extreme_bytes_are_exact():
    x, w = torch.full((5, 1024), -128, dtype=torch.int8), torch.full((70, 1024), -128, dtype=torch.int8)
    panels, rowsum = pack_int8(w)
    got = gemm_int8(x, panels, rowsum, torch.ones(128), torch.ones(1), 70, False)
    assert (got == 1024 * 16384).all()


def test_strided_rows_and_one_row_scale():
    x, w, panels, rowsum, scale = int8_case(6, 70, 32)
    wide = torch.cat([x, x], 1).reshape(2, 3, 64)
    one = torch.tensor([0.25])
    got = gemm_int8(wide[..., 32:], panels, rowsum, scale, one, 70, False)
    torch.testing.assert_close(got.reshape(6, 70).double(), x.double() @ w.T * 0.25)


@given(n=st.integers(1, 130), k=st.integers(1, 70))
@settings(max_examples=25, deadline=None)
def test_packing_round_trips(n, k):
    g = torch.Generator().manual_seed(n * 100 + k)
    w, q = bytes_of(g, n, k), torch.randint(0, 16, (n, k), generator=g, dtype=torch.uint8)
    assert torch.equal(unpack_rows(pack_int8(w)[0], n, k), w)
    packed = pack_int4(q)
    assert torch.equal(unpack_int4(packed, n, k), q)
    assert packed.numel() == -(-n // 64) * 64 * (-(-k // 4) * 4) // 2


def test_rows_do_not_depend_on_their_number():
    x, _, panels, second, scale = int4_case(9, 64, 128, 64)
    whole = gemm_int4(x, panels, second, scale, torch.ones(1), 64, False)
    each = torch.cat([gemm_int4(r[None], panels, second, scale, torch.ones(1), 64, False) for r in x])
    assert torch.equal(whole, each)


@pytest.mark.parametrize("op", [gemm_int8, gemm_int8_quantized, gemm_int8_add])
def test_fake_shapes(op):
    x, _, panels, rowsum, scale = int8_case(6, 70, 32)
    extra = (torch.zeros(6, 70),) if op is gemm_int8_add else ()
    torch.library.opcheck(op.op, (x, panels, rowsum, scale, torch.ones(1), 70, False, *extra))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(t) for t in (x, panels, rowsum, scale, torch.ones(1))]
        out = op(*fakes, 70, False, *(mode.from_tensor(t) for t in extra))
    if out is not None:
        assert out.shape == (6, 70)


def test_what_does_not_fit_is_refused():
    x, _, panels, second, scale = int4_case(2, 64, 192, 64)
    with pytest.raises(CostmodelError, match="group must be a multiple of 64"):
        gemm_int4(x[:, :100].contiguous(), panels, second, scale, torch.ones(1), 64, False)
    x, _, panels, rowsum, scale = int8_case(2, 64, 32)
    with pytest.raises(CostmodelError, match="int8 rows"):
        gemm_int8(x.float(), panels, rowsum, scale, torch.ones(1), 64, False)
    with pytest.raises(CostmodelError, match="3 row scales for 2 rows"):
        gemm_int8(x, panels, rowsum, scale, torch.ones(3), 64, False)
