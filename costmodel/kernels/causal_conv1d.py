"""Causal depthwise convolution with SiLU, fp32, token-major, forward and backward.

`costmodel::causal_conv1d(x, weight, bias, state) -> y`: x (B, L, D) with any batch and row stride, weight (D, K),
bias (D), state (B, K-1, D) the inputs before the first token or None for zeros;
y[t] = silu(bias + sum_k weight[:, k] · x[t - K + 1 + k]), contiguous (B, L, D).

Token-major keeps sixteen channels in a vector and lets the in_proj output be read in place, without the transpose of
`nn.Conv1d`.
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from ..errors import CostmodelError
from . import register
from .simd import LANES, Simd, Vec, intrinsic, require

__all__ = ["causal_conv1d", "row_strides"]

require(1)


def _preactivation(s: Simd, rows: Any, taps: Any, weight: Any, bias: Any, width: Any, c: Any) -> Vec:
    """bias + sum of the taps for channels c to c + 16; `rows` is a table of K row addresses."""
    acc = s.cell(s.load(bias, "f32", c))
    with s.loop(0, taps) as k:
        row = s.scalar(rows, "i64", k)
        offset = s.builder.add(s.builder.mul(k, width), c)
        acc.set(s.fma(s.load(row, "f32", c), s.load(weight, "f32", offset), acc.get()))
    return acc.get()


@intrinsic
def _conv_row(typingctx, rows, taps, weight, bias, width, out):
    """out[0:width] = silu(conv) of one token."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        rows, taps, weight, bias, width, out = args
        with s.loop(0, width, LANES) as c:
            s.store(out, s.silu(_preactivation(s, rows, taps, weight, bias, width, c)), c)
        return context.get_dummy_value()

    return types.void(rows, taps, weight, bias, width, out), codegen


@intrinsic
def _conv_row_gradient(typingctx, rows, taps, weight, bias, width, gy, gpre, gweight, gbias):
    """gpre = gy · silu'(conv) of one token; gweight[k] += gpre · x[k]; gbias += gpre."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        rows, taps, weight, bias, width, gy, gpre, gweight, gbias = args
        with s.loop(0, width, LANES) as c:
            pre = _preactivation(s, rows, taps, weight, bias, width, c)
            gate = s.sigmoid(pre)
            slope = gate * s.fma(pre, 1.0 - gate, 1.0)
            g = s.load(gy, "f32", c) * slope
            s.store(gpre, g, c)
            s.store(gbias, s.load(gbias, "f32", c) + g, c)
            with s.loop(0, taps) as k:
                row = s.scalar(rows, "i64", k)
                offset = builder.add(builder.mul(k, width), c)
                s.store(gweight, s.fma(g, s.load(row, "f32", c), s.load(gweight, "f32", offset)), offset)
        return context.get_dummy_value()

    return types.void(rows, taps, weight, bias, width, gy, gpre, gweight, gbias), codegen


@intrinsic
def _add_product(typingctx, out, a, b, width):
    """out[0:width] += a · b."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        out, a, b, width = args
        with s.loop(0, width, LANES) as c:
            s.store(out, s.fma(s.load(a, "f32", c), s.load(b, "f32", c), s.load(out, "f32", c)), c)
        return context.get_dummy_value()

    return types.void(out, a, b, width), codegen


@njit(cache=True)
def fill_rows(rows, t, taps, x, x_row, state, width, itemsize):
    """Addresses of the K inputs of token t: rows of x, or of the state where they lie before token 0."""
    for k in range(taps):
        source = t - (taps - 1) + k
        if source >= 0:
            rows[k] = x + source * x_row * itemsize
        else:
            rows[k] = state + (source + taps - 1) * width * itemsize


@njit(cache=True, nogil=True)
def _forward(x, x_batch, x_row, weight, bias, state, y, batch, length, width, taps):
    rows = np.empty(taps, np.int64)
    for b in range(batch):
        xb, sb = x + 4 * b * x_batch, state + 4 * b * (taps - 1) * width
        for t in range(length):
            fill_rows(rows, t, taps, xb, x_row, sb, width, 4)
            _conv_row(rows.ctypes.data, taps, weight, bias, width, y + 4 * (b * length + t) * width)


