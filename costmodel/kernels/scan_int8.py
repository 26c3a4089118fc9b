"""Selective scan of Mamba-1 on quantized inputs, with its state, for prefill and generation alike.

`costmodel::scan_quantized(u, delta, B, C, z, u_scale, scales, a2, D, delta_bias, state, state_scale) -> y`:
u, delta, z (B, L, D) and B, C (B, L, N), all int8 or all fp32, with any batch and row stride; u_scale fp32 (D);
scales fp32 (4,) of delta, B, C, z; a2 = A·log2 e in panels (D/16, N, 16); D, delta_bias fp32 (D); state
(B, D/16, N, 16) fp32, fp16 or int8, updated in place; state_scale fp32 (D/16, N, 16), used where the state is int8.

The recurrence is fp32 inside: y comes from the state before it is rounded, a prefill rounds once at its end, a step
rounds each time (so an int8 state has a dead band, METHODS.md §3).
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

import torch
from numba import njit, types
from torch import Tensor

from ..costs.quantized import scan_work_floats
from ..errors import CostmodelError
from . import register
from .causal_conv1d import row_strides
from .selective_scan import CHUNK, UNROLL, panel_offset, recurrence
from .simd import LANES, Simd, intrinsic, require

__all__ = ["STATE_KINDS", "scan", "scan_quantized", "state_kind"]

require(1)

STATE_KINDS = {torch.float32: 0, torch.float16: 1, torch.int8: 2}
_ELEMENTS = ("f32", "f16", "i8")


def state_kind(state: Tensor) -> int:
    """0 fp32, 1 fp16, 2 int8."""
    if state.dtype not in STATE_KINDS or not state.is_contiguous():
        raise CostmodelError(
            f"a state is contiguous float32, float16 or int8, not {state.dtype} with strides {state.stride()}"
        )
    return STATE_KINDS[state.dtype]


@intrinsic(prefer_literal=True)
def _tile(
    typingctx,
    u,
    u_row,
    delta,
    delta_row,
    z,
    z_row,
    y,
    y_row,
    u_scale,
    scales,
    a2,
    d,
    bias,
    h,
    bc,
    tokens,
    states,
    is_int8,
):
    """`tokens` tokens of sixteen channels; bc holds B and C as fp32 [t][2][N]; h, fp32, is updated in place."""
    element = "i8" if is_int8.literal_value else "f32"

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        u, u_row, delta, delta_row, z, z_row, y, y_row, u_scale, scales, a2, d, bias, h, bc, tokens, states, _ = args
        skip, shift, per_channel = s.load(d, "f32"), s.load(bias, "f32"), s.load(u_scale, "f32")
        delta_scale, z_scale = (s.splat(s.scalar(scales, "f32", i)) for i in (0, 3))
        with s.loop(0, tokens) as t:
            dt = s.softplus(s.fma(s.load_f32(delta, element, builder.mul(t, delta_row)), delta_scale, shift))
            x = s.load_f32(u, element, builder.mul(t, u_row)) * per_channel
            b = s.address(bc, "f32", builder.mul(t, builder.mul(states, s.i64(2))))
            c = s.address(b, "f32", states)
            out = s.fma(x, skip, recurrence(s, dt, dt * x, a2, h, b, c, states, None))
            gate = s.silu(s.load_f32(z, element, builder.mul(t, z_row)) * z_scale)
            s.store(y, out * gate, builder.mul(t, y_row))
        return context.get_dummy_value()

    arguments = (
        u,
        u_row,
        delta,
        delta_row,
        z,
        z_row,
        y,
        y_row,
        u_scale,
        scales,
        a2,
        d,
        bias,
        h,
        bc,
        tokens,
        states,
        is_int8,
    )
    return types.void(*arguments), codegen


@intrinsic(prefer_literal=True)
def _widen(typingctx, source, n, scale, scale_index, out, is_int8):
    """out[0:n] = fp32 of source times scales[index]; n a multiple of 4."""
    element = "i8" if is_int8.literal_value else "f32"

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        source, n, scale, scale_index, out, _ = args
        f = s.splat(s.scalar(scale, "f32", scale_index), 4)
        with s.loop(0, n, 4) as i:
            s.store(out, s.load_f32(source, element, i, 4) * f, i)
        return context.get_dummy_value()

    return types.void(source, n, scale, scale_index, out, is_int8), codegen


@intrinsic(prefer_literal=True)
def _load_state(typingctx, source, scale, out, states, kind):
    """A panel of the state to fp32."""
    element = _ELEMENTS[kind.literal_value]

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        source, scale, out, states, _ = args
        with s.loop(0, states) as n:
            at = panel_offset(s, n, 0)
            value = s.load_f32(source, element, at)
            s.store(out, value * s.load(scale, "f32", at) if element == "i8" else value, at)
        return context.get_dummy_value()

    return types.void(source, scale, out, states, kind), codegen


@intrinsic(prefer_literal=True)
def _store_state(typingctx, source, scale, out, states, kind):
    """A panel of fp32 to the state's own type, rounded."""
    element = _ELEMENTS[kind.literal_value]

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        source, scale, out, states, _ = args
        with s.loop(0, states) as n:
            at = panel_offset(s, n, 0)
            value = s.load(source, "f32", at)
            if element == "i8":
                value = value / s.load(scale, "f32", at)
            s.store(out, s.from_f32(value, element), at)
        return context.get_dummy_value()

    return types.void(source, scale, out, states, kind), codegen


