"""One token through a whole quantized Mamba-1 block, one op: what generation runs.

`costmodel::mamba_step(residual, conv_state, ssm_state, weights, rank, eps, int4, wide, rotate)`: residual fp32 (B, d)
and the states are updated in place; `weights` are the block's tensors in the order of `WEIGHTS`. `int4`: in_proj and
out_proj are 4-bit (aux is their group scale) or 8-bit (aux is their row sum); `wide`: activations are fp32 split into
16 bits for each GEMM (W4A16) or static int8; `rotate`: the Hadamard transform of y, folded into out_proj.

The functions are the ones of the prefill ops, so that a prefill equals its steps bit for bit; fifty small ops would
cost more than the work (KERNELS.md §4).
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

from ..costs.quantized import mamba_step_bytes
from . import Weights, register
from .conv_int8 import convolve
from .gemm_int4 import multiply_int4
from .gemm_int8 import multiply_int8
from .hadamard import hadamard_order, quantize_row, rotate_row, split_row
from .linear_f16 import store_f32
from .panels import ADD, FLOAT, INT8
from .rms_norm import norm_row
from .scan_int8 import scan, state_kind
from .selective_scan import CHUNK
from .simd import LANES, require
from .ssd_scan import f32_at

__all__ = ["WEIGHTS", "aligned", "mamba_step", "project"]

require(1)

# in: in_proj, x: x_proj, dt: dt_proj, out: out_proj; _w panels, _aux row sums or group scales, _scale columns;
# statics: the static input scales of in_proj, x_proj, dt_proj, out_proj; scales: of delta, B, C, z in the scan
WEIGHTS = (
    "norm", "in_w", "in_aux", "in_scale", "conv_w", "conv_scale", "conv_bias", "conv_inverse", "x_w", "x_aux",
    "x_scale", "dt_w", "dt_aux", "dt_scale", "u_scale", "scales", "a2", "D", "dt_bias", "state_scale", "out_w",
    "out_aux", "out_scale", "statics",
)  # fmt: skip


@njit(cache=True, nogil=True)
def project(x, x_row, work, w, aux, scale, row_scale, row_step, mode, out, rows, k, columns, pair, int4, group):
    """An integer GEMM with 4-bit or 8-bit weights; rows of 4-bit ones must be dense."""
    if int4:
        multiply_int4(x, work, w, aux, scale, row_scale, row_step, mode, out, rows, k, group, columns, pair)
    else:
        multiply_int8(x, x_row, work, w, aux, scale, row_scale, row_step, mode, out, rows, k, columns, pair)


@njit(cache=True, nogil=True)
def aligned(address):
    """The next multiple of 64 bytes."""
    return (address + 63) // 64 * 64


@njit(cache=True, nogil=True)
def _step(
    residual, conv_state, ssm_state, p, work, batch, d, width, taps, rank, states, kind, in_group,
    out_group, eps, int4, wide, order,
):  # fmt: skip
    """p: addresses in the order of WEIGHTS; work: `mamba_step_bytes` bytes."""
    (norm, in_w, in_aux, in_scale, conv_w, conv_scale, conv_bias, conv_inverse, x_w, x_aux, x_scale, dt_w, dt_aux,
     dt_scale, u_scale, scales, a2, skip, dt_bias, state_scale, out_w, out_aux, out_scale, static) = p  # fmt: skip
    size = 4 if wide else 1
    mode = FLOAT if wide else INT8
    narrow = rank + 2 * states
    rows_q = aligned(work)  # int8 GEMM inputs, one or two a row
    rows_s = aligned(rows_q + 2 * batch * width)  # their scales
    floats = aligned(rows_s + 4 * batch)  # one row of fp32
    xz = aligned(floats + 4 * width)
    u = aligned(xz + 2 * size * batch * width)
    dbc = aligned(u + size * batch * width)
    delta = aligned(dbc + size * batch * narrow)
    y = aligned(delta + size * batch * width)
    panel = aligned(y + 4 * batch * width)
    bc = aligned(panel + 4 * LANES * states)
    gemm = aligned(bc + 8 * CHUNK * states)

    for b in range(batch):
        norm_row(residual + 4 * b * d, norm, d, eps, floats)
        if wide:
            at = rows_q + 2 * b * d
            store_f32(rows_s + 4 * b, split_row(floats, d, at, at + d))
        else:
            quantize_row(floats, d, 1.0 / f32_at(static), rows_q + b * d)
    scale, step = (rows_s, 1) if wide else (static, 0)
    project(rows_q, d, gemm, in_w, in_aux, in_scale, scale, step, mode, xz, batch, d, 2 * width, wide, int4, in_group)
    convolve(
        xz, 2 * width, 2 * width, conv_w, conv_scale, conv_bias, conv_inverse, conv_state, u, batch, 1, width, taps,
        1 - wide,
    )  # fmt: skip
    if wide:
        for b in range(batch):
            at = rows_q + 2 * b * width
            store_f32(rows_s + 4 * b, split_row(u + 4 * b * width, width, at, at + width))
        multiply_int8(rows_q, width, gemm, x_w, x_aux, x_scale, rows_s, 1, mode, dbc, batch, width, narrow, 1)
        for b in range(batch):
            at = rows_q + 2 * b * rank
            store_f32(rows_s + 4 * b, split_row(dbc + 4 * b * narrow, rank, at, at + rank))
        multiply_int8(rows_q, rank, gemm, dt_w, dt_aux, dt_scale, rows_s, 1, mode, delta, batch, rank, width, 1)
    else:
        multiply_int8(u, width, gemm, x_w, x_aux, x_scale, static + 4, 0, mode, dbc, batch, width, narrow, 0)
        multiply_int8(dbc, narrow, gemm, dt_w, dt_aux, dt_scale, static + 8, 0, mode, delta, batch, rank, width, 0)
    scan(
        u, width, width, delta, width, width, xz + size * width, 2 * width, 2 * width,
        dbc + size * rank, dbc + size * (rank + states), narrow, narrow, u_scale, scales, a2, skip, dt_bias,
        ssm_state, state_scale, kind, panel, bc, y, batch, 1, width, states, 1 - wide,
    )  # fmt: skip
    for b in range(batch):
        row = y + 4 * b * width
        rotate_row(row, width, order)
        if wide:
            at = rows_q + 2 * b * width
            store_f32(rows_s + 4 * b, split_row(row, width, at, at + width))
        else:
            quantize_row(row, width, 1.0 / f32_at(static + 12), rows_q + b * width)
    scale = rows_s if wide else static + 12
    project(
        rows_q,
        width,
        gemm,
        out_w,
        out_aux,
        out_scale,
        scale,
        step,
        ADD,
        residual,
        batch,
        width,
        d,
        wide,
        int4,
        out_group,
    )


def _run(
    residual: Tensor, conv_state: Tensor, ssm_state: Tensor, weights: list[Tensor], rank: int, eps: float, int4: bool,
    wide: bool, rotate: bool,
) -> None:  # fmt: skip
    batch, d = residual.shape
    width, states = ssm_state.shape[1] * LANES, ssm_state.shape[2]
    in_group, out_group = (d // weights[2].shape[1], width // weights[21].shape[1]) if int4 else (0, 0)
    work = residual.new_empty(mamba_step_bytes(batch, d, width, rank, states, wide), dtype=torch.int8)
    addresses = weights.addresses if isinstance(weights, Weights) else tuple([w.data_ptr() for w in weights])
    _step(
        residual.data_ptr(), conv_state.data_ptr(), ssm_state.data_ptr(), addresses, work.data_ptr(),
        batch, d, width, conv_state.shape[1] + 1, rank, states, state_kind(ssm_state), in_group,
        out_group, eps, int(int4), int(wide), hadamard_order(width) if rotate else 0,
    )  # fmt: skip


def _fake(
    residual: Tensor, conv_state: Tensor, ssm_state: Tensor, weights: list[Tensor], rank: int, eps: float, int4: bool,
    wide: bool, rotate: bool,
) -> None:  # fmt: skip
    return None


mamba_step = register(
    "mamba_step(Tensor(a!) residual, Tensor(b!) conv_state, Tensor(c!) ssm_state, Tensor[] weights, int rank,"
    " float eps, bool int4, bool wide, bool rotate) -> ()",
    _run,
    _fake,
    direct=True,
)
