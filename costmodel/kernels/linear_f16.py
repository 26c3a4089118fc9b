"""16-bit weights, fp32 arithmetic: the head and the embedding that Quamba leaves alone.

`costmodel::linear_f16(x, panels, columns) -> fp32 (…, N)`: x fp32 (…, K), panels fp16 (N/64, K, 64) by `pack_f16`: one
sequential stream for any number of rows, up to 6 rows by 64 columns of sums in registers.
`costmodel::embed_rows(ids, table, scale) -> fp32 (…, K)`: rows of a table that is fp16 panels (tied to such a head),
int8 (N, K) with a scale a row, or 4 bits (N, K/2; q - 8, low nibble first) with a scale a row.
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

import torch
from numba import njit, types
from torch import Tensor

from ..errors import CostmodelError
from . import register
from .panels import PANEL, VECTORS
from .simd import LANES, Simd, intrinsic, require

__all__ = ["embed_rows", "linear_f16", "pack_f16", "store_f32"]

require(1)


def pack_f16(w: Tensor) -> Tensor:
    """(N, K) to fp16 panels (ceil(N/64), K, 64), padded with zeros."""
    n, k = w.shape
    padded = w.new_zeros(-(-n // PANEL) * PANEL, k, dtype=torch.float16)
    padded[:n] = w
    return padded.reshape(-1, PANEL, k).transpose(1, 2).contiguous()


@intrinsic(prefer_literal=True)
def _tile(typingctx, rows, x, k, panel, out, stride, left):
    """`rows` (literal) rows of x by one panel, the first `left` columns of it."""
    count = rows.literal_value

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        _, x, k, panel, out, stride, left = args
        sums = [[s.cell(s.splat(0.0)) for _ in range(VECTORS)] for _ in range(count)]
        bases = [s.address(x, "f32", builder.mul(k, s.i64(m))) for m in range(count)]
        with s.loop(0, k) as i:
            at = builder.mul(i, s.i64(PANEL))
            w = [s.load_f32(panel, "f16", builder.add(at, s.i64(v * LANES))) for v in range(VECTORS)]
            for m in range(count):
                xv = s.splat(s.scalar(bases[m], "f32", i))
                for v in range(VECTORS):
                    sums[m][v].set(s.fma(w[v], xv, sums[m][v].get()))
        for m in range(count):
            for v in range(VECTORS):
                mask = s.first_lanes(builder.sub(left, s.i64(v * LANES)))
                at = builder.add(builder.mul(s.i64(m), stride), s.i64(v * LANES))
                s.store_masked(out, sums[m][v].get(), mask, at)
        return context.get_dummy_value()

    return types.void(rows, x, k, panel, out, stride, left), codegen


@intrinsic
def _panel_row(typingctx, panel, k, out):
    """One row of fp16 panels to fp32: its values lie 64 apart."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        panel, k, out = args
        with s.loop(0, k) as i:
            s.store(out, s.load_f32(panel, "f16", builder.mul(i, s.i64(PANEL)), 1), i)
        return context.get_dummy_value()

    return types.void(panel, k, out), codegen


@intrinsic(prefer_literal=True)
def _widen_row(typingctx, row, scale, k, out, bits):
    """A row of 8 or 4 bits (literal) to fp32 times the float at `scale`."""
    width = bits.literal_value

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        row, scale, k, out, _ = args
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
def _multiply(x, panels, out, rows, n, k):
    for first in range(0, n, PANEL):
        panel = panels + 2 * first * k
        m = 0
        while m < rows:
            a, target, left = x + 4 * m * k, out + 4 * (m * n + first), n - first
            if rows - m >= 6:
                _tile(6, a, k, panel, target, n, left)
                m += 6
            elif rows - m >= 2:
                _tile(2, a, k, panel, target, n, left)
                m += 2
            else:
                _tile(1, a, k, panel, target, n, left)
                m += 1


@njit(cache=True, nogil=True)
def _embed(ids, table, scale, out, k, bits):
    row = k * bits // 8
    for i in range(len(ids)):
        token, target = ids[i], out + 4 * i * k
        if bits == 16:
            _panel_row(table + 2 * (token // PANEL * PANEL * k + token % PANEL), k, target)
        elif bits == 8:
            _widen_row(table + token * row, scale + 4 * token, k, target, 8)
        else:
            _widen_row(table + token * row, scale + 4 * token, k, target, 4)


def _linear_run(x: Tensor, panels: Tensor, columns: int) -> Tensor:
    blocks, k, _ = panels.shape
    if panels.dtype != torch.float16 or x.shape[-1] != k or blocks * PANEL < columns:
        raise CostmodelError(
            f"linear_f16 takes x (…, K) and fp16 panels (N/{PANEL}, K, {PANEL}): "
            f"given {tuple(x.shape)}, {panels.dtype} {tuple(panels.shape)} for {columns} columns"
        )
    x = x.contiguous()
    out = x.new_empty(*x.shape[:-1], columns)
    _multiply(x.data_ptr(), panels.data_ptr(), out.data_ptr(), x.numel() // k, columns, k)
    return out


def _linear_fake(x: Tensor, panels: Tensor, columns: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], columns)


def _table_sizes(table: Tensor) -> tuple[int, int, int]:
    """Bits, rows and values of a row."""
    if table.dtype == torch.float16:
        return 16, table.shape[0] * PANEL, table.shape[1]
    return (8, *table.shape) if table.dtype == torch.int8 else (4, table.shape[0], 2 * table.shape[1])


def _embed_run(ids: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    bits, rows, k = _table_sizes(table)
    low, high = (int(v) for v in ids.aminmax()) if ids.numel() else (0, 0)
    if k % LANES or low < 0 or high >= rows:
        raise CostmodelError(
            f"token ids {low} to {high} in a table of {rows} rows of {k} values (the kernel takes multiples of {LANES})"
        )
    flat = ids.reshape(-1).contiguous()
    out = table.new_empty(*ids.shape, k, dtype=torch.float32)
    _embed(flat.numpy(), table.data_ptr(), scale.data_ptr(), out.data_ptr(), k, bits)
    return out


def _embed_fake(ids: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    return table.new_empty(*ids.shape, _table_sizes(table)[2], dtype=torch.float32)


linear_f16 = register(
    "linear_f16(Tensor x, Tensor panels, int columns) -> Tensor", _linear_run, _linear_fake, direct=True
)
embed_rows = register(
    "embed_rows(Tensor ids, Tensor table, Tensor scale) -> Tensor", _embed_run, _embed_fake, direct=True
)
