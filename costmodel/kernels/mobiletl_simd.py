# ruff: noqa: ARG001  # numba passes an intrinsic its context and signature
"""Plane by plane in vector code: norms with frozen or batch statistics, activations and their packed masks.

A plane is the h·w values of one image and channel, contiguous; planes end anywhere, not on bytes of a mask, so that
bits are appended to a 64-bit word that is carried from plane to plane. Steps are 32 values, two vectors, whose bits
are one aligned store of a mask's word; the rest of a plane is masked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

from .norm_simd import gains, get, lanes_below, put, read
from .simd import LANES, Simd, Vec, intrinsic, require

__all__ = [
    "CLAMP",
    "EXACT_HARDSWISH",
    "HARDSWISH",
    "act_planes",
    "mask_norm_planes",
    "mask_planes",
    "norm_act_planes",
]

require(1)
STEP = 2 * LANES
EXACT_HARDSWISH, HARDSWISH, CLAMP = 0, 1, 2
SIXTH = float(np.float32(1) / np.float32(6))
_I64, _I32, _F32 = ir.IntType(64), ir.IntType(32), ir.FloatType()


def _activate(s: Simd, a: Vec, kind: int, high: Any) -> Vec:
    """Hard-Swish as ATen computes it, to the bit; or within two ulp in half of the steps; or a clamp to [0, high]."""
    if kind == HARDSWISH:
        return a * s.minimum(s.maximum(s.fma(a, s.splat(SIXTH), 0.5), 0.0), 1.0)
    if kind == EXACT_HARDSWISH:
        return _sixth(s, a * s.minimum(s.maximum(a + 3.0, 0.0), 6.0))
    return s.minimum(s.maximum(a, 0.0), s.splat(high))


def _sixth(s: Simd, p: Vec) -> Vec:
    """p / 6 rounded as a division rounds, in a third of its time: a product with 1/6, and its remainder put right."""
    quotient = p * SIXTH
    return s.fma(s.fma(quotient, -6.0, p), SIXTH, quotient)


def _is_short(s: Simd, count: Any) -> Any:
    """Whether a plane is three whole vectors and a few values, at most 57: a word of 64 bits, less 7 of a byte."""
    b = s.builder
    return b.icmp_unsigned("<=", b.sub(s.i64(count), s.i64(3 * LANES)), s.i64(9))


def _write(s: Simd, address: Any, i: Any, lanes: Vec | None, value: Vec, over: Any) -> None:
    """Write the lanes, or all of them if `over` is not 0."""
    if lanes is None:
        s.store(address, value, i)
        return
    with s.builder.if_else(s.builder.icmp_signed("!=", over, s.i64(0))) as (whole, masked):
        with whole:
            s.store(address, value, i)
        with masked:
            s.store_masked(address, value, lanes, i)


def _bits(s: Simd, a: Vec, least: Any) -> Any:
    """Bits of a ≥ least, as int64."""
    return s.builder.zext(a.compare(">=", s.splat(least)).bits(), _I64)


@intrinsic(prefer_literal=True)
def _act_plane(
    typingctx: Any, kind: Any, x: Any, y: Any, count: Any, gain: Any, shift: Any, high: Any, least: Any,
    words: Any, carry: Any, fill: Any, over: Any,
) -> Any:  # fmt: skip
    """y = act(gain·x + shift) over a plane; appends its bits to `words` and returns the word that is not full.

    Where `over` is not 0, up to fifteen values behind the plane in y may be written.

    `fill` (below 32) bits of `carry` are set before; afterwards (fill + count) mod 32 are. `words` is the address of
    the word that the carry goes to.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s = Simd(builder)
        _, x_, y_, count_, gain_, shift_, high_, least_, words_, carry_, fill_, over_ = args
        b = builder
        carried, word = cgutils.alloca_once(b, _I64), cgutils.alloca_once(b, _I64)
        b.store(carry_, carried)
        b.store(words_, word)
        gains, shifts = s.splat(gain_), s.splat(shift_)

        def vector(i: Any, lanes: Vec | None) -> Any:
            a = s.fma(read(s, x_, i, lanes), gains, shifts)
            _write(s, y_, i, lanes, _activate(s, a, kind.literal_value, high_), over_)
            bits = _bits(s, a, least_)
            return bits if lanes is None else b.and_(bits, b.zext(lanes.bits(), _I64))

        def append(bits: Any) -> None:
            both = b.or_(b.load(carried), b.shl(bits, fill_))
            at = b.load(word)
            b.store(b.trunc(both, _I32), b.inttoptr(at, ir.PointerType()), align=1)
            b.store(b.lshr(both, s.i64(32)), carried)
            b.store(b.add(at, s.i64(4)), word)

        def long_plane() -> None:
            whole = b.and_(count_, s.i64(-STEP))
            with s.loop(0, whole, STEP) as i:
                append(b.or_(vector(i, None), b.shl(vector(b.add(i, s.i64(LANES)), None), s.i64(LANES))))
            rest = b.sub(count_, whole)
            with b.if_then(b.icmp_signed(">", rest, s.i64(0))):
                low = vector(whole, lanes_below(s, rest))
                tail = cgutils.alloca_once(b, _I64)
                b.store(low, tail)
                with b.if_then(b.icmp_signed(">", rest, s.i64(LANES))):
                    high_bits = vector(b.add(whole, s.i64(LANES)), lanes_below(s, b.sub(rest, s.i64(LANES))))
                    b.store(b.or_(low, b.shl(high_bits, s.i64(LANES))), tail)
                both = b.or_(b.load(carried), b.shl(b.load(tail), fill_))
                b.store(both, carried)
                with b.if_then(b.icmp_signed(">=", b.add(fill_, rest), s.i64(32))):
                    b.store(b.trunc(both, _I32), b.inttoptr(b.load(word), ir.PointerType()), align=1)
                    b.store(b.lshr(both, s.i64(32)), carried)

        def short_plane() -> None:
            append(b.or_(vector(s.i64(0), None), b.shl(vector(s.i64(LANES), None), s.i64(LANES))))
            lanes = lanes_below(s, b.sub(count_, s.i64(3 * LANES)))
            rest = b.or_(vector(s.i64(2 * LANES), None), b.shl(vector(s.i64(3 * LANES), lanes), s.i64(LANES)))
            both = b.or_(b.load(carried), b.shl(rest, fill_))
            # written whether or not its low half is full: the next plane writes the same word again if it is not
            b.store(b.trunc(both, _I32), b.inttoptr(b.load(word), ir.PointerType()), align=1)
            full = b.icmp_signed(">=", b.add(fill_, b.sub(count_, s.i64(STEP))), s.i64(32))
            b.store(b.select(full, b.lshr(both, s.i64(32)), both), carried)

        with b.if_else(_is_short(s, count_)) as (then, otherwise):
            with then:
                short_plane()
            with otherwise:
                long_plane()
        return b.load(carried)

    ints = types.int64
    return ints(kind, x, y, ints, gain, shift, high, least, ints, ints, ints, ints), codegen


