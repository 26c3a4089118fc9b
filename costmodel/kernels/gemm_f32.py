# ruff: noqa: ARG001  # numba passes an intrinsic its context and signature
"""Single-thread fp32 matrix product for the short matrices of LBP-WHT, where library GEMMs lose a tenth to a third.

C = A B (+ C) with A by two strides (so that a transpose costs nothing), B and C row-major. The micro-kernel holds 12
rows by 32 columns of C in registers; a panel of 32 columns of B is packed once a block, which also turns its rows
into one stream; A is read where it lies. On Zen 4 it runs at 97 % of the FMA peak from L1 and L2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from .simd import LANES, Simd, intrinsic, require

__all__ = ["gemm"]

require(1)
ROWS, COLUMNS = 12, 2 * LANES
_K_BLOCK, _M_BLOCK = 384, 384


@intrinsic
def _micro(
    typingctx: Any, rows: Any, k: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_row: Any, panel: Any, c: Any,
    c_row: Any, wide: Any, add: Any, ahead: Any, ahead_row: Any, share: Any,
) -> Any:  # fmt: skip
    """C tile (rows ≤ 12 by 32, or 16 where not `wide`) from k steps of A and a packed panel; strides in bytes.

    Each step also fetches a row of 128 bytes at `ahead`, `ahead_row` further on every time: the next panel.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s = Simd(builder)
        rows_, *rest = args
        done = builder.append_basic_block("done")
        switch = builder.switch(s.i64(rows_), done)
        for count in range(1, ROWS + 1):
            block = builder.append_basic_block(f"rows{count}")
            switch.add_case(ir.Constant(ir.IntType(64), count), block)
            builder.position_at_end(block)
            with builder.if_else(builder.icmp_signed("!=", rest[4], s.i64(0))) as (fresh, packed):
                with fresh:
                    _tile(s, count, True, *rest)
                with packed:
                    _tile(s, count, False, *rest)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(rows, k, a, a_row, a_k, b, b_row, panel, c, c_row, wide, add, ahead, ahead_row, share), codegen


def _tile(
    s: Simd, rows: int, fresh: bool, k: Any, a: Any, a_row: Any, a_k: Any, source: Any, source_row: Any, panel: Any,
    c: Any, c_row: Any, wide: Any, add: Any, ahead: Any, ahead_row: Any, share: Any,
) -> None:  # fmt: skip
    b = s.builder
    row_a = [b.add(a, b.mul(s.i64(m), a_row)) for m in range(rows)]
    row_c = [b.add(c, b.mul(s.i64(m), c_row)) for m in range(rows)]
    sums = [[s.cell(s.splat(0.0)) for _ in range(2)] for _ in range(rows)]
    for row in row_c:
        for line in range(2):
            s.prefetch(b.add(row, s.i64(64 * line)), write=True)
    with s.loop(0, k) as i:
        at = b.mul(i, a_k)
        places = [b.add(b.mul(i, s.i64(COLUMNS)), s.i64(LANES * v)) for v in range(2)]
        if fresh:
            line_b = b.add(source, b.mul(i, source_row))
            columns = [s.load(line_b, "f32", LANES * v) for v in range(2)]
            for place, column in zip(places, columns):
                s.store(panel, column, place)
        else:
            columns = [s.load(panel, "f32", place) for place in places]
        for m in range(rows):
            x = s.splat(s.scalar(b.add(row_a[m], at), "f32"))
            for cell, column in zip(sums[m], columns):
                cell.set(s.fma(column, x, cell.get()))
        fetched = b.lshr(b.mul(i, share), s.i64(16))
        for line in range(2):
            s.prefetch(b.add(b.add(ahead, b.mul(fetched, ahead_row)), s.i64(64 * line)))
    for v in range(2):
        with b.if_then(b.icmp_signed("==", s.i64(wide), s.i64(1)) if v else ir.Constant(ir.IntType(1), 1)):
            with b.if_then(b.icmp_signed("==", s.i64(add), s.i64(1))):
                for m in range(rows):
                    sums[m][v].set(sums[m][v].get() + s.load(row_c[m], "f32", LANES * v))
            for m in range(rows):
                s.store(row_c[m], sums[m][v].get(), LANES * v)


@intrinsic
def _copy_row(typingctx: Any, source: Any, target: Any, wide: Any) -> Any:
    """A row of a panel: 32 floats, or 16 and zeros where not `wide`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s = Simd(builder)
        source_, target_, wide_ = args
        s.store(target_, s.load(source_, "f32"))
        with builder.if_then(builder.icmp_signed("==", s.i64(wide_), s.i64(1))):
            s.store(target_, s.load(source_, "f32", LANES), LANES)
        return context.get_dummy_value()

    return types.void(source, target, wide), codegen


@njit(cache=True)
def gemm(
    m: int, n: int, k: int, a: int, a_row: int, a_k: int, b: int, b_row: int,
    c: int, c_tail: int, split: int, c_row: int, add: int,
) -> None:  # fmt: skip
    """C (m, n) = A (m, k) B (k, n), added to C where `add` is 1. n is a multiple of 16; strides are in bytes.

    Element (i, j) of A is at a + i·a_row + j·a_k; rows of B and C are contiguous, b_row and c_row apart. The first
    `split` rows of C are at c, the rest at c_tail.
    """
    panel = np.zeros(_K_BLOCK * COLUMNS, np.float32)
    packed: Any = np.int64(panel.ctypes.data)
    for first_k in range(0, k, _K_BLOCK):
        depth = min(_K_BLOCK, k - first_k)
        adds = 1 if first_k > 0 else add
        for first_m in range(0, m, _M_BLOCK):
            last_m = min(first_m + _M_BLOCK, m)
            for column in range(0, n, COLUMNS):
                wide = 1 if column + COLUMNS <= n else 0
                source = b + first_k * b_row + column * 4
                fresh = source if wide == 1 else 0  # the first tile of rows packs the panel that it reads
                for i in range(0 if fresh else depth):
                    _copy_row(source + i * b_row, packed + i * COLUMNS * 4, wide)
                # what the next panel is made of: these rows of B further on, or the next rows from their start
                if column + COLUMNS < n:
                    ahead, step = source + COLUMNS * 4, b_row
                elif first_k + depth < k:
                    ahead, step = b + (first_k + depth) * b_row, b_row
                else:
                    ahead, step = packed, 0
                tiles = -(-(last_m - first_m) // ROWS)
                share, tile = 65536 // tiles, 0
                row = first_m
                while row < last_m:
                    head = row < split
                    rows = min(ROWS, (min(last_m, split) if head else last_m) - row)
                    target = c + row * c_row if head else c_tail + (row - split) * c_row
                    _micro(
                        rows, depth, a + row * a_row + first_k * a_k, a_row, a_k, fresh, b_row,
                        packed, target + column * 4, c_row, wide, adds,
                        ahead + tile * depth // tiles * step, step, share,
                    )  # fmt: skip
                    row += rows
                    tile += 1
                    fresh = 0
