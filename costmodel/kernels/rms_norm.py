"""RMS norms that feed integer GEMMs.

`costmodel::rms_norm_quantize(x, weight, scale, eps) -> int8`: x fp32 (…, d), clamp(round(norm(x)·weight / scale)).
`costmodel::rms_norm_split(x, weight, eps) -> (int8 (…, 2, d), fp32 scales)`: sixteen bits, dynamic a token.
`costmodel::gated_rms_norm(y, z, z_scale, weight, eps, groups) -> fp32`: norm(y · silu(z)) · weight of Mamba-2, over
each of `groups` parts of a row; z is fp32 or int8 times z_scale, with any row stride.
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

import math

import torch
from numba import njit, types
from torch import Tensor

from ..errors import CostmodelError
from . import register
from .hadamard import quantize_row, split_row
from .simd import LANES, Simd, intrinsic, require

__all__ = ["gate_row", "gated_rms_norm", "norm_row", "rms_norm_quantize", "rms_norm_split"]

require(1)


@intrinsic
def _sum_squares(typingctx, x, n):
    """Sum of x² over n floats, a multiple of 16."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        acc = s.cell(s.splat(0.0))
        with s.loop(0, args[1], LANES) as i:
            v = s.load(args[0], "f32", i)
            acc.set(s.fma(v, v, acc.get()))
        return s.sum(acc.get())

    return types.float32(x, n), codegen


@intrinsic
def _scale_by(typingctx, x, weight, n, factor, out):
    """out = x · weight · factor, n floats; out may be x."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, weight, n, factor, out = args
        f = s.splat(builder.fptrunc(factor, s.splat(0.0).type.element))
        with s.loop(0, n, LANES) as i:
            s.store(out, s.load(x, "f32", i) * f * s.load(weight, "f32", i), i)
        return context.get_dummy_value()

    return types.void(x, weight, n, types.float64, out), codegen


@intrinsic(prefer_literal=True)
def _gate(typingctx, y, z, n, z_scale, out, is_int8):
    """out = y · silu(z · z_scale); z is int8 or fp32 (literal), out may be y."""
    element = "i8" if is_int8.literal_value else "f32"

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        y, z, n, z_scale, out, _ = args
        f = s.splat(builder.fptrunc(z_scale, s.splat(0.0).type.element))
        with s.loop(0, n, LANES) as i:
            s.store(out, s.load(y, "f32", i) * s.silu(s.load_f32(z, element, i) * f), i)
        return context.get_dummy_value()

    return types.void(y, z, n, types.float64, out, is_int8), codegen


@njit(cache=True, nogil=True)
def norm_row(x, weight, n, eps, out):
    """out = x / rms(x) · weight of n floats at addresses; out may be x."""
    _scale_by(x, weight, n, 1.0 / math.sqrt(_sum_squares(x, n) / n + eps), out)


@njit(cache=True, nogil=True)
def gate_row(y, z, n, z_scale, is_int8, out):
    """out = y · silu(z · z_scale); out may be y."""
    if is_int8:
        _gate(y, z, n, z_scale, out, 1)
    else:
        _gate(y, z, n, z_scale, out, 0)


@njit(cache=True, nogil=True)
def _quantize(x, weight, scratch, out, rows, n, eps, inverse):
    for m in range(rows):
        norm_row(x + 4 * m * n, weight, n, eps, scratch)
        quantize_row(scratch, n, inverse, out + m * n)


@njit(cache=True, nogil=True)
def _split(x, weight, scratch, out, scales, rows, n, eps):
    for m in range(rows):
        norm_row(x + 4 * m * n, weight, n, eps, scratch)
        scales[m] = split_row(scratch, n, out + 2 * m * n, out + (2 * m + 1) * n)


@njit(cache=True, nogil=True)
def _gated(y, z, z_row, z_scale, is_int8, weight, out, rows, n, eps, groups):
    size = n // groups
    for m in range(rows):
        row = out + 4 * m * n
        gate_row(y + 4 * m * n, z + (1 if is_int8 else 4) * m * z_row, n, z_scale, is_int8, row)
        for g in range(groups):
            part = row + 4 * g * size
            norm_row(part, weight + 4 * g * size, size, eps, part)


def _width(x: Tensor, groups: int = 1) -> int:
    n = x.shape[-1]
    if n % (groups * LANES):
        raise CostmodelError(
            f"{groups} norm groups of rows of {n} values: the kernel takes groups of a multiple of {LANES}"
        )
    return n


def _quantize_run(x: Tensor, weight: Tensor, scale: Tensor, eps: float) -> Tensor:
    x, n = x.contiguous(), _width(x)
    out, scratch = x.new_empty(x.shape, dtype=torch.int8), x.new_empty(n)
    _quantize(
        x.data_ptr(), weight.data_ptr(), scratch.data_ptr(), out.data_ptr(), x.numel() // n, n, eps, 1.0 / float(scale)
    )
    return out


def _split_run(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, n = x.contiguous(), _width(x)
    out, scratch = x.new_empty(*x.shape[:-1], 2, n, dtype=torch.int8), x.new_empty(n)
    scales = x.new_empty(x.shape[:-1])
    _split(
        x.data_ptr(),
        weight.data_ptr(),
        scratch.data_ptr(),
        out.data_ptr(),
        scales.view(-1).numpy(),
        x.numel() // n,
        n,
        eps,
    )
    return out, scales


def _gated_run(y: Tensor, z: Tensor, z_scale: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    n, y = _width(y, groups), y.contiguous()
    rows = y.numel() // n
    if z.stride(-1) != 1 or (z.dim() == 3 and z.stride(0) != z.shape[1] * z.stride(1)):
        z = z.contiguous()
    out = y.new_empty(y.shape)
    _gated(
        y.data_ptr(), z.data_ptr(), z.stride(-2), float(z_scale), int(z.dtype == torch.int8), weight.data_ptr(),
        out.data_ptr(), rows, n, eps, groups,
    )  # fmt: skip
    return out


def _quantize_fake(x: Tensor, weight: Tensor, scale: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.int8)


def _split_fake(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], 2, x.shape[-1], dtype=torch.int8), x.new_empty(x.shape[:-1])


def _gated_fake(y: Tensor, z: Tensor, z_scale: Tensor, weight: Tensor, eps: float, groups: int) -> Tensor:
    return y.new_empty(y.shape)


rms_norm_quantize = register(
    "rms_norm_quantize(Tensor x, Tensor weight, Tensor scale, float eps) -> Tensor",
    _quantize_run,
    _quantize_fake,
    direct=True,
)
rms_norm_split = register(
    "rms_norm_split(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    _split_run,
    _split_fake,
    direct=True,
)
gated_rms_norm = register(
    "gated_rms_norm(Tensor y, Tensor z, Tensor z_scale, Tensor weight, float eps, int groups) -> Tensor",
    _gated_run,
    _gated_fake,
    direct=True,
)