@njit(cache=True)
def act_planes(
    kind: int, x: int, y: int, mask: int, mask_bytes: int, images: int, count: int,
    gain: np.ndarray, shift: np.ndarray, high: float, least: float,
) -> None:  # fmt: skip
    """y = act(gain·x + shift), and the packed mask of (gain·x + shift ≥ least) if it has bytes.

    Args:
        kind: EXACT_HARDSWISH, HARDSWISH or CLAMP (to [0, high]).
        x, y: addresses of (images, C, count) fp32, two arrays.
        mask: address of mask_bytes = ceil(images·C·count/8) bytes, or of none.
        gain, shift: (C,) fp32.
    """
    spare = np.empty(32 if mask_bytes else count // 8 + 32, np.uint8)
    aside: Any = np.int64(spare.ctypes.data)
    channels = gain.shape[0]
    top: Any = np.float32(high)
    bottom: Any = np.float32(least)
    carry: Any = np.int64(0)
    done: Any = np.int64(0)
    end = images * channels * count
    for _ in range(images):
        for c in range(channels):
            # the last word may reach over the end of the mask: the last plane's last values go by `spare`
            whole = count if done + count < end else max(count - 64, 0) & -STEP
            words, fill = mask + ((done >> 5) << 2) if mask_bytes else aside, done & 31
            over = int(done + count + LANES <= end)
            carry = _act(kind, x, y, done, whole, gain[c], shift[c], top, bottom, words, carry, fill, over)
            if whole < count:
                fill = (done + whole) & 31
                carry = _act(
                    kind, x, y, done + whole, count - whole, gain[c], shift[c], top, bottom, aside, carry, fill, 0
                )  # fmt: skip
                if mask_bytes:
                    _finish(mask, mask_bytes, done + whole, count - whole, carry, spare)
            done += count


@njit(cache=True)
def _act(
    kind: int, x: int, y: int, first: int, count: int, gain: float, shift: float, high: float, least: float,
    words: int, carry: int, fill: int, over: int,
) -> int:  # fmt: skip
    x, y = x + (first << 2), y + (first << 2)
    if kind == HARDSWISH:
        return _act_plane(HARDSWISH, x, y, count, gain, shift, high, least, words, carry, fill, over)
    if kind == EXACT_HARDSWISH:
        return _act_plane(EXACT_HARDSWISH, x, y, count, gain, shift, high, least, words, carry, fill, over)
    return _act_plane(CLAMP, x, y, count, gain, shift, high, least, words, carry, fill, over)


@njit(cache=True)
def norm_act_planes(
    kind: int, x: int, y: int, mask: int, mask_bytes: int, images: int, channels: int, count: int,
    weight: int, bias: int, mean: int, var: int, eps: float, high: float, least: float,
) -> None:  # fmt: skip
    """`act_planes` of a norm with frozen statistics; weight, bias, mean and var are addresses of (C,) fp32."""
    gain, shift = gains(channels, weight, var, eps), np.empty(channels, np.float32)
    for c in range(channels):
        shift[c] = get(bias + 4 * c) - get(mean + 4 * c) * gain[c]
    act_planes(kind, x, y, mask, mask_bytes, images, count, gain, shift, high, least)


@njit(cache=True)
def _finish(mask: int, mask_bytes: int, done: int, count: int, carry: int, spare: np.ndarray) -> None:
    """Bytes of the last plane: its whole words lie in `spare`, the last word is the carry."""
    first, full = done // 32 * 4, (done % 32 + count) // 32 * 4
    for k in range(4):
        spare[full + k] = (carry >> (8 * k)) & 255
    for k in range(first, mask_bytes):
        put(mask + k, spare[k - first])


@intrinsic
def _mask_plane(
    typingctx: Any, g: Any, out: Any, mask: Any, mask_bytes: Any, first: Any, count: Any, gain: Any, sums: Any,
    over: Any,
) -> Any:  # fmt: skip
    """out = gain·g where the mask is set and 0 elsewhere, over a plane whose first bit is `first`.

    Where `over` is not 0, up to fifteen values behind the plane in out may be written.

    Σ g there is added to the sixteen floats at `sums`. The mask has at least eight bytes: what would be read beyond
    its end is read from its last eight.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s = Simd(builder)
        g_, out_, mask_, bytes_, first_, count_, gain_, sums_, over_ = args
        b = builder
        gains, zero = s.splat(gain_), s.splat(0.0)
        sums = [s.cell(s.load(sums_, "f32")), s.cell(zero)]
        final = b.sub(bytes_, s.i64(8))

        def bits(i: Any) -> Any:
            bit = b.add(first_, i)
            byte = b.lshr(bit, s.i64(3))
            start = b.select(b.icmp_signed("<", byte, final), byte, final)
            skip = b.sub(bit, b.shl(start, s.i64(3)))
            word = b.load(b.inttoptr(b.add(mask_, start), ir.PointerType()), typ=_I64, align=1)
            return b.lshr(word, skip)

        def vector(word: Any, i: Any, lanes: Vec | None, cell: int) -> None:
            kept = s.mask_from_bits(b.trunc(word, ir.IntType(16)))
            passed = kept.where(read(s, g_, i, lanes), zero)
            _write(s, out_, i, lanes, passed * gains, over_)
            sums[cell].set(sums[cell].get() + passed)

        def long_plane() -> None:
            whole = b.and_(count_, s.i64(-STEP))
            with s.loop(0, whole, STEP) as i:
                word = bits(i)
                vector(word, i, None, 0)
                vector(b.lshr(word, s.i64(LANES)), b.add(i, s.i64(LANES)), None, 1)
            rest = b.sub(count_, whole)
            with b.if_then(b.icmp_signed(">", rest, s.i64(0))):
                word = bits(whole)
                vector(word, whole, lanes_below(s, rest), 0)
                with b.if_then(b.icmp_signed(">", rest, s.i64(LANES))):
                    lanes = lanes_below(s, b.sub(rest, s.i64(LANES)))
                    vector(b.lshr(word, s.i64(LANES)), b.add(whole, s.i64(LANES)), lanes, 1)

        def short_plane() -> None:
            """49 values (7×7) and the like: one word of bits, three whole vectors and the rest."""
            word = bits(s.i64(0))
            for k in range(3):
                vector(b.lshr(word, s.i64(LANES * k)), s.i64(LANES * k), None, k % 2)
            lanes = lanes_below(s, b.sub(count_, s.i64(3 * LANES)))
            vector(b.lshr(word, s.i64(3 * LANES)), s.i64(3 * LANES), lanes, 1)

        with b.if_else(_is_short(s, count_)) as (then, otherwise):
            with then:
                short_plane()
            with otherwise:
                long_plane()
        s.store(sums_, sums[0].get() + sums[1].get())
        return context.get_dummy_value()

    ints = types.int64
    return types.void(g, out, mask, ints, ints, ints, gain, ints, ints), codegen


@njit(cache=True)
def mask_planes(
    g: int, out: int, mask: int, mask_bytes: int, images: int, count: int, gain: np.ndarray, sums: int
) -> None:
    """out = gain·g where the packed mask is set, else 0; Σ g there of each channel to `sums`, fp32, unless it is 0.

    Addresses of (images, C, count) fp32, two arrays, and of mask_bytes ≥ 8 bytes; gain is (C,).
    """
    channels = gain.shape[0]
    lanes = np.zeros((channels, LANES), np.float32)
    running: Any = np.int64(lanes.ctypes.data)
    done: Any = np.int64(0)
    end = images * channels * count
    for _ in range(images):
        for c in range(channels):
            at, over = done << 2, int(done + count + LANES <= end)
            _mask_plane(g + at, out + at, mask, mask_bytes, done, count, gain[c], running + 4 * LANES * c, over)
            done += count
    if sums:
        for c in range(channels):
            put(sums + 4 * c, lanes[c].sum())


@njit(cache=True)
def mask_norm_planes(
    g: int, out: int, mask: int, mask_bytes: int, images: int, channels: int, count: int,
    weight: int, var: int, eps: float, sums: int,
) -> None:  # fmt: skip
    """`mask_planes` through a frozen norm; weight and var are addresses of (C,) fp32."""
    mask_planes(g, out, mask, mask_bytes, images, count, gains(channels, weight, var, eps), sums)
