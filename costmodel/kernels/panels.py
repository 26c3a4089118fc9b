"""What the integer GEMMs share: rows of activations, panels of 64 weight rows, and the epilogue in registers.

y[m, n] = row_scale[m] · column_scale[n] · sum_k x[m, k] · W[n, k], exact integers up to the scales. Weights are packed
once into panels of 64 rows, `[N/64][K/4][4 vectors][16 lanes][4 k]`: one sequential stream for any number of rows, no
horizontal sums. Activations are int8 (one row a token), or 16 bits as two int8 rows, x = 256·hi + lo, which run as two
rows on the same weights and are joined in the epilogue (`pair`).
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

from typing import Any

import torch
from numba import types
from torch import Tensor

from ..costs.quantized import PANEL
from ..errors import CostmodelError
from .simd import LANES, Simd, Vec, intrinsic, require

__all__ = [
    "ADD", "FLOAT", "INT8", "PANEL", "VECTORS", "check_gemm", "dense_rows", "epilogue", "pack_rows",
    "split16", "unpack_rows", "xor_rows",
]  # fmt: skip

require(1)

VECTORS = PANEL // LANES
FLOAT, ADD, INT8 = 0, 1, 2  # epilogues: store fp32; add to what is there; round, clamp and store int8


def pack_rows(w: Tensor) -> Tensor:
    """(N, K) bytes to panels (ceil(N/64), ceil(K/4), 4, 16, 4), padded with zeros."""
    n, k = w.shape
    padded = w.new_zeros(-(-n // PANEL) * PANEL, -(-k // 4) * 4)
    padded[:n, :k] = w
    lanes = padded.reshape(-1, VECTORS, LANES, padded.shape[1] // 4, 4)
    return lanes.permute(0, 3, 1, 2, 4).contiguous()


def unpack_rows(panels: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `pack_rows`."""
    lanes = panels.permute(0, 2, 3, 1, 4)
    return lanes.reshape(panels.shape[0] * PANEL, panels.shape[1] * 4)[:n, :k].contiguous()


def split16(x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 (M, K) to (M, 2, K) int8 with x ≈ scale·(256·hi + lo) and the scales (M,): 16 bits, dynamic a token.

    hi is in [-127, 127] and lo in [-128, 127], so that |q| <= 32512 leaves room for the carry of lo.
    """
    scale = x.abs().amax(-1).clamp_min(1e-30) / 32512.0
    q = torch.round(x / scale[:, None]).to(torch.int32)
    lo = ((q + 128) & 255) - 128
    return torch.stack([(q - lo) >> 8, lo], 1).to(torch.int8), scale


def check_gemm(
    x: Tensor, panels: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool
) -> tuple[int, int]:
    """Rows of the output and elements from one row scale to the next, or an error that says what does not fit."""
    if x.dtype != torch.int8 or scale.shape[0] < columns or panels.shape[0] * PANEL < columns:
        raise CostmodelError(
            f"an integer GEMM takes int8 rows and a scale a column: given {x.dtype} {tuple(x.shape)}, "
            f"{tuple(scale.shape)} scales and {panels.shape[0]} panels of {PANEL} for {columns} columns"
        )
    rows = x.numel() // (x.shape[-1] * (2 if pair else 1))
    if row_scale.numel() not in (1, rows):
        raise CostmodelError(f"{row_scale.numel()} row scales for {rows} rows: give one, or one a row")
    return rows, int(row_scale.numel() != 1)


def dense_rows(x: Tensor) -> tuple[Tensor, int]:
    """x whose rows lie at one stride, and that stride in elements; copied only if they do not."""
    if x.stride(-1) == 1 and all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(x.dim() - 2)):
        return x, x.stride(-2) if x.dim() > 1 else x.shape[-1]
    return x.contiguous(), x.shape[-1]


@intrinsic
def xor_rows(typingctx, source, target, k, padded):
    """target[0:padded] = source[0:k] ^ 0x80 as bytes (int8 to unsigned with zero point 128), the rest 0x80."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        source, target, k, padded = args
        whole = builder.and_(k, s.i64(-64))
        with s.loop(0, whole, 64) as i:
            s.store(target, s.load(source, "i8", i, 64) ^ -128, i)
        with s.loop(whole, padded, 64) as i:
            inside, room = s.first_lanes(builder.sub(k, i), 64), s.first_lanes(builder.sub(padded, i), 64)
            s.store_masked(target, s.load_masked(source, "i8", inside, i) ^ -128, room, i)
        return context.get_dummy_value()

    return types.void(source, target, k, padded), codegen


def epilogue(
    s: Simd, rows: list[list[Vec]], pair: bool, row_scale: Any, row_step: Any, column_scale: Any, mode: Any, out: Any,
    stride: Any, left: Any,
) -> None:  # fmt: skip
    """Scale the fp32 sums of some rows by four vectors and store them.

    Args:
        rows: [rows][4] sums; with `pair`, rows 2i and 2i + 1 are the high and low halves of one output row.
        row_scale, row_step: address of the fp32 scale of the first output row, elements from row to row (0: one scale).
        column_scale: address of the fp32 scales of these 64 columns.
        mode: FLOAT, ADD or INT8 (int64 IR value).
        out, stride: address of the first element, elements from row to row.
        left: columns that exist from here on; below 64 the stores are masked.
    """
    builder = s.builder
    if pair:
        rows = [[s.fma(hi, 256.0, lo) for hi, lo in zip(rows[i], rows[i + 1])] for i in range(0, len(rows), 2)]
    scales = [s.load(column_scale, "f32", v * LANES) for v in range(VECTORS)]
    scaled = [
        [
            acc * (scales[v] * s.splat(s.scalar(row_scale, "f32", builder.mul(row_step, s.i64(m)))))
            for v, acc in enumerate(row)
        ]
        for m, row in enumerate(rows)
    ]
    whole = builder.icmp_signed(">=", left, s.i64(PANEL))

    def each(store: Any) -> None:
        for m, row in enumerate(scaled):
            for v, value in enumerate(row):
                at = builder.add(builder.mul(s.i64(m), stride), s.i64(v * LANES))
                store(value, at, v)

    def put(value: Vec, at: Any, v: int) -> None:
        s.store(out, value, at)

    def put_masked(value: Vec, at: Any, v: int) -> None:
        s.store_masked(out, value, s.first_lanes(builder.sub(left, s.i64(v * LANES))), at)

    def add(value: Vec, at: Any, v: int) -> None:
        s.store(out, value + s.load(out, "f32", at), at)

    def add_masked(value: Vec, at: Any, v: int) -> None:
        mask = s.first_lanes(builder.sub(left, s.i64(v * LANES)))
        s.store_masked(out, value + s.load_masked(out, "f32", mask, at), mask, at)

    def put_int8(value: Vec, at: Any, v: int) -> None:
        s.store(out, s.to_i8(value), at)

    def put_int8_masked(value: Vec, at: Any, v: int) -> None:
        s.store_masked(out, s.to_i8(value), s.first_lanes(builder.sub(left, s.i64(v * LANES))), at)

    for code, full, masked in ((FLOAT, put, put_masked), (ADD, add, add_masked), (INT8, put_int8, put_int8_masked)):
        chosen = builder.icmp_signed("==", mode, s.i64(code))
        with builder.if_then(builder.and_(chosen, whole)):
            each(full)
        with builder.if_then(builder.and_(chosen, builder.not_(whole))):
            each(masked)