@njit(cache=True, nogil=True)
def _open(source, scale, out, states, kind):
    if kind == 0:
        _load_state(source, scale, out, states, 0)
    elif kind == 1:
        _load_state(source, scale, out, states, 1)
    else:
        _load_state(source, scale, out, states, 2)


@njit(cache=True, nogil=True)
def _close(source, scale, out, states, kind):
    if kind == 0:
        _store_state(source, scale, out, states, 0)
    elif kind == 1:
        _store_state(source, scale, out, states, 1)
    else:
        _store_state(source, scale, out, states, 2)


@njit(cache=True, nogil=True)
def scan(
    u, u_batch, u_row, delta, delta_batch, delta_row, z, z_batch, z_row, b, c, bc_batch, bc_row, u_scale, scales,
    a2, d, bias, state, state_scale, kind, work, bc, y, batch, length, width, states, is_int8,
):  # fmt: skip
    """All addresses, strides in elements. work: fp32 states of one batch row (of one panel where length is 1);
    bc: fp32 scratch of 2·CHUNK·N."""
    panel = LANES * states
    blocks = width // LANES
    size = 1 if is_int8 else 4
    state_size = 4 >> kind
    for i in range(batch):
        own = state + state_size * i * blocks * panel
        if length > 1:
            for block in range(blocks):
                p = block * panel
                _open(own + state_size * p, state_scale + 4 * p, work + 4 * p, states, kind)
        for first in range(0, length, CHUNK):
            tokens = min(CHUNK, length - first)
            for t in range(tokens):
                at = size * (i * bc_batch + (first + t) * bc_row)
                if is_int8:
                    _widen(b + at, states, scales, 1, bc + 8 * t * states, 1)
                    _widen(c + at, states, scales, 2, bc + 8 * t * states + 4 * states, 1)
                else:
                    _widen(b + at, states, scales, 1, bc + 8 * t * states, 0)
                    _widen(c + at, states, scales, 2, bc + 8 * t * states + 4 * states, 0)
            for block in range(blocks):
                p, lane = block * panel, LANES * block
                h = work
                if length > 1:
                    h = work + 4 * p
                else:
                    _open(own + state_size * p, state_scale + 4 * p, h, states, kind)
                ut = u + size * (i * u_batch + first * u_row + lane)
                dt = delta + size * (i * delta_batch + first * delta_row + lane)
                zt = z + size * (i * z_batch + first * z_row + lane)
                yt = y + 4 * ((i * length + first) * width + lane)
                us, ap, dp, bp = u_scale + 4 * lane, a2 + 4 * p, d + 4 * lane, bias + 4 * lane
                if is_int8:
                    _tile(
                        ut, u_row, dt, delta_row, zt, z_row, yt, width, us, scales, ap, dp, bp, h, bc, tokens, states, 1
                    )
                else:
                    _tile(
                        ut, u_row, dt, delta_row, zt, z_row, yt, width, us, scales, ap, dp, bp, h, bc, tokens, states, 0
                    )
                if length == 1:
                    _close(h, state_scale + 4 * p, own + state_size * p, states, kind)
        if length > 1:
            for block in range(blocks):
                p = block * panel
                _close(work + 4 * p, state_scale + 4 * p, own + state_size * p, states, kind)


def _run(
    u: Tensor, delta: Tensor, b: Tensor, c: Tensor, z: Tensor, u_scale: Tensor, scales: Tensor, a2: Tensor, d: Tensor,
    bias: Tensor, state: Tensor, state_scale: Tensor,
) -> Tensor:  # fmt: skip
    batch, length, width = u.shape
    states = b.shape[-1]
    if width % LANES or states % UNROLL or tuple(state.shape) != (batch, width // LANES, states, LANES):
        raise CostmodelError(
            f"scan_quantized takes u (B, L, D) and a state (B, D/16, N, 16), D a multiple of {LANES}, N of {UNROLL}: "
            f"given {tuple(u.shape)}, N = {states}, {tuple(state.shape)}"
        )
    if b.stride() != c.stride():
        b, c = b.contiguous(), c.contiguous()
    work = u.new_empty(scan_work_floats(length, width, states), dtype=torch.float32)
    scratch = work.data_ptr() + 4 * (work.numel() - 2 * CHUNK * states)
    y = u.new_empty(batch, length, width, dtype=torch.float32)
    scan(
        u.data_ptr(), *row_strides("u", u), delta.data_ptr(), *row_strides("delta", delta),
        z.data_ptr(), *row_strides("z", z), b.data_ptr(), c.data_ptr(), *row_strides("B", b),
        u_scale.data_ptr(), scales.data_ptr(), a2.data_ptr(), d.data_ptr(), bias.data_ptr(), state.data_ptr(),
        state_scale.data_ptr(), state_kind(state), work.data_ptr(), scratch, y.data_ptr(),
        batch, length, width, states, int(u.dtype == torch.int8),
    )  # fmt: skip
    return y


def _fake(
    u: Tensor, delta: Tensor, b: Tensor, c: Tensor, z: Tensor, u_scale: Tensor, scales: Tensor, a2: Tensor, d: Tensor,
    bias: Tensor, state: Tensor, state_scale: Tensor,
) -> Tensor:  # fmt: skip
    return u.new_empty(u.shape, dtype=torch.float32)


scan_quantized = register(
    "scan_quantized(Tensor u, Tensor delta, Tensor B, Tensor C, Tensor z, Tensor u_scale, Tensor scales, Tensor a2,"
    " Tensor D, Tensor delta_bias, Tensor(a!) state, Tensor state_scale) -> Tensor",
    _run,
    _fake,
    direct=True,
)
