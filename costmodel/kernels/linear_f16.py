"""16-bit weights, fp32 arithmetic: the head and the embedding that Quamba leaves alone.

`costmodel::linear_f16(x, weight) -> fp32 (…, N)`: x fp32 (…, K), weight fp16 (N, K), K a multiple of 16. Few rows
stream the weights once, four weight rows at a time; from `MANY_ROWS` rows on, blocks of weights are widened for torch's
GEMM (through a workspace of WIDENED_ROWS·K floats).
`costmodel::embed_rows(ids, table, scale) -> fp32 (…, K)`: rows of a table that is fp16 (N, K), int8 (N, K) with a
scale a row, or 4 bits (N, K/2; q - 8, low nibble first) with a scale a row.
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

import torch
import torch.nn.functional as F
from numba import njit, types
from torch import Tensor

from ..costs.quantized import MANY_ROWS, WIDENED_ROWS
from ..errors import CostmodelError
from . import register
from .simd import LANES, Simd, intrinsic, require

__all__ = ["embed_rows", "linear_f16", "store_f32"]

require(1)

ROWS = 4


@intrinsic
def _dot_rows(typingctx, x, weight, k, out):
    """out[0:4] = four neighbouring rows of the fp16 weight times x."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, weight, k, out = args
        rows = [s.address(weight, "f16", builder.mul(k, s.i64(r))) for r in range(ROWS)]
        sums = [s.cell(s.splat(0.0)) for _ in rows]
        with s.loop(0, k, LANES) as i:
            v = s.load(x, "f32", i)
            for row, cell in zip(rows, sums):
                cell.set(s.fma(s.load_f32(row, "f16", i), v, cell.get()))
        s.store(out, s.sums(*(cell.get() for cell in sums)))
        return context.get_dummy_value()

    return types.void(x, weight, k, out), codegen


@intrinsic
def _dot_row(typingctx, x, weight, k):
    """One row of the fp16 weight times x."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, weight, k = args
        acc = s.cell(s.splat(0.0))
        with s.loop(0, k, LANES) as i:
            acc.set(s.fma(s.load_f32(weight, "f16", i), s.load(x, "f32", i), acc.get()))
        return s.sum(acc.get())

    return types.float32(x, weight, k), codegen


@intrinsic(prefer_literal=True)
def _widen_row(typingctx, row, scale, k, out, bits):
    """A row of 16, 8 or 4 bits (literal) to fp32 times the float at `scale` (unused for 16)."""
    width = bits.literal_value

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        row, scale, k, out, _ = args
        if width == 16:
            with s.loop(0, k, LANES) as i:
                s.store(out, s.load_f32(row, "f16", i), i)
            return context.get_dummy_value()
        f = s.splat(s.scalar(scale, "f32"))
        if width == 8:
            with s.loop(0, k, LANES) as i:
                s.store(out, s.load_f32(row, "i8", i) * f, i)
            return context.get_dummy_value()
        with s.loop(0, builder.sdiv(k, s.i64(2)), LANES // 2) as i:
            pairs = s.load(row, "u8", i, LANES // 2)
            order = [half for j in range(LANES // 2) for half in (j, j + LANES // 2)]
            values = s.widen(s.shuffle(pairs & 15, pairs >> 4, order), "u8") - 8
            s.store(out, s.to_f32(values, "i32") * f, builder.mul(i, s.i64(2)))
        return context.get_dummy_value()

    return types.void(row, scale, k, out, bits), codegen


@intrinsic
def store_f32(typingctx, address, value):
    """The float at an address."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], Simd(builder).pointer(args[0], "f32"))
        return context.get_dummy_value()

    return types.void(address, types.float32), codegen


@njit(cache=True, nogil=True)
def _few(x, weight, out, rows, n, k):
    whole = n // ROWS * ROWS
    for first in range(0, whole, ROWS):
        for m in range(rows):
            _dot_rows(x + 4 * m * k, weight + 2 * first * k, k, out + 4 * (m * n + first))
    for j in range(whole, n):
        for m in range(rows):
            store_f32(out + 4 * (m * n + j), _dot_row(x + 4 * m * k, weight + 2 * j * k, k))


@njit(cache=True, nogil=True)
def _embed(ids, table, scale, out, k, bits):
    row = k * bits // 8
    for i in range(len(ids)):
        source, s, target = table + ids[i] * row, scale + 4 * ids[i], out + 4 * i * k
        if bits == 16:
            _widen_row(source, s, k, target, 16)
        elif bits == 8:
            _widen_row(source, s, k, target, 8)
        else:
            _widen_row(source, s, k, target, 4)


def _linear_run(x: Tensor, weight: Tensor) -> Tensor:
    n, k = weight.shape
    if k % LANES or weight.dtype != torch.float16 or x.shape[-1] != k:
        raise CostmodelError(
            f"linear_f16 takes x (…, K) and an fp16 weight (N, K), K a multiple of {LANES}: "
            f"given {tuple(x.shape)}, {weight.dtype} {tuple(weight.shape)}"
        )
    x = x.contiguous()
    rows = x.numel() // k
    out = x.new_empty(*x.shape[:-1], n)
    if rows < MANY_ROWS:
        _few(x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, n, k)
        return out
    for first in range(0, n, WIDENED_ROWS):
        block = weight[first : first + WIDENED_ROWS].float()
        out[..., first : first + WIDENED_ROWS] = F.linear(x, block)
    return out


def _linear_fake(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _table_bits(table: Tensor) -> int:
    return {torch.float16: 16, torch.int8: 8, torch.uint8: 4}[table.dtype]


def _embed_run(ids: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    bits = _table_bits(table)
    k = table.shape[1] * (2 if bits == 4 else 1)
    low, high = (int(v) for v in ids.aminmax()) if ids.numel() else (0, 0)
    if k % LANES or low < 0 or high >= table.shape[0]:
        raise CostmodelError(
            f"token ids {low} to {high} in a table of {table.shape[0]} rows of {k} values "
            f"(the kernel takes multiples of {LANES})"
        )
    flat = ids.reshape(-1).contiguous()
    out = table.new_empty(*ids.shape, k, dtype=torch.float32)
    _embed(flat.numpy(), table.data_ptr(), scale.data_ptr(), out.data_ptr(), k, bits)
    return out


def _embed_fake(ids: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    k = table.shape[1] * (2 if _table_bits(table) == 4 else 1)
    return table.new_empty(*ids.shape, k, dtype=torch.float32)


linear_f16 = register("linear_f16(Tensor x, Tensor weight) -> Tensor", _linear_run, _linear_fake)
embed_rows = register("embed_rows(Tensor ids, Tensor table, Tensor scale) -> Tensor", _embed_run, _embed_fake)
