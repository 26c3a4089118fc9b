# ruff: noqa: ARG001  # numba passes an intrinsic its context and signature
"""Norms and channel gates plane by plane in vector code: the backward of each, one pass where ATen takes two or three.

A plane is the h·w values of one image and channel, contiguous; what does not fill sixteen lanes is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from .simd import LANES, Simd, Vec, intrinsic, require

__all__ = [
    "gains",
    "get",
    "lanes_below",
    "norm_backward",
    "put",
    "read",
    "scale_backward",
    "scale_norm_planes",
    "write",
]

require(1)


def lanes_below(s: Simd, n: Any) -> Vec:
    """The mask of the lanes below n (0 to 16, int64): by comparing, because AVX2 has no masks but compared vectors."""
    steps = s.constant(range(LANES), "i32")
    return steps.compare("<", s.splat(s.builder.trunc(n, ir.IntType(32))))


def _plane(s: Simd, count: Any, body: Callable[[Any, Vec | None], None]) -> None:
    """Emit `body(index, lanes)` for each vector of a plane of `count` values; lanes is None where all are in it."""
    b = s.builder
    whole = b.and_(s.i64(count), s.i64(-LANES))
    with s.loop(0, whole, LANES) as i:
        body(i, None)
    with b.if_then(b.icmp_signed("<", whole, s.i64(count))):
        body(whole, lanes_below(s, b.sub(s.i64(count), whole)))


def read(s: Simd, address: Any, i: Any, lanes: Vec | None) -> Vec:
    return s.load(address, "f32", i) if lanes is None else s.load_masked(address, "f32", lanes, i)


def write(s: Simd, address: Any, i: Any, lanes: Vec | None, value: Vec) -> None:
    if lanes is None:
        s.store(address, value, i)
    else:
        s.store_masked(address, value, lanes, i)


@intrinsic
def get(typingctx: Any, address: Any) -> Any:
    """The fp32 number at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return Simd(builder).scalar(args[0], "f32")

    return types.float32(types.int64), codegen


@intrinsic
def put(typingctx: Any, address: Any, value: Any) -> Any:
    """Store a number (of its own type) at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], ir.PointerType()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


@njit(cache=True)
def gains(channels: int, weight: int, var: int, eps: float) -> np.ndarray:
    """γ/√(σ² + ε) of each channel, fp32, from addresses of fp32."""
    out = np.empty(channels, np.float32)
    for c in range(channels):
        out[c] = get(weight + 4 * c) / np.float32(np.sqrt(get(var + 4 * c) + np.float32(eps)))
    return out


@intrinsic
def _scale_plane(typingctx: Any, x: Any, y: Any, count: Any, gain: Any, sums: Any) -> Any:
    """y = gain·x over a plane; Σ x is added to the sixteen floats at `sums`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s = Simd(builder)
        x_, y_, count_, gain_, sums_ = args
        factor, total = s.splat(gain_), s.cell(s.load(sums_, "f32"))

        def vector(i: Any, lanes: Vec | None) -> None:
            value = read(s, x_, i, lanes)
            write(s, y_, i, lanes, value * factor)
            total.set(total.get() + value)

        _plane(s, count_, vector)
        s.store(sums_, total.get())
        return context.get_dummy_value()

    return types.void(x, y, types.int64, gain, types.int64), codegen


@njit(cache=True)
def scale_norm_planes(
    g: int, out: int, images: int, channels: int, count: int, weight: int, var: int, eps: float, sums: int
) -> None:
    """out = γ/σ·g, and Σ g of each channel to `sums`: addresses of (images, channels, count) and of (C,) fp32."""
    gain, lanes = gains(channels, weight, var, eps), np.zeros((channels, LANES), np.float32)
    running: Any = np.int64(lanes.ctypes.data)
    at: Any = np.int64(0)
    for _ in range(images):
        for c in range(channels):
            _scale_plane(g + at, out + at, count, gain[c], running + 4 * LANES * c)
            at += 4 * count
    for c in range(channels):
        put(sums + 4 * c, lanes[c].sum())


