"""Hadamard rotation and quantization of rows: H y without normalisation, then int8 (static) or 16 bits (dynamic).

`costmodel::rotate_quantize(y, scale, rotate) -> int8 (…, D)` with scale fp32 (1,): clamp(round(H y / scale));
`costmodel::rotate_split(y, rotate) -> (int8 (…, 2, D), fp32 rows)`: H y ≈ row_scale·(256·hi + lo).

H_D = H_m ⊗ H_2^k, D = m·2^k, m in {1, 12, 20}, 2^k >= 16: fast Walsh-Hadamard butterflies inside the m runs of 2^k
neighbours, then an m × m sign matrix (Paley's construction) across the runs. Natural (Sylvester) order;
Hᵀ H = D·I (Quamba, arXiv 2410.13229, section 4.2; METHODS.md §3).
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from ..errors import CostmodelError
from . import register
from .simd import LANES, Simd, Vec, intrinsic, require
from .ssd_scan import copy_floats

__all__ = [
    "hadamard_matrix",
    "hadamard_order",
    "quantize_row",
    "rotate_quantize",
    "rotate_row",
    "rotate_split",
    "split_row",
]

require(1)

ORDERS = (1, 12, 20)
BLOCK = 128  # elements whose butterflies run in registers


def hadamard_order(n: int) -> int:
    """The m of n = m·2^k with m in {1, 12, 20} and 2^k >= 16, or an error.

    >>> hadamard_order(1536), hadamard_order(5120), hadamard_order(8192)
    (12, 20, 1)
    """
    for m in ORDERS:
        run = n // m
        if n % m == 0 and run >= LANES and run & (run - 1) == 0:
            return m
    raise CostmodelError(f"no Hadamard matrix of size {n}: sizes are 2^k, 12·2^k and 20·2^k with 2^k >= {LANES}")


@cache
def _paley(m: int) -> np.ndarray:
    """Hadamard matrix of order m = q + 1 from the quadratic residues of the prime q = 3 mod 4; (1) for m = 1."""
    if m == 1:
        return np.ones((1, 1), np.int8)
    q = m - 1
    residues = {i * i % q for i in range(1, q)}
    h = np.ones((m, m), np.int8)
    for i in range(q):
        for j in range(q):
            h[i + 1, j + 1] = -1 if i == j or (i - j) % q not in residues else 1
    return h


def hadamard_matrix(n: int) -> Tensor:
    """H_n as float64 ±1, rows as the kernel applies them."""
    m = hadamard_order(n)
    run = torch.ones(1, 1, dtype=torch.float64)
    while run.shape[0] < n // m:
        run = torch.cat([torch.cat([run, run], 1), torch.cat([run, -run], 1)])
    return torch.kron(torch.from_numpy(_paley(m).astype(np.float64)), run)


def _butterflies(s: Simd, vectors: list[Vec]) -> list[Vec]:
    """Walsh-Hadamard transform of 16·len(vectors) neighbours in registers."""
    for bit in (1, 2, 4, 8):
        signs = s.constant([-1.0 if lane & bit else 1.0 for lane in range(LANES)])
        swap = [lane ^ bit for lane in range(LANES)]
        vectors = [s.fma(v, signs, s.shuffle(v, v, swap)) for v in vectors]
    stride = 1
    while stride < len(vectors):
        for i in range(len(vectors)):
            if not i & stride:
                a, b = vectors[i], vectors[i + stride]
                vectors[i], vectors[i + stride] = a + b, a - b
        stride *= 2
    return vectors


@intrinsic(prefer_literal=True)
def _transform_run(typingctx, x, size):
    """In place on `size` (literal, 16 to 128) neighbours."""
    count = size.literal_value // LANES

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        vectors = [s.load(args[0], "f32", i * LANES) for i in range(count)]
        for i, v in enumerate(_butterflies(s, vectors)):
            s.store(args[0], v, i * LANES)
        return context.get_dummy_value()

    return types.void(x, size), codegen


@intrinsic
def _butterfly(typingctx, low, high, n):
    """(low, high) = (low + high, low - high), n floats."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        low, high, n = args
        with s.loop(0, n, LANES) as i:
            a, b = s.load(low, "f32", i), s.load(high, "f32", i)
            s.store(low, a + b, i)
            s.store(high, a - b, i)
        return context.get_dummy_value()

    return types.void(low, high, n), codegen


@intrinsic(prefer_literal=True)
def _mix(typingctx, x, run, order):
    """In place: the order × order sign matrix across runs of `run` neighbours."""
    signs = _paley(order.literal_value)

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, run, _ = args
        offsets = [builder.mul(run, s.i64(j)) for j in range(len(signs))]
        with s.loop(0, run, LANES) as c:
            column = [s.load(x, "f32", builder.add(o, c)) for o in offsets]
            for row, offset in zip(signs, offsets):
                total = column[0]  # the first column is all ones
                for sign, v in zip(row[1:], column[1:]):
                    total = total + v if sign > 0 else total - v
                s.store(x, total, builder.add(offset, c))
        return context.get_dummy_value()

    return types.void(x, run, order), codegen


