"""4-bit GEMM and GEMV: `costmodel::gemm_int4(x, panels, group_scale, scale, row_scale, columns, pair)`.

x (…, K) int8 (W4A8), or (…, 2, K) with `pair` (W4A16: 16-bit activations as two rows on the same weights). Weights are
q - 8 with q in 0 … 15, packed by `pack_int4` into (N/64, K/4, 2, 64) bytes, 0.5 bytes a weight; each group of K has a
scale an output, fp16 (N/64, K/group, 64), relative to `scale` fp32 (N'). Returns fp32 (…, N); `gemm_int4_quantized` and
`gemm_int4_add` as in gemm_int8.

The nibbles are the unsigned operand as they are (two ANDs and a shift for 128 weights); the sums of a group start at
-8·(sum of its activations) and are exact, then scaled and added in fp32.
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
from .dot import dot_u8s8
from .gemm_int8 import output_shape
from .panels import ADD, FLOAT, INT8, PANEL, VECTORS, check_gemm, epilogue, pack_rows, unpack_rows
from .simd import LANES, Simd, intrinsic, require

__all__ = ["gemm_int4", "gemm_int4_add", "gemm_int4_quantized", "multiply_int4", "pack_int4", "unpack_int4"]

require(1)

ALIGN = 64  # a group is a multiple of it: its activations are summed by whole vectors


def pack_int4(q: Tensor) -> Tensor:
    """uint8 (N, K) of 0 … 15 to panels (N/64, K/4, 2, 64): low nibbles are vectors 0 and 2, high ones 1 and 3."""
    rows = pack_rows(q)
    if q.shape[0] % PANEL:  # padded columns are q = 8, zero
        rows[-1].permute(1, 2, 0, 3).flatten(0, 1)[q.shape[0] % PANEL :] = 8
    low, high = rows[:, :, 0::2], rows[:, :, 1::2]
    return (low | (high << 4)).flatten(3).contiguous()


def unpack_int4(panels: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `pack_int4`."""
    low, high = panels & 15, panels >> 4
    vectors = torch.stack([low, high], 3).reshape(*panels.shape[:2], VECTORS, LANES, 4)
    return unpack_rows(vectors, n, k)


