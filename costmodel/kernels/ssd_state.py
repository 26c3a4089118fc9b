"""What both forms of the quantized Mamba-2 scan share: the step sizes of a token, and the state in fp32 and back."""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

from numba import njit, types

from .simd import LANES, Simd, intrinsic, require
from .ssd_scan import ROWS

__all__ = ["ELEMENTS", "convert_state", "i32_at", "move_state", "step_sizes"]

require(1)

ELEMENTS = ("f32", "f16", "i8")  # by the kind of a state


@intrinsic(prefer_literal=True)
def step_sizes(typingctx, delta, scale, bias, a2, heads, low, high, dt, decay, is_int8):
    """dt = clamp(softplus(delta·scale + bias)) and exp2(dt·a2) of all heads of one token."""
    element = "i8" if is_int8.literal_value else "f32"

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        delta, scale, bias, a2, heads, low, high, dt, decay, _ = args
        f = s.splat(s.scalar(scale, "f32"))
        single = s.splat(0.0).type.element
        bottom, top = (s.splat(builder.fptrunc(v, single)) for v in (low, high))
        with s.loop(0, heads, LANES) as h:
            mask = s.first_lanes(builder.sub(heads, h))
            raw = s.load_f32(delta, element, h, mask=mask)
            step = s.softplus(s.fma(raw, f, s.load_masked(bias, "f32", mask, h)))
            step = s.minimum(s.maximum(step, bottom), top)
            s.store_masked(dt, step, mask, h)
            s.store_masked(decay, s.exp2(step * s.load_masked(a2, "f32", mask, h)), mask, h)
        return context.get_dummy_value()

    return types.void(delta, scale, bias, a2, heads, types.float64, types.float64, dt, decay, is_int8), codegen


@intrinsic(prefer_literal=True)
def _convert(typingctx, source, target, n, scale, kind, widen):
    """n elements of the state to fp32 (`widen` literal 1) or back, scale fp32 (n) where it is int8."""
    element, opening = ELEMENTS[kind.literal_value], bool(widen.literal_value)

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        source, target, n, scale, _, _ = args
        with s.loop(0, n, LANES) as i:
            if opening:
                value = s.load_f32(source, element, i)
                s.store(target, value * s.load(scale, "f32", i) if element == "i8" else value, i)
            else:
                value = s.load(source, "f32", i)
                if element == "i8":
                    value = value / s.load(scale, "f32", i)
                s.store(target, s.from_f32(value, element), i)
        return context.get_dummy_value()

    return types.void(source, target, n, scale, kind, widen), codegen


@intrinsic
def i32_at(typingctx, address):
    """The int32 at an address, as int64."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        return s.i64(s.scalar(args[0], "i32"))

    return types.int64(address), codegen


@njit(cache=True, nogil=True)
def convert_state(own, wide, n, scale, rows, channel, kind, opening):
    """One channel of the state, n elements of its own kind, to fp32 `wide`, or back."""
    s = scale + 4 * i32_at(rows + channel // ROWS * 4) * n if kind == 2 else scale
    if opening:
        if kind == 0:
            _convert(own, wide, n, s, 0, 1)
        elif kind == 1:
            _convert(own, wide, n, s, 1, 1)
        else:
            _convert(own, wide, n, s, 2, 1)
    elif kind == 0:
        _convert(wide, own, n, s, 0, 0)
    elif kind == 1:
        _convert(wide, own, n, s, 1, 0)
    else:
        _convert(wide, own, n, s, 2, 0)


@njit(cache=True, nogil=True)
def move_state(state, work, width, states, scale, rows, kind, opening):
    """The state of one sequence to fp32 `work`, or back."""
    size = 4 >> kind
    for channel in range(width):
        own, wide = state + size * channel * states, work + 4 * channel * states
        convert_state(own, wide, states, scale, rows, channel, kind, opening)
