"""int8 GEMM and GEMV, exact: `costmodel::gemm_int8(x, panels, rowsum, scale, row_scale, columns, pair)`.

x (…, K) int8, or (…, 2, K) with `pair` (16-bit activations as two rows); panels by `pack_rows`; rowsum int32 (N') and
scale fp32 (N') for the padded columns; row_scale fp32 (rows) or (1). Returns fp32 (…, N). `gemm_int8_quantized` stores
int8, `gemm_int8_add` adds to its last argument in place.

The instruction multiplies unsigned by signed bytes: x is biased by 128 on its way in and the sums start at
-128·(sum of the weight row). Up to 6 rows by 64 columns of sums stay in registers.
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

import torch
from numba import njit, types
from torch import Tensor

from . import register
from .dot import dot_u8s8
from .panels import ADD, FLOAT, INT8, PANEL, VECTORS, check_gemm, dense_rows, epilogue, pack_rows, xor_rows
from .simd import LANES, Simd, intrinsic, require

__all__ = ["gemm_int8", "gemm_int8_add", "gemm_int8_quantized", "multiply_int8", "pack_int8"]

require(1)


def pack_int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """int8 (N, K) to panels and the row sums that undo the bias, int32 (64·ceil(N/64),)."""
    panels = pack_rows(w)
    return panels, panels.sum((1, 4), dtype=torch.int32).flatten()


@intrinsic(prefer_literal=True)
def _tile(typingctx, rows, pair, x, k, panel, rowsum, row_scale, row_step, scale, mode, out, stride, left):
    """`rows` (literal) rows of x by one panel; `pair` (literal) joins two rows to one."""
    count, joined = rows.literal_value, bool(pair.literal_value)

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        _, _, x, k, panel, rowsum, row_scale, row_step, scale, mode, out, stride, left = args
        starts = [s.load(rowsum, "i32", v * LANES) * -128 for v in range(VECTORS)]
        sums = [[s.cell(start) for start in starts] for _ in range(count)]
        bases = [s.address(x, "u8", builder.mul(k, s.i64(m))) for m in range(count)]
        with s.loop(0, k, 4) as i:
            weights = builder.mul(i, s.i64(PANEL))
            w = [s.load(panel, "i8", builder.add(weights, s.i64(64 * v)), 64) for v in range(VECTORS)]
            for m in range(count):
                activations = s.splat(s.word(builder.add(bases[m], i)))
                for v in range(VECTORS):
                    sums[m][v].set(dot_u8s8(s, sums[m][v].get(), activations, w[v]))
        floats = [[s.to_f32(cell.get(), "i32") for cell in row] for row in sums]
        epilogue(s, floats, joined, row_scale, row_step, scale, mode, out, stride, left)
        return context.get_dummy_value()

    return types.void(rows, pair, x, k, panel, rowsum, row_scale, row_step, scale, mode, out, stride, left), codegen


@njit(cache=True, nogil=True)
def multiply_int8(x, x_row, scratch, panels, rowsum, scale, row_scale, row_step, mode, out, rows, k, columns, pair):
    """Addresses; x_row bytes a row; `rows` output rows; scratch: those (twice with pair) of ceil4(k) bytes."""
    padded = (k + 3) // 4 * 4
    for m in range(rows * (1 + pair)):
        xor_rows(x + m * x_row, scratch + m * padded, k, padded)
    size = 1 if mode == INT8 else 4
    for n in range(0, columns, PANEL):
        w, sums, scales, left = panels + n * padded, rowsum + 4 * n, scale + 4 * n, columns - n
        m = 0
        while m < rows:
            target = out + size * (m * columns + n)
            if pair:
                a, r = scratch + 2 * m * padded, row_scale + 4 * m * row_step
                if rows - m >= 3:
                    _tile(6, 1, a, padded, w, sums, r, row_step, scales, mode, target, columns, left)
                    m += 3
                else:
                    _tile(2, 1, a, padded, w, sums, r, row_step, scales, mode, target, columns, left)
                    m += 1
            else:
                a, r = scratch + m * padded, row_scale + 4 * m * row_step
                if rows - m >= 6:
                    _tile(6, 0, a, padded, w, sums, r, row_step, scales, mode, target, columns, left)
                    m += 6
                elif rows - m >= 2:
                    _tile(2, 0, a, padded, w, sums, r, row_step, scales, mode, target, columns, left)
                    m += 2
                else:
                    _tile(1, 0, a, padded, w, sums, r, row_step, scales, mode, target, columns, left)
                    m += 1


def _run(
    x: Tensor, panels: Tensor, rowsum: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool, mode: int,
    out: Tensor,
) -> Tensor:  # fmt: skip
    rows, row_step = check_gemm(x, panels, scale, row_scale, columns, pair)
    k = x.shape[-1]
    x, x_row = dense_rows(x)
    scratch = x.new_empty(rows * (1 + pair) * (-(-k // 4) * 4))
    multiply_int8(
        x.data_ptr(), x_row, scratch.data_ptr(), panels.data_ptr(), rowsum.data_ptr(), scale.data_ptr(),
        row_scale.data_ptr(), row_step, mode, out.data_ptr(), rows, k, columns, int(pair),
    )  # fmt: skip
    return out


def output_shape(x: Tensor, columns: int, pair: bool) -> tuple[int, ...]:
    """(…, N)."""
    return (*x.shape[: -2 if pair else -1], columns)


def _float_run(
    x: Tensor, panels: Tensor, rowsum: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool
) -> Tensor:
    out = x.new_empty(output_shape(x, columns, pair), dtype=torch.float32)
    return _run(x, panels, rowsum, scale, row_scale, columns, pair, FLOAT, out)


def _quantized_run(
    x: Tensor, panels: Tensor, rowsum: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool
) -> Tensor:
    out = x.new_empty(output_shape(x, columns, pair))
    return _run(x, panels, rowsum, scale, row_scale, columns, pair, INT8, out)


def _add_run(
    x: Tensor, panels: Tensor, rowsum: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool, out: Tensor
) -> None:
    _run(x, panels, rowsum, scale, row_scale, columns, pair, ADD, out)


def _float_fake(
    x: Tensor, panels: Tensor, rowsum: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool
) -> Tensor:
    return x.new_empty(output_shape(x, columns, pair), dtype=torch.float32)


def _quantized_fake(
    x: Tensor, panels: Tensor, rowsum: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool
) -> Tensor:
    return x.new_empty(output_shape(x, columns, pair))


def _add_fake(
    x: Tensor, panels: Tensor, rowsum: Tensor, scale: Tensor, row_scale: Tensor, columns: int, pair: bool, out: Tensor
) -> None:
    return None


_ARGUMENTS = "(Tensor x, Tensor panels, Tensor rowsum, Tensor scale, Tensor row_scale, int columns, bool pair"
gemm_int8 = register(f"gemm_int8{_ARGUMENTS}) -> Tensor", _float_run, _float_fake, direct=True)
gemm_int8_quantized = register(
    f"gemm_int8_quantized{_ARGUMENTS}) -> Tensor", _quantized_run, _quantized_fake, direct=True
)
gemm_int8_add = register(f"gemm_int8_add{_ARGUMENTS}, Tensor(a!) out) -> ()", _add_run, _add_fake, direct=True)