@intrinsic
def _group_sums(typingctx, x, k, group, out):
    """out[g] = -8 · sum of the int8 activations of group g."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, k, group, out = args
        ones = s.splat(1, 64, "i8")
        with s.loop(0, builder.sdiv(k, group)) as g:
            first = builder.mul(g, group)
            acc = s.cell(s.splat(0, element="i32"))
            with s.loop(0, group, 64) as i:
                acc.set(dot_u8s8(s, acc.get(), ones, s.load(x, "i8", builder.add(first, i), 64)))
            total = s.sum(acc.get() * -8)
            builder.store(total, s.pointer(out, "i32", g))
        return context.get_dummy_value()

    return types.void(x, k, group, out), codegen


@intrinsic(prefer_literal=True)
def _tile(
    typingctx, rows, pair, x, sums, k, group, panel, group_scale, row_scale, row_step, scale, mode, out, stride, left
):  # fmt: skip
    """`rows` (literal) rows of x by one panel; `pair` (literal) joins two rows to one."""
    count, joined = rows.literal_value, bool(pair.literal_value)

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        _, _, x, sums, k, group, panel, group_scale, row_scale, row_step, scale, mode, out, stride, left = args
        groups = builder.sdiv(k, group)
        totals = [[s.cell(s.splat(0.0)) for _ in range(VECTORS)] for _ in range(count)]
        parts = [[s.cell(s.splat(0, element="i32")) for _ in range(VECTORS)] for _ in range(count)]
        with s.loop(0, groups) as g:
            first = builder.mul(g, group)
            for m in range(count):
                start = s.splat(s.scalar(sums, "i32", builder.add(g, builder.mul(groups, s.i64(m)))))
                for cell in parts[m]:
                    cell.set(start)
            bases = [s.address(x, "i8", builder.add(first, builder.mul(k, s.i64(m)))) for m in range(count)]
            weights = s.address(panel, "u8", builder.mul(first, s.i64(PANEL // 2)))
            with s.loop(0, group, 4) as i:
                at = builder.mul(i, s.i64(PANEL // 2))
                raw = [s.load(weights, "i32", builder.sdiv(at, s.i64(4)), LANES)]
                raw.append(s.load(s.address(weights, "u8", 64), "i32", builder.sdiv(at, s.i64(4)), LANES))
                nibbles = [half for r in raw for half in (r & 0x0F0F0F0F, (r >> 4) & 0x0F0F0F0F)]
                for m in range(count):
                    activations = s.splat(s.word(builder.add(bases[m], i)))
                    for v in range(VECTORS):
                        parts[m][v].set(dot_u8s8(s, parts[m][v].get(), nibbles[v], activations))
            scales = builder.mul(g, s.i64(PANEL))
            for v in range(VECTORS):
                relative = s.load_f32(group_scale, "f16", builder.add(scales, s.i64(v * LANES)))
                for m in range(count):
                    totals[m][v].set(s.fma(s.to_f32(parts[m][v].get(), "i32"), relative, totals[m][v].get()))
        floats = [[cell.get() for cell in row] for row in totals]
        epilogue(s, floats, joined, row_scale, row_step, scale, mode, out, stride, left)
        return context.get_dummy_value()

    arguments = (rows, pair, x, sums, k, group, panel, group_scale, row_scale, row_step, scale, mode, out, stride, left)
    return types.void(*arguments), codegen


@njit(cache=True, nogil=True)
def multiply_int4(x, sums, panels, group_scale, scale, row_scale, row_step, mode, out, rows, k, group, columns, pair):
    """All addresses; `rows` output rows; sums: scratch of an int32 for each row (twice with pair) and group."""
    groups = k // group
    for m in range(rows * (1 + pair)):
        _group_sums(x + m * k, k, group, sums + 4 * m * groups)
    size = 1 if mode == INT8 else 4
    for n in range(0, columns, PANEL):
        w, g, c, left = panels + n * k // 2, group_scale + 2 * n * groups, scale + 4 * n, columns - n
        m = 0
        while m < rows:
            target, r = out + size * (m * columns + n), row_scale + 4 * m * row_step
            at = m * (1 + pair)
            a, b = x + at * k, sums + 4 * at * groups
            if pair:
                if rows - m >= 2:
                    _tile(4, 1, a, b, k, group, w, g, r, row_step, c, mode, target, columns, left)
                    m += 2
                else:
                    _tile(2, 1, a, b, k, group, w, g, r, row_step, c, mode, target, columns, left)
                    m += 1
            elif rows - m >= 4:
                _tile(4, 0, a, b, k, group, w, g, r, row_step, c, mode, target, columns, left)
                m += 4
            else:
                _tile(1, 0, a, b, k, group, w, g, r, row_step, c, mode, target, columns, left)
                m += 1


def _run(
    x: Tensor, panels: Tensor, group_scale: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool,
    mode: int, out: Tensor,
) -> Tensor:  # fmt: skip
    rows, row_step = check_gemm(x, panels, scale, row_scale, columns, pair)
    x, k = x.contiguous(), x.shape[-1]
    groups = group_scale.shape[1]
    if k % groups or k // groups % ALIGN:
        raise CostmodelError(f"{groups} groups of K = {k}: a group must be a multiple of {ALIGN} that divides K")
    sums = x.new_empty(rows * (1 + pair) * groups, dtype=torch.int32)
    multiply_int4(
        x.data_ptr(), sums.data_ptr(), panels.data_ptr(), group_scale.data_ptr(), scale.data_ptr(),
        row_scale.data_ptr(), row_step, mode, out.data_ptr(), rows, k, k // groups, columns, int(pair),
    )  # fmt: skip
    return out


def _float_run(
    x: Tensor, panels: Tensor, group_scale: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool
) -> Tensor:
    out = x.new_empty(output_shape(x, columns, pair), dtype=torch.float32)
    return _run(x, panels, group_scale, scale, row_scale, columns, pair, FLOAT, out)


def _quantized_run(
    x: Tensor, panels: Tensor, group_scale: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool
) -> Tensor:
    out = x.new_empty(output_shape(x, columns, pair))
    return _run(x, panels, group_scale, scale, row_scale, columns, pair, INT8, out)


def _add_run(
    x: Tensor, panels: Tensor, group_scale: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool,
    out: Tensor,
) -> None:  # fmt: skip
    _run(x, panels, group_scale, scale, row_scale, columns, pair, ADD, out)


def _float_fake(
    x: Tensor, panels: Tensor, group_scale: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool
) -> Tensor:
    return x.new_empty(output_shape(x, columns, pair), dtype=torch.float32)


def _quantized_fake(
    x: Tensor, panels: Tensor, group_scale: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool
) -> Tensor:
    return x.new_empty(output_shape(x, columns, pair))


def _add_fake(
    x: Tensor, panels: Tensor, group_scale: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool,
    out: Tensor,
) -> None:  # fmt: skip
    return None


_ARGUMENTS = "(Tensor x, Tensor panels, Tensor group_scale, Tensor scale, Tensor row_scale, int columns, bool pair"
gemm_int4 = register(f"gemm_int4{_ARGUMENTS}) -> Tensor", _float_run, _float_fake, direct=True)
gemm_int4_quantized = register(
    f"gemm_int4_quantized{_ARGUMENTS}) -> Tensor", _quantized_run, _quantized_fake, direct=True
)
gemm_int4_add = register(f"gemm_int4_add{_ARGUMENTS}, Tensor(a!) out) -> ()", _add_run, _add_fake, direct=True)