@intrinsic
def _product_plane(typingctx: Any, g: Any, x: Any, out: Any, count: Any, gain: Any) -> Any:
    """out = gain·g over a plane; returns Σ g·x."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s = Simd(builder)
        g_, x_, out_, count_, gain_ = args
        gains, total = s.splat(gain_), s.cell(s.splat(0.0))

        def vector(i: Any, lanes: Vec | None) -> None:
            value = read(s, g_, i, lanes)
            write(s, out_, i, lanes, value * gains)
            total.set(s.fma(value, read(s, x_, i, lanes), total.get()))

        _plane(s, count_, vector)
        return s.sum(total.get())

    return types.float32(g, x, out, types.int64, gain), codegen


@njit(cache=True)
def scale_backward(g: int, x: int, out: int, planes: int, count: int, gain: np.ndarray, sums: np.ndarray) -> None:
    """out = gain·g and sums = Σ g·x, both one a plane: gain and sums are (planes,) fp32."""
    for p in range(planes):
        at = 4 * p * count
        sums[p] = _product_plane(g + at, x + at, out + at, count, gain[p])


@intrinsic
def _moments_plane(typingctx: Any, g: Any, x: Any, count: Any, pivot: Any, sums: Any) -> Any:
    """Adds Σ d, Σ d², Σ g and Σ g·d with d = x − pivot over a plane to four vectors of sixteen floats at `sums`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s = Simd(builder)
        g_, x_, count_, pivot_, sums_ = args
        pivots = s.splat(pivot_)
        cells = [s.cell(s.load(sums_, "f32", LANES * k)) for k in range(4)]

        def vector(i: Any, lanes: Vec | None) -> None:
            d, value = read(s, x_, i, lanes) - pivots, read(s, g_, i, lanes)
            if lanes is not None:
                d = lanes.where(d, s.splat(0.0))
            for cell, factor in zip(cells, (None, d)):
                cell.set(cell.get() + d if factor is None else s.fma(d, factor, cell.get()))
            for cell, factor in zip(cells[2:], (None, d)):
                cell.set(cell.get() + value if factor is None else s.fma(value, factor, cell.get()))

        _plane(s, count_, vector)
        for k, cell in enumerate(cells):
            s.store(sums_, cell.get(), LANES * k)
        return context.get_dummy_value()

    return types.void(g, x, types.int64, pivot, types.int64), codegen


@intrinsic
def _combine_plane(typingctx: Any, g: Any, x: Any, out: Any, count: Any, a: Any, b: Any, c: Any) -> Any:
    """out = a·g + b·x + c over a plane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s = Simd(builder)
        g_, x_, out_, count_, *factors = args
        fa, fb, fc = (s.splat(f) for f in factors)

        def vector(i: Any, lanes: Vec | None) -> None:
            value = s.fma(read(s, g_, i, lanes), fa, s.fma(read(s, x_, i, lanes), fb, fc))
            write(s, out_, i, lanes, value)

        _plane(s, count_, vector)
        return context.get_dummy_value()

    return types.void(g, x, out, types.int64, a, b, c), codegen


@njit(cache=True)
def norm_backward(
    g: int, x: int, out: int, images: int, channels: int, count: int, weight: int, eps: float,
    needs_input: bool, g_w: int, g_b: int,
) -> None:  # fmt: skip
    """Gradients of a norm with the statistics of its batch, which are computed again from x in the same pass as Σ g.

    Addresses of (images, channels, count) fp32. Sums are taken around the channel's first value, in sixteen lanes of
    fp32 a plane and fp64 across planes; weight, g_w and g_b are addresses of (channels,) fp32.
    """
    lanes = np.empty((4, 16), np.float32)
    n = images * count
    for c in range(channels):
        pivot = get(x + 4 * c * count)
        moments = np.zeros(4)
        for image in range(images):
            at = 4 * (image * channels + c) * count
            lanes[:] = 0
            _moments_plane(g + at, x + at, count, pivot, np.int64(lanes.ctypes.data))
            for k in range(4):
                for lane in range(16):
                    moments[k] += lanes[k, lane]
        mean, total, product = moments[0] / n, moments[2], moments[3]
        variance = max(moments[1] / n - mean * mean, 0.0)
        inverse = 1.0 / np.sqrt(variance + eps)
        z_sum = (product - mean * total) * inverse
        put(g_w + 4 * c, np.float32(z_sum))
        put(g_b + 4 * c, np.float32(total))
        if needs_input:
            a = get(weight + 4 * c) * inverse
            b = -a * z_sum * inverse / n
            c0 = -a * total / n - b * (mean + pivot)
            for image in range(images):
                at = 4 * (image * channels + c) * count
                _combine_plane(
                    g + at, x + at, out + at, count, np.float32(a), np.float32(b), np.float32(c0)
                )  # fmt: skip