@njit(cache=True, nogil=True)
def _backward(x, x_batch, x_row, weight, bias, state, gy, gx, gweight, gbias, gstate, batch, length, width, taps):
    rows = np.empty(taps, np.int64)
    targets = np.empty(taps, np.int64)
    gpre = np.empty(width, np.float32)
    for b in range(batch):
        xb, sb = x + 4 * b * x_batch, state + 4 * b * (taps - 1) * width
        gxb, gsb = gx + 4 * b * length * width, gstate + 4 * b * (taps - 1) * width
        for t in range(length):
            fill_rows(rows, t, taps, xb, x_row, sb, width, 4)
            fill_rows(targets, t, taps, gxb, width, gsb, width, 4)
            g = gpre.ctypes.data
            gyt = gy + 4 * (b * length + t) * width
            _conv_row_gradient(rows.ctypes.data, taps, weight, bias, width, gyt, g, gweight, gbias)
            for k in range(taps):
                _add_product(targets[k], g, weight + 4 * k * width, width)


def row_strides(name: str, t: Tensor) -> tuple[int, int]:
    """Batch and row stride of a (B, L, C) tensor whose channels are neighbours, or an error that says how to fix it."""
    if t.dim() != 3 or t.stride(2) != 1:
        raise CostmodelError(
            f"{name} must be (B, L, C) with neighbouring channels, not {tuple(t.shape)}; call .contiguous()"
        )
    return t.stride(0), t.stride(1)


def _check(x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
    batch, length, width = x.shape
    if width % LANES or weight.shape[0] != width:
        raise CostmodelError(
            f"causal_conv1d takes a multiple of {LANES} channels and weight (D, K): "
            f"given x {tuple(x.shape)}, weight {tuple(weight.shape)}"
        )
    return batch, length, width, weight.shape[1]


def _conv_cpu(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None) -> Tensor:
    batch, length, width, taps = _check(x, weight)
    x_batch, x_row = row_strides("x", x)
    taps_first = weight.t().contiguous()
    before = x.new_zeros(batch, taps - 1, width) if state is None else state.contiguous()
    bias = bias.contiguous()
    y = x.new_empty(batch, length, width)
    _forward(
        x.data_ptr(), x_batch, x_row, taps_first.data_ptr(), bias.data_ptr(), before.data_ptr(),
        y.data_ptr(), batch, length, width, taps,
    )  # fmt: skip
    return y


def _conv_backward_cpu(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, width, taps = _check(x, weight)
    x_batch, x_row = row_strides("x", x)
    taps_first = weight.t().contiguous()
    before = x.new_zeros(batch, taps - 1, width) if state is None else state.contiguous()
    gx, gstate = x.new_zeros(batch, length, width), torch.zeros_like(before)
    gweight, gbias = torch.zeros_like(taps_first), x.new_zeros(width)
    gy, bias = gy.contiguous(), bias.contiguous()
    _backward(
        x.data_ptr(), x_batch, x_row, taps_first.data_ptr(), bias.data_ptr(), before.data_ptr(),
        gy.data_ptr(), gx.data_ptr(), gweight.data_ptr(), gbias.data_ptr(), gstate.data_ptr(),
        batch, length, width, taps,
    )  # fmt: skip
    return gx, gweight.t().contiguous(), gbias, gstate


def _conv_fake(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


def _conv_backward_fake(
    gy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gstate = x.new_empty(x.shape[0], weight.shape[1] - 1, x.shape[2])
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape), gstate


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _conv_autograd(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, state = ctx.saved_tensors
    gx, gweight, gbias, gstate = _BACKWARD(gy, x, weight, bias, state)
    return gx, gweight, gbias, None if state is None else gstate


_BACKWARD = register(
    "causal_conv1d_backward(Tensor gy, Tensor x, Tensor weight, Tensor bias, Tensor? state)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _conv_backward_cpu,
    _conv_backward_fake,
    direct=True,
)
_FORWARD = register(
    "causal_conv1d(Tensor x, Tensor weight, Tensor bias, Tensor? state) -> Tensor",
    _conv_cpu,
    _conv_fake,
    backward=_conv_autograd,
    setup_context=_setup,
    direct=True,
)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor | None = None) -> Tensor:
    """silu(causal depthwise conv) of x (B, L, D) fp32; see the module's page for shapes. Differentiable."""
    out: Tensor = _FORWARD(x, weight, bias, state)
    return out