@intrinsic
def quantize_row(typingctx, x, n, inverse, out):
    """out[0:n] int8 = clamp(round(x · inverse)); n a multiple of 16."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, n, inverse, out = args
        factor = s.splat(builder.fptrunc(inverse, s.splat(0.0).type.element))
        with s.loop(0, n, LANES) as i:
            s.store(out, s.to_i8(s.load(x, "f32", i) * factor), i)
        return context.get_dummy_value()

    return types.void(x, n, types.float64, out), codegen


@intrinsic
def split_row(typingctx, x, n, high, low):
    """Sixteen bits: x ≈ scale·(256·high + low) for n floats, a multiple of 16; returns the scale, max|x| / 32512."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, n, high, low = args
        largest = s.cell(s.splat(1e-30))
        with s.loop(0, n, LANES) as i:
            largest.set(s.maximum(largest.get(), s.abs(s.load(x, "f32", i))))
        top = s.max(largest.get())
        inverse = s.splat(builder.fdiv(s.splat(32512.0).lane(0), top))
        with s.loop(0, n, LANES) as i:
            q = s.to_i32(s.rint(s.load(x, "f32", i) * inverse))
            rest = (((q + 128) & 255) - 128).narrow("i8")
            s.store(low, rest, i)
            s.store(high, ((q - s.widen(rest, "i8")).shift_signed(8)).narrow("i8"), i)
        return builder.fmul(top, s.splat(1.0 / 32512.0).lane(0))

    return types.float32(x, n, high, low), codegen


@njit(cache=True, nogil=True)
def rotate_row(x, n, order):
    """H x in place on n floats at an address; `order` as `hadamard_order` gives it, 0 leaves x as it is."""
    if order == 0:
        return
    run = n // order
    for first in range(0, n, run):
        base = x + 4 * first
        if run >= BLOCK:
            for i in range(0, run, BLOCK):
                _transform_run(base + 4 * i, BLOCK)
            stride = BLOCK
        else:
            for i in range(0, run, LANES):
                _transform_run(base + 4 * i, LANES)
            stride = LANES
        while stride < run:
            for i in range(0, run, 2 * stride):
                _butterfly(base + 4 * i, base + 4 * (i + stride), stride)
            stride *= 2
    if order == 12:
        _mix(x, run, 12)
    elif order == 20:
        _mix(x, run, 20)


@njit(cache=True, nogil=True)
def _rotated(y, scratch, n, order):
    """The address of H y: y itself where it is not rotated."""
    if order == 0:
        return y
    copy_floats(y, scratch, n)
    rotate_row(scratch, n, order)
    return scratch


@njit(cache=True, nogil=True)
def _quantize(y, scratch, out, rows, n, order, scale):
    for m in range(rows):
        quantize_row(_rotated(y + 4 * m * n, scratch, n, order), n, 1.0 / scale, out + m * n)


@njit(cache=True, nogil=True)
def _split(y, scratch, out, scales, rows, n, order):
    for m in range(rows):
        row = _rotated(y + 4 * m * n, scratch, n, order)
        scales[m] = split_row(row, n, out + 2 * m * n, out + (2 * m + 1) * n)


def _order(y: Tensor, rotate: bool) -> int:
    if rotate:
        return hadamard_order(y.shape[-1])
    if y.shape[-1] % LANES:
        raise CostmodelError(f"rows of {y.shape[-1]} values: the kernel takes multiples of {LANES}")
    return 0


def _quantize_run(y: Tensor, scale: Tensor, rotate: bool) -> Tensor:
    order, y, n = _order(y, rotate), y.contiguous(), y.shape[-1]
    out, scratch = y.new_empty(y.shape, dtype=torch.int8), y.new_empty(n)
    _quantize(y.data_ptr(), scratch.data_ptr(), out.data_ptr(), y.numel() // n, n, order, float(scale))
    return out


def _split_run(y: Tensor, rotate: bool) -> tuple[Tensor, Tensor]:
    order, y, n = _order(y, rotate), y.contiguous(), y.shape[-1]
    out, scratch = y.new_empty(*y.shape[:-1], 2, n, dtype=torch.int8), y.new_empty(n)
    scales = y.new_empty(y.shape[:-1])
    _split(y.data_ptr(), scratch.data_ptr(), out.data_ptr(), scales.view(-1).numpy(), y.numel() // n, n, order)
    return out, scales


def _quantize_fake(y: Tensor, scale: Tensor, rotate: bool) -> Tensor:
    _order(y, rotate)
    return y.new_empty(y.shape, dtype=torch.int8)


def _split_fake(y: Tensor, rotate: bool) -> tuple[Tensor, Tensor]:
    _order(y, rotate)
    return y.new_empty(*y.shape[:-1], 2, y.shape[-1], dtype=torch.int8), y.new_empty(y.shape[:-1])


rotate_quantize = register(
    "rotate_quantize(Tensor y, Tensor scale, bool rotate) -> Tensor",
    _quantize_run,
    _quantize_fake,
    direct=True,
)
rotate_split = register("rotate_split(Tensor y, bool rotate) -> (Tensor, Tensor)", _split_run, _split_fake, direct=True)
