"""One token through a whole quantized Mamba-2 block, one op: what generation runs.

`costmodel::mamba2_step(residual, conv_state, ssm_state, weights, eps, low, high, int4, wide, rotate)`: residual fp32
(B, d) and the states are updated in place; `weights` are the block's tensors in the order of `WEIGHTS`. Flags as in
mamba_step; low and high bound dt.
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

from ..costs.quantized import mamba2_step_bytes
from . import Weights, register
from .conv_int8 import convolve
from .hadamard import hadamard_order, quantize_row, rotate_row, split_row
from .linear_f16 import store_f32
from .mamba_step import aligned, project
from .panels import ADD, FLOAT, INT8
from .rms_norm import gate_row, norm_row
from .scan_int8 import state_kind
from .simd import require
from .ssd_int8 import ssd
from .ssd_scan import f32_at

__all__ = ["WEIGHTS", "mamba2_step"]

require(1)

# statics: the static input scales of in_proj and out_proj, and the scale of z
WEIGHTS = (
    "norm", "in_w", "in_aux", "in_scale", "conv_w", "conv_scale", "conv_bias", "conv_inverse", "x_scale", "delta_scale",
    "b_scale", "c_scale", "a2", "D", "dt_bias", "state_scale", "state_rows", "gate_norm", "out_w", "out_aux",
    "out_scale", "statics",
)  # fmt: skip


@njit(cache=True, nogil=True)
def _step(
    residual, conv_state, ssm_state, weights, work, batch, d, heads, p, groups, states, taps, kind, scale_rows,
    in_group, out_group, eps, low, high, int4, wide, order,
):  # fmt: skip
    """weights: addresses in the order of WEIGHTS; work: `mamba2_step_bytes` bytes."""
    (norm, in_w, in_aux, in_scale, conv_w, conv_scale, conv_bias, conv_inverse, x_scale, delta_scale, b_scale, c_scale,
     a2, skip, dt_bias, state_scale, state_rows, gate_norm, out_w, out_aux, out_scale, statics) = weights  # fmt: skip
    width, bc = heads * p, groups * states
    channels = width + 2 * bc
    outputs = width + channels + heads
    size = 4 if wide else 1
    mode = FLOAT if wide else INT8
    rows_q = aligned(work)
    rows_s = aligned(rows_q + 2 * batch * max(width, d))
    floats = aligned(rows_s + 4 * batch)
    projected = aligned(floats + 4 * d)
    u = aligned(projected + size * batch * outputs)
    y = aligned(u + size * batch * channels)
    scratch = aligned(y + 4 * batch * width)
    gemm = aligned(scratch + 4 * (width + 2 * bc + 2 * heads + 2 * scale_rows * states))  # as ssd_work_floats

    for i in range(batch):
        norm_row(residual + 4 * i * d, norm, d, eps, floats)
        if wide:
            at = rows_q + 2 * i * d
            store_f32(rows_s + 4 * i, split_row(floats, d, at, at + d))
        else:
            quantize_row(floats, d, 1.0 / f32_at(statics), rows_q + i * d)
    scale, step = (rows_s, 1) if wide else (statics, 0)
    project(
        rows_q, d, gemm, in_w, in_aux, in_scale, scale, step, mode, projected, batch, d, outputs, wide, int4, in_group
    )
    convolve(
        projected + size * width, outputs, outputs, conv_w, conv_scale, conv_bias, conv_inverse, conv_state, u,
        batch, 1, channels, taps, 1 - wide,
    )  # fmt: skip
    ssd(
        u, channels, channels, projected + size * (width + channels), outputs, outputs, u + size * width,
        u + size * (width + bc), channels, channels, x_scale, delta_scale, b_scale, c_scale, a2, skip, dt_bias, low,
        high, ssm_state, state_scale, state_rows, scale_rows, kind, scratch, y, batch, 1, heads, p, groups, states,
        1 - wide,
    )  # fmt: skip
    part = width // groups
    z_scale = f32_at(statics + 8)
    for i in range(batch):
        row = y + 4 * i * width
        gate_row(row, projected + size * i * outputs, width, z_scale, 1 - wide, row)
        for g in range(groups):
            norm_row(row + 4 * g * part, gate_norm + 4 * g * part, part, eps, row + 4 * g * part)
        rotate_row(row, width, order)
        if wide:
            at = rows_q + 2 * i * width
            store_f32(rows_s + 4 * i, split_row(row, width, at, at + width))
        else:
            quantize_row(row, width, 1.0 / f32_at(statics + 4), rows_q + i * width)
    scale = rows_s if wide else statics + 4
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
    residual: Tensor, conv_state: Tensor, ssm_state: Tensor, weights: list[Tensor], eps: float, low: float, high: float,
    int4: bool, wide: bool, rotate: bool,
) -> None:  # fmt: skip
    batch, d = residual.shape
    _, heads, p, states = ssm_state.shape
    groups, scale_rows = weights[10].shape[0], weights[15].shape[0]
    width = heads * p
    in_group, out_group = (d // weights[2].shape[1], width // weights[19].shape[1]) if int4 else (0, 0)
    size = mamba2_step_bytes(batch, d, heads, p, groups, states, scale_rows, wide)
    work = residual.new_empty(size, dtype=torch.int8)
    addresses = weights.addresses if isinstance(weights, Weights) else tuple([w.data_ptr() for w in weights])
    _step(
        residual.data_ptr(), conv_state.data_ptr(), ssm_state.data_ptr(), addresses, work.data_ptr(), batch, d, heads,
        p, groups, states, conv_state.shape[1] + 1, state_kind(ssm_state), scale_rows, in_group, out_group, eps, low,
        high, int(int4), int(wide), hadamard_order(width) if rotate else 0,
    )  # fmt: skip


def _fake(
    residual: Tensor, conv_state: Tensor, ssm_state: Tensor, weights: list[Tensor], eps: float, low: float, high: float,
    int4: bool, wide: bool, rotate: bool,
) -> None:  # fmt: skip
    return None


mamba2_step = register(
    "mamba2_step(Tensor(a!) residual, Tensor(b!) conv_state, Tensor(c!) ssm_state, Tensor[] weights, float eps,"
    " float low, float high, bool int4, bool wide, bool rotate) -> ()",
    _run,
    _fake,
    direct=True,
)
