"""State-space scan of Mamba-2 on quantized inputs, with its state, for prefill and generation alike.

`costmodel::ssd_quantized(x, delta, B, C, x_scale, delta_scale, b_scale, c_scale, a2, D, delta_bias, state, state_scale,
state_rows, low, high) -> y`: x (B, L, H·P), delta (B, L, H), B and C (B, L, G·N), all int8 or all fp32, with any
batch and row stride; x_scale fp32 (H·P), delta_scale (1,), b_scale and c_scale (G,); a2 = A·log2 e, D, delta_bias fp32
(H); state (B, H, P, N) fp32, fp16 or int8, updated in place; for int8, state_scale fp32 (R, N) and state_rows int32
(H·P/4), the row of the scale of each four channels. y is fp32 (B, L, H·P).

fp32 inside, y from the state before it is rounded; a prefill rounds once at its end. Where inputs are int8 and the
state is rounded anyway, a prefill runs in chunks (`ssd_chunks`); with a state in fp32 it equals its steps bit for bit.

A step on an int8 state runs in units of its scale: B is divided by it and C multiplied, a row of both for each row of
the scale, so that the state costs a conversion, two multiply-adds, a clamp and a narrowing store.
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

import torch
from numba import njit, types
from torch import Tensor

from ..costs.quantized import ssd_in_chunks, ssd_work_floats
from ..errors import CostmodelError
from . import register
from .causal_conv1d import row_strides
from .scan_int8 import state_kind
from .simd import LANES, Simd, intrinsic, require
from .ssd_chunks import ssd_chunks
from .ssd_scan import CHUNK, ROWS, f32_at, ssd_tile
from .ssd_state import ELEMENTS, i32_at, move_state, step_sizes

__all__ = ["ssd", "ssd_quantized"]

require(1)


@intrinsic(prefer_literal=True)
def _scaled(typingctx, source, scale, n, out, is_int8, one_scale):
    """out[0:n] = fp32 of source times scale[0:n], or scale[0] with `one_scale`; n a multiple of 16."""
    element, single = "i8" if is_int8.literal_value else "f32", bool(one_scale.literal_value)

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        source, scale, n, out, _, _ = args
        first = s.splat(s.scalar(scale, "f32"))
        with s.loop(0, n, LANES) as i:
            s.store(out, s.load_f32(source, element, i) * (first if single else s.load(scale, "f32", i)), i)
        return context.get_dummy_value()

    return types.void(source, scale, n, out, is_int8, one_scale), codegen


@intrinsic
def _in_units(typingctx, b, c, scale, n, bs, cs):
    """bs = b / scale, cs = c · scale, n floats."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        b, c, scale, n, bs, cs = args
        with s.loop(0, n, LANES) as i:
            unit = s.load(scale, "f32", i)
            s.store(bs, s.load(b, "f32", i) / unit, i)
            s.store(cs, s.load(c, "f32", i) * unit, i)
        return context.get_dummy_value()

    return types.void(b, c, scale, n, bs, cs), codegen


@intrinsic(prefer_literal=True)
def _step_tile(typingctx, x, y, decay, dt, b, c, h, d, states, kind):
    """One token of four channels of one head; the state is read and written in its own type (literal)."""
    element = ELEMENTS[kind.literal_value]

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, y, decay, dt, b, c, h, d, states, _ = args
        a = s.splat(decay)
        inputs = s.load(x, "f32", lanes=ROWS)
        drives = inputs * s.splat(dt, ROWS)
        drive = [s.splat(drives.lane(r)) for r in range(ROWS)]
        sums = [s.cell(s.splat(0.0)) for _ in range(ROWS)]
        with s.loop(0, states, LANES) as n:
            bn, cn = s.load(b, "f32", n), s.load(c, "f32", n)
            for r in range(ROWS):
                at = builder.add(n, builder.mul(states, s.i64(r)))
                new = s.fma(drive[r], bn, s.load_f32(h, element, at) * a)
                s.store(h, s.from_f32(new, element), at)
                sums[r].set(s.fma(new, cn, sums[r].get()))
        s.store(y, s.fma(inputs, s.splat(d, ROWS), s.sums(*(v.get() for v in sums))))
        return context.get_dummy_value()

    return types.void(x, y, decay, dt, b, c, h, d, states, kind), codegen


