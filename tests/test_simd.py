"""The emitter against numpy: every function over its range, every element type, tails, masks."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit, types
from numba.extending import intrinsic

from costmodel.errors import CostmodelError
from costmodel.kernels import dot, simd
from costmodel.kernels.simd import Simd

NEEDS_VNNI = pytest.mark.skipif(dot.dot_instruction() != "vnni", reason="needs AVX-512 VNNI")


@intrinsic
def _functions(typingctx, x, out):
    """out[0:7, 0:16] = exp2, exp, sigmoid, silu, softplus, rint, sqrt|x| of x[0:16]."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        v = s.load(args[0], "f32")
        results = (s.exp2(v), s.exp(v), s.sigmoid(v), s.silu(v), s.softplus(v), s.rint(v), s.sqrt(s.abs(v)))
        for row, result in enumerate(results):
            s.store(args[1], result, 16 * row)
        return context.get_dummy_value()

    return types.void(x, out), codegen


@njit(cache=True)
def functions(x, out):
    for i in range(x.shape[0]):
        _functions(x[i].ctypes.data, out[i].ctypes.data)


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


REFERENCES = [np.exp2, np.exp, lambda x: 1 / (1 + np.exp(-x)), lambda x: x / (1 + np.exp(-x)), _softplus]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0])
def test_transcendentals_match_float64(scale):
    x = (np.random.default_rng(0).standard_normal((256, 16)) * scale).astype(np.float32)
    x[0, :4] = [0.0, -0.0, 1.0, -1.0]
    out = np.empty((256, 7, 16), np.float32)
    functions(x, out)
    exact = x.astype(np.float64)
    for row, f in enumerate(REFERENCES):
        want = f(exact)
        keep = np.abs(want) > 1e-36
        error = np.abs(out[:, row][keep] / want[keep] - 1)
        assert error.max() < (3e-7 if row == 0 else 6e-7 * (1 + scale)), row
    assert np.array_equal(out[:, 5], np.rint(x))
    np.testing.assert_allclose(out[:, 6], np.sqrt(np.abs(x)), rtol=3e-7)


def test_extremes_saturate_without_nan():
    x = np.zeros((1, 16), np.float32)
    x[0, :4] = [-1e30, 1e30, -88.0, 88.0]
    out = np.empty((1, 7, 16), np.float32)
    functions(x, out)
    assert np.isfinite(out[0, :5]).all()
    assert out[0, 0, 0] == 2.0**-126
    assert out[0, 2, 0] < 1e-37
    assert out[0, 2, 1] == 1.0
    assert out[0, 4, 1] == np.float32(1e30)
    assert out[0, 0, 4] == 1.0  # 2^0 is exact


@intrinsic(prefer_literal=True)
def _convert(typingctx, source, out, kind):
    element = kind.literal_value

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        s.store(args[1], s.load_f32(args[0], element))
        return context.get_dummy_value()

    return types.void(source, out, kind), codegen


@njit
def convert_all(i8, u8, i16, i32, f16, out):
    _convert(i8, out, "i8")
    _convert(u8, out + 64, "u8")
    _convert(i16, out + 128, "i16")
    _convert(i32, out + 192, "i32")
    _convert(f16, out + 256, "f16")
    _convert(i16, out + 320, "bf16")


def test_widening_loads():
    rng = np.random.default_rng(1)
    i8, u8 = rng.integers(-128, 128, 16).astype(np.int8), rng.integers(0, 256, 16).astype(np.uint8)
    i16, i32 = rng.integers(-(2**15), 2**15, 16).astype(np.int16), rng.integers(-(2**20), 2**20, 16, np.int32)
    i16 &= ~np.int16(0x4000)  # as bf16: no infinities
    f16 = rng.standard_normal(16).astype(np.float16)
    out = np.empty((6, 16), np.float32)
    convert_all(*(a.ctypes.data for a in (i8, u8, i16, i32, f16, out)))
    bf16 = (i16.astype(np.uint16).astype(np.uint32) << 16).view(np.float32)
    for got, want in zip(out, (i8, u8, i16, i32, f16, bf16)):
        np.testing.assert_array_equal(got, want.astype(np.float32))


