"""Causal depthwise convolution with SiLU on quantized inputs, with its state, for prefill and generation alike.

`costmodel::conv_silu(x, weight, scale, bias, inverse, state) -> y`: x (B, L, D) int8 or fp32 with any batch and row
stride; weight int8 taps-first (K, D); scale, bias, inverse fp32 (D); state (B, K-1, D), the inputs before the first
token, updated in place to the last ones. y = silu(bias + scale · sum_k weight[k]·x[t-K+1+k]) · inverse, rounded and
clamped to int8 where x is int8; where x is fp32 (W4A16) y is fp32, `inverse` is unused and the state is fp16.

`scale` is (input scale)·(weight scale) and `inverse` is 1/(output scale), a number for each channel: per tensor, per
state group and per cluster of channels are the same kernel.
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from ..errors import CostmodelError
from . import register
from .causal_conv1d import row_strides
from .simd import LANES, Simd, intrinsic, require

__all__ = ["conv_silu", "convolve"]

require(1)

_TOGETHER = 32  # tokens whose inputs stay in L1 while their channels are gone through


@intrinsic(prefer_literal=True)
def _row(typingctx, rows, old, taps, weight, scale, bias, inverse, width, out, is_int8):
    """One token: the first `old` of the K row addresses lie in the state, the others in x; `is_int8` is literal."""
    quantized = bool(is_int8.literal_value)
    inputs, states = ("i8", "i8") if quantized else ("f32", "f16")

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        rows, old, taps, weight, scale, bias, inverse, width, out, _ = args
        with s.loop(0, width, LANES) as c:
            acc = s.cell(s.splat(0.0))
            for start, stop, element in ((s.i64(0), old, states), (old, taps, inputs)):
                with s.loop(start, stop) as k:
                    row = s.scalar(rows, "i64", k)
                    w = s.load_f32(weight, "i8", builder.add(builder.mul(k, width), c))
                    acc.set(s.fma(s.load_f32(row, element, c), w, acc.get()))
            y = s.silu(s.fma(acc.get(), s.load(scale, "f32", c), s.load(bias, "f32", c)))
            s.store(out, s.to_i8(y * s.load(inverse, "f32", c)) if quantized else y, c)
        return context.get_dummy_value()

    return types.void(rows, old, taps, weight, scale, bias, inverse, width, out, is_int8), codegen


@intrinsic
def _rows4(typingctx, x, row, count, weight, scale, bias, inverse, width, out):
    """`count` tokens of int8 x by four taps, each input read once; three rows of x lie before the first."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, row, count, weight, scale, bias, inverse, width, out = args
        with s.loop(0, width, LANES) as c:
            taps = [s.load_f32(weight, "i8", builder.add(builder.mul(width, s.i64(k)), c)) for k in range(4)]
            factor, shift, unit = (s.load(p, "f32", c) for p in (scale, bias, inverse))
            first = builder.sub(builder.add(x, c), builder.mul(row, s.i64(3)))
            before = [s.cell(s.load_f32(builder.add(first, builder.mul(row, s.i64(k))), "i8")) for k in range(3)]
            with s.loop(0, count) as t:
                rows = [cell.get() for cell in before]
                rows.append(s.load_f32(builder.add(x, c), "i8", builder.mul(row, t)))
                acc = s.splat(0.0)
                for value, tap in zip(rows, taps):
                    acc = s.fma(value, tap, acc)
                for cell, value in zip(before, rows[1:]):
                    cell.set(value)
                s.store(out, s.to_i8(s.silu(s.fma(acc, factor, shift)) * unit), builder.add(builder.mul(width, t), c))
        return context.get_dummy_value()

    return types.void(x, row, count, weight, scale, bias, inverse, width, out), codegen


@intrinsic(prefer_literal=True)
def _keep(typingctx, source, target, width, is_int8, from_x):
    """Copy one row into the state; `from_x` (literal) converts fp32 inputs to fp16."""
    quantized, fresh = bool(is_int8.literal_value), bool(from_x.literal_value)

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        source, target, width, _, _ = args
        with s.loop(0, width, LANES) as c:
            if quantized:
                s.store(target, s.load(source, "i8", c), c)
            elif fresh:
                s.store(target, s.to_f16(s.load(source, "f32", c)), c)
            else:
                s.store(target, s.load(source, "f16", c), c)
        return context.get_dummy_value()

    return types.void(source, target, width, is_int8, from_x), codegen


@njit(cache=True, nogil=True)
def convolve(
    x, x_batch, x_row, weight, scale, bias, inverse, state, y, batch, length, width, taps, is_int8
):  # fmt: skip
    """All addresses; strides in elements. Reads and updates the state."""
    x_size, state_size = (1, 1) if is_int8 else (4, 2)
    before = taps - 1
    rows = np.empty(taps, np.int64)
    for i in range(batch):
        xi = x + x_size * i * x_batch
        si = state + state_size * i * before * width
        together = length - before if is_int8 and taps == 4 and length > _TOGETHER else 0
        for first in range(before, before + together, _TOGETHER):
            count, out = min(_TOGETHER, before + together - first), y + (i * length + first) * width
            _rows4(xi + first * x_row, x_row, count, weight, scale, bias, inverse, width, out)
        for t in range(length - together):
            old = max(before - t, 0)
            for k in range(taps):
                source = t - before + k
                if source >= 0:
                    rows[k] = xi + x_size * source * x_row
                else:
                    rows[k] = si + state_size * (source + before) * width
            out = y + x_size * (i * length + t) * width
            if is_int8:
                _row(rows.ctypes.data, old, taps, weight, scale, bias, inverse, width, out, 1)
            else:
                _row(rows.ctypes.data, old, taps, weight, scale, bias, inverse, width, out, 0)
        for k in range(before):  # oldest first: a row is read before it is written over
            source = length - before + k
            target = si + state_size * k * width
            if is_int8:
                if source >= 0:
                    _keep(xi + source * x_row, target, width, 1, 1)
                else:
                    _keep(si + (source + before) * width, target, width, 1, 0)
            elif source >= 0:
                _keep(xi + 4 * source * x_row, target, width, 0, 1)
            else:
                _keep(si + 2 * (source + before) * width, target, width, 0, 0)


def _run(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, inverse: Tensor, state: Tensor) -> Tensor:
    batch, length, width = x.shape
    taps = weight.shape[0]
    wanted = torch.int8 if x.dtype == torch.int8 else torch.float16
    fits = tuple(state.shape) == (batch, taps - 1, width) and state.dtype == wanted and state.is_contiguous()
    if width % LANES or not fits:
        raise CostmodelError(
            f"conv_silu takes x (B, L, D) with D a multiple of {LANES} and a contiguous state (B, K-1, D) of {wanted}: "
            f"given {tuple(x.shape)} {x.dtype}, {tuple(state.shape)} {state.dtype}"
        )
    x_batch, x_row = row_strides("x", x)
    y = x.new_empty(batch, length, width)
    convolve(
        x.data_ptr(), x_batch, x_row, weight.data_ptr(), scale.data_ptr(), bias.data_ptr(), inverse.data_ptr(),
        state.data_ptr(), y.data_ptr(), batch, length, width, taps, int(x.dtype == torch.int8),
    )  # fmt: skip
    return y


def _fake(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, inverse: Tensor, state: Tensor) -> Tensor:
    return x.new_empty(x.shape)


conv_silu = register(
    "conv_silu(Tensor x, Tensor weight, Tensor scale, Tensor bias, Tensor inverse, Tensor(a!) state) -> Tensor",
    _run,
    _fake,
    direct=True,
)