@njit(cache=True, nogil=True)
def _one_token(
    xs, bs, cs, dts, decays, d, state, scale, rows, scale_rows, kind, units, y, heads, p, groups, states
):  # fmt: skip
    """The step of one sequence; inputs are fp32 already; units: scratch of 2·R·N floats for an int8 state."""
    size = 4 >> kind
    per_group = max(scale_rows // groups, 1)
    if kind == 2:
        for r in range(scale_rows):
            at = 4 * (r // per_group) * states
            unit = units + 4 * r * states
            _in_units(bs + at, cs + at, scale + 4 * r * states, states, unit, unit + 4 * scale_rows * states)
    for head in range(heads):
        group = 4 * (head // (heads // groups)) * states
        decay, dt, skip = f32_at(decays + 4 * head), f32_at(dts + 4 * head), f32_at(d + 4 * head)
        for first in range(head * p, (head + 1) * p, ROWS):
            x, out, h = xs + 4 * first, y + 4 * first, state + size * first * states
            if kind == 0:
                _step_tile(x, out, decay, dt, bs + group, cs + group, h, skip, states, 0)
            elif kind == 1:
                _step_tile(x, out, decay, dt, bs + group, cs + group, h, skip, states, 1)
            else:
                unit = units + 4 * i32_at(rows + first // ROWS * 4) * states
                _step_tile(x, out, decay, dt, unit, unit + 4 * scale_rows * states, h, skip, states, 2)


@njit(cache=True, nogil=True)
def ssd(
    x, x_batch, x_row, delta, delta_batch, delta_row, b, c, bc_batch, bc_row, x_scale, delta_scale, b_scale, c_scale,
    a2, d, bias, low, high, state, state_scale, state_rows, scale_rows, kind, work, y,
    batch, length, heads, p, groups, states, is_int8,
):  # fmt: skip
    """All addresses, strides in elements; work: `ssd_work_floats` floats."""
    width, size = heads * p, 1 if is_int8 else 4
    chunk = min(length, CHUNK)
    xs = work
    bs = xs + 4 * chunk * width
    cs = bs + 4 * chunk * groups * states
    dts = cs + 4 * chunk * groups * states
    decays = dts + 4 * chunk * heads
    rest = decays + 4 * chunk * heads
    for i in range(batch):
        own = state + (4 >> kind) * i * width * states
        if length > 1:
            move_state(own, rest, width, states, state_scale, state_rows, kind, True)
        for first in range(0, length, chunk):
            tokens = min(chunk, length - first)
            for t in range(tokens):
                xt = x + size * (i * x_batch + (first + t) * x_row)
                at = size * (i * bc_batch + (first + t) * bc_row)
                bt, ct = b + at, c + at
                dt = delta + size * (i * delta_batch + (first + t) * delta_row)
                ht = 4 * t * heads
                if is_int8:
                    step_sizes(dt, delta_scale, bias, a2, heads, low, high, dts + ht, decays + ht, 1)
                    _scaled(xt, x_scale, width, xs + 4 * t * width, 1, 0)
                else:
                    step_sizes(dt, delta_scale, bias, a2, heads, low, high, dts + ht, decays + ht, 0)
                    _scaled(xt, x_scale, width, xs + 4 * t * width, 0, 0)
                for g in range(groups):
                    source, target = size * g * states, 4 * (t * groups + g) * states
                    if is_int8:
                        _scaled(bt + source, b_scale + 4 * g, states, bs + target, 1, 1)
                        _scaled(ct + source, c_scale + 4 * g, states, cs + target, 1, 1)
                    else:
                        _scaled(bt + source, b_scale + 4 * g, states, bs + target, 0, 1)
                        _scaled(ct + source, c_scale + 4 * g, states, cs + target, 0, 1)
            yt = y + 4 * (i * length + first) * width
            if length == 1:
                _one_token(
                    xs, bs, cs, dts, decays, d, own, state_scale, state_rows, scale_rows, kind, rest, yt,
                    heads, p, groups, states,
                )  # fmt: skip
                continue
            for head in range(heads):
                group = 4 * (head // (heads // groups)) * states
                skip = f32_at(d + 4 * head)
                for channel in range(head * p, (head + 1) * p, ROWS):
                    ssd_tile(
                        xs + 4 * channel, width, yt + 4 * channel, width, decays + 4 * head, dts + 4 * head, heads,
                        bs + group, cs + group, groups * states, rest + 4 * channel * states, 0, skip, tokens, states,
                    )  # fmt: skip
        if length > 1:
            move_state(own, rest, width, states, state_scale, state_rows, kind, False)


def _run(
    x: Tensor, delta: Tensor, b: Tensor, c: Tensor, x_scale: Tensor, delta_scale: Tensor, b_scale: Tensor,
    c_scale: Tensor, a2: Tensor, d: Tensor, bias: Tensor, state: Tensor, state_scale: Tensor, state_rows: Tensor,
    low: float, high: float,
) -> Tensor:  # fmt: skip
    batch, length, width = x.shape
    _, heads, p, states = state.shape
    groups = b_scale.shape[0]
    if p % ROWS or states % LANES or width % LANES or heads * p != width or b.shape[-1] != groups * states:
        raise CostmodelError(
            f"ssd_quantized takes x (B, L, H·P), B (B, L, G·N), state (B, H, P, N), P a multiple of {ROWS}, N and H·P "
            f"of {LANES}: given {tuple(x.shape)}, {tuple(b.shape)} in {groups} groups, {tuple(state.shape)}"
        )
    if b.stride() != c.stride():
        b, c = b.contiguous(), c.contiguous()
    scale_rows, kind, int8 = state_scale.shape[0], state_kind(state), x.dtype == torch.int8
    chunks = ssd_in_chunks(length, p, states, int8, kind != 0)
    work = x.new_empty(ssd_work_floats(length, heads, p, groups, states, scale_rows, chunks), dtype=torch.float32)
    y = x.new_empty(batch, length, width, dtype=torch.float32)
    if chunks:
        ssd_chunks(
            x.data_ptr(), *row_strides("x", x), delta.data_ptr(), *row_strides("delta", delta), b.data_ptr(),
            c.data_ptr(), *row_strides("B", b), x_scale.data_ptr(), delta_scale.data_ptr(), b_scale.data_ptr(),
            c_scale.data_ptr(), a2.data_ptr(), d.data_ptr(), bias.data_ptr(), low, high, state.data_ptr(),
            state_scale.data_ptr(), state_rows.data_ptr(), kind, work.data_ptr(), y.data_ptr(), batch, length, heads, p,
            groups, states,
        )  # fmt: skip
        return y
    ssd(
        x.data_ptr(), *row_strides("x", x), delta.data_ptr(), *row_strides("delta", delta), b.data_ptr(), c.data_ptr(),
        *row_strides("B", b), x_scale.data_ptr(), delta_scale.data_ptr(), b_scale.data_ptr(), c_scale.data_ptr(),
        a2.data_ptr(), d.data_ptr(), bias.data_ptr(), low, high, state.data_ptr(), state_scale.data_ptr(),
        state_rows.data_ptr(), scale_rows, kind, work.data_ptr(), y.data_ptr(),
        batch, length, heads, p, groups, states, int(int8),
    )  # fmt: skip
    return y


def _fake(
    x: Tensor, delta: Tensor, b: Tensor, c: Tensor, x_scale: Tensor, delta_scale: Tensor, b_scale: Tensor,
    c_scale: Tensor, a2: Tensor, d: Tensor, bias: Tensor, state: Tensor, state_scale: Tensor, state_rows: Tensor,
    low: float, high: float,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape, dtype=torch.float32)


ssd_quantized = register(
    "ssd_quantized(Tensor x, Tensor delta, Tensor B, Tensor C, Tensor x_scale, Tensor delta_scale, Tensor b_scale,"
    " Tensor c_scale, Tensor a2, Tensor D, Tensor delta_bias, Tensor(a!) state, Tensor state_scale, Tensor state_rows,"
    " float low, float high) -> Tensor",
    _run,
    _fake,
    direct=True,
)