@intrinsic
def _quantise_tail(typingctx, x, out, n, bits):
    """int8 of x for the first n lanes only; the mask x >= 0 as bits; the bits back to a select."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        first = s.first_lanes(args[2])
        v = s.load_masked(args[0], "f32", first, fill=0)
        s.store_masked(args[1], s.to_i8(v), first)
        positive = v.compare(">=", 0.0)
        word = positive.bits()
        builder.store(word, s.pointer(args[3], "i16"))
        again = s.mask_from_bits(s.scalar(args[3], "i16"))
        s.store(args[1], again.where(1.0, s.splat(-1.0)), 4)  # f32 index 4: bytes 16 to 80
        return context.get_dummy_value()

    return types.void(x, out, n, bits), codegen


@njit
def quantise_tail(x, out, n, bits):
    _quantise_tail(x, out, n, bits)


@pytest.mark.parametrize("n", [0, 1, 7, 16, 20])
def test_round_clamp_tail_and_bitmask(n):
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 127.4, 127.6, 300, -128.4, -128.6, -300, 3.2, -3.7, 0, -0.0, 9], "f4")
    out = np.full(80, 99, np.int8)
    bits = np.zeros(1, np.uint16)
    quantise_tail(x.ctypes.data, out.ctypes.data, n, bits.ctypes.data)
    k = min(n, 16)
    np.testing.assert_array_equal(out[:k], np.clip(np.rint(x[:k]), -128, 127).astype(np.int8))
    assert (out[k:16] == 99).all()
    loaded = np.where(np.arange(16) < n, x, 0)
    assert bits[0] == int(sum((v >= 0) << i for i, v in enumerate(loaded)))
    np.testing.assert_array_equal(out[16:].view("f4"), np.where(loaded >= 0, 1, -1))


@intrinsic
def _dot(typingctx, x, y, n):
    """Sum of x·y over n elements (a multiple of 16): a loop with a carried vector, then a horizontal sum."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        acc = s.cell(s.splat(0.0))
        with s.loop(0, args[2], 16) as i:
            acc.set(s.fma(s.load(args[0], "f32", i), s.load(args[1], "f32", i), acc.get()))
        return s.sum(acc.get())

    return types.float32(x, y, n), codegen


@njit
def inner(x, y, n):
    return _dot(x, y, n)


def test_loop_carries_registers():
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((2, 160)).astype("f4")
    assert inner(x.ctypes.data, y.ctypes.data, 160) == pytest.approx(float(x.astype("f8") @ y), abs=1e-4)


@intrinsic
def _dot_bytes(typingctx, u, w, out):
    def codegen(context, builder, signature, args):
        s = Simd(builder)
        acc = dot.dot_u8s8(
            s, s.splat(-7, element="i32"), s.load(args[0], "u8", lanes=64), s.load(args[1], "i8", lanes=64)
        )
        s.store(args[2], acc)
        return context.get_dummy_value()

    return types.void(u, w, out), codegen


@pytest.mark.parametrize("how", ["generic", pytest.param("vnni", marks=NEEDS_VNNI)])
def test_dot_product_of_bytes_is_exact_at_the_extremes(monkeypatch, how):
    monkeypatch.setattr(dot, "dot_instruction", lambda: how)

    @njit
    def run(u, w, out):
        _dot_bytes(u, w, out)

    rng = np.random.default_rng(3)
    cases = [(np.full(64, 255, np.uint8), np.full(64, -128, np.int8))]
    cases += [(rng.integers(0, 256, 64, np.uint8), rng.integers(-128, 128, 64, np.int8)) for _ in range(20)]
    for u, w in cases:
        out = np.empty(16, np.int32)
        run(u.ctypes.data, w.ctypes.data, out.ctypes.data)
        want = (u.astype(np.int64) * w.astype(np.int64)).reshape(16, 4).sum(1) - 7
        np.testing.assert_array_equal(out, want)


def test_stale_kernels_are_refused():
    simd.require(simd.VERSION)
    with pytest.raises(CostmodelError, match="require"):
        simd.require(simd.VERSION - 1)
