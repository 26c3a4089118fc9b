"""State-space scan of Mamba-2 on int8 inputs in chunks of 64 tokens, its matrix products in 16-bit integers.

Inside a chunk, with q the int8 inputs, w[t, s] = dt_s · Π_{s<r<=t} decay_r and P_t = Π_{r<=t} decay_r
(Dao and Gu, arXiv 2405.21060, section 6):

    y_t = Σ_{s<=t} (w[t, s] · C_t·B_s) x_s + P_t (h C_t) + D x_t        h' = P_T h + Σ_s (w[T, s] x_s) B_sᵀ

C_t·B_s is an exact integer. In each of the three other products one factor is int8 as it came and the other is rounded
to 16 bits: the rows of w·CBᵀ with a scale a token, h with a scale a channel, w·x with one a chunk. Two of sixteen bits
are one multiply-add of an integer vector of 32, twice fp32's; a rounding is 2⁻¹⁶ of the largest value that
shares its scale, 256 times finer than the inputs'. Decays are multiplied up as the recurrence does: no exp of
differences, nothing that could overflow or cancel.

Channels lie in the lanes, the state is kept as [N][P] fp32 meanwhile. Pairs that one instruction adds (of tokens, or of
states) are neighbours: [pairs][P][2].
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

from typing import Any

from numba import njit, types

from ..costs.quantized import SSD_CHUNK
from .dot import dot_s16
from .simd import LANES, Simd, Vec, intrinsic, require
from .ssd_scan import ROWS, f32_at
from .ssd_state import convert_state, step_sizes

__all__ = ["ssd_chunks"]

require(1)

_PANELS = SSD_CHUNK // LANES
_LARGEST = 32767.0
_BYTE_TO_16 = 254.0  # 128 · 254 fits 16 bits
_TINY = 1e-30
# Adding 1.5 · 2^23 leaves the rounded integer in the low bits of a float.
_INTEGER = 12582912.0


def _to_16_bits(s: Simd, value: Vec, factor: Vec) -> Vec:
    """value · factor to the nearest integer, half to even, in the low 16 bits of i32 lanes; the others are any."""
    return s.bitcast(s.fma(value, factor, _INTEGER), "i32")


def _pair(low: Vec, high: Vec) -> Vec:
    """Two vectors of 16-bit integers in i32 lanes as neighbours."""
    return (low & 0xFFFF) | (high << 16)


def _transposed(s: Simd, rows: list[Vec]) -> list[Vec]:
    """Sixteen vectors of sixteen lanes, row and lane exchanged."""
    stride = 1
    while stride < LANES:
        low = [lane - stride + LANES if lane & stride else lane for lane in range(LANES)]
        high = [lane + LANES if lane & stride else lane + stride for lane in range(LANES)]
        for i in range(LANES):
            if not i & stride:
                a, b = rows[i], rows[i + stride]
                rows[i], rows[i + stride] = s.shuffle(a, b, low), s.shuffle(a, b, high)
        stride *= 2
    return rows


def _products(s: Simd, a: Any, a_row: Any, b: Any, b_row: Any, pairs: Any, vectors: int) -> list[list[Vec]]:
    """Σ over pairs of `ROWS` rows of a by `vectors` vectors of b, i32; a_row and b_row in bytes."""
    builder = s.builder
    sums = [[s.cell(s.splat(0, LANES, "i32")) for _ in range(vectors)] for _ in range(ROWS)]
    rows = [builder.add(a, builder.mul(a_row, s.i64(r))) for r in range(ROWS)]
    with s.loop(0, pairs) as i:
        base = builder.add(b, builder.mul(i, b_row))
        values = [s.load(base, "i32", LANES * v) for v in range(vectors)]
        for row, cells in zip(rows, sums):
            factor = s.splat(s.scalar(row, "i32", i))
            for value, cell in zip(values, cells):
                cell.set(dot_s16(s, cell.get(), factor, value))
    return [[cell.get() for cell in cells] for cells in sums]


@intrinsic
def _widen_rows(typingctx, source, row, tokens, n, out):
    """int8 rows to int16 [tokens][n]; n a multiple of 16."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        source, row, tokens, n, out = args
        with s.loop(0, tokens) as t:
            here, there = builder.add(source, builder.mul(t, row)), s.address(out, "i16", builder.mul(t, n))
            with s.loop(0, n, LANES) as i:
                s.store(there, s.widen(s.load(here, "i8", i), "i8").narrow("i16"), i)
        return context.get_dummy_value()

    return types.void(source, row, tokens, n, out), codegen


@intrinsic
def _turn_b(typingctx, wide, tokens, n, pairs, turned):
    """B int16 [64][n] as pairs of states [n/2][64][2], and turned, [n][64]; tokens from `tokens` on are any."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        wide, tokens, n, pairs, turned = args
        words = builder.ashr(n, s.i64(1))
        with s.loop(0, tokens, LANES) as t, s.loop(0, words, LANES) as i:
            at = builder.add(builder.mul(t, words), i)
            rows = [s.load(wide, "i32", builder.add(at, builder.mul(words, s.i64(r)))) for r in range(LANES)]
            for r, word in enumerate(_transposed(s, rows)):
                pair = builder.add(i, s.i64(r))
                s.store(pairs, word, builder.add(builder.mul(pair, s.i64(SSD_CHUNK)), t))
                first = builder.add(builder.mul(pair, s.i64(2 * SSD_CHUNK)), t)
                s.store(turned, word.narrow("i16"), first)
                s.store(turned, (word >> 16).narrow("i16"), builder.add(first, s.i64(SSD_CHUNK)))
        return context.get_dummy_value()

    return types.void(wide, tokens, n, pairs, turned), codegen


@intrinsic
def _correlate(typingctx, c, b_pairs, n, scale, out):
    """Four tokens of C by all of the chunk: scale · C Bᵀ, fp32 [4][64]."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        c, b_pairs, n, scale, out = args
        row, factor = builder.mul(n, s.i64(2)), s.splat(scale)
        sums = _products(s, c, row, b_pairs, s.i64(4 * SSD_CHUNK), builder.ashr(n, s.i64(1)), _PANELS)
        for r, row_sums in enumerate(sums):
            for v, value in enumerate(row_sums):
                s.store(out, s.to_f32(value, "i32") * factor, r * SSD_CHUNK + v * LANES)
        return context.get_dummy_value()

    return types.void(c, b_pairs, n, types.float32, out), codegen


@intrinsic
def _weights(typingctx, dt, decay, head_row, tokens, cb, rows, scales, prefix, last):
    """w of one head: rows int16 [64][64] of w·CBᵀ and their scales, P_t, and w of the last token, [64] fp32.

    Returns the largest of the last. Lanes after a row's own token are 0; what lies past its vectors is not written.
    """

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        dt, decay, head_row, tokens, cb, rows, scales, prefix, last = args
        w = [s.cell(s.splat(0.0)) for _ in range(_PANELS)]
        product, lanes = s.cell(s.splat(1.0)), s.constant(range(LANES), "i64")
        for section in range(_PANELS):
            end = s.i64((section + 1) * LANES)
            end = builder.select(builder.icmp_signed("<", end, tokens), end, tokens)
            with s.loop(section * LANES, end) as t:
                here = builder.mul(t, head_row)
                factor, step = s.splat(s.scalar(decay, "f32", here)), s.splat(s.scalar(dt, "f32", here))
                own = lanes.compare("==", s.splat(builder.sub(t, s.i64(section * LANES))))
                values, top, at = [], s.splat(_TINY), builder.mul(t, s.i64(SSD_CHUNK))
                for v in range(section + 1):
                    now = w[v].get() * factor
                    w[v].set(own.where(step, now) if v == section else now)
                    values.append(w[v].get() * s.load(cb, "f32", builder.add(at, s.i64(v * LANES))))
                    top = s.maximum(s.abs(values[-1]), top)
                largest = s.max(top)
                inverse = s.splat(builder.fdiv(s.splat(_LARGEST).lane(0), largest))
                for v, value in enumerate(values):
                    short = _to_16_bits(s, value, inverse).narrow("i16")
                    s.store(rows, short, builder.add(at, s.i64(v * LANES)))
                unit = builder.fmul(largest, s.splat(1.0 / _LARGEST).lane(0))
                builder.store(unit, s.pointer(scales, "f32", t))
                product.set(product.get() * factor)
                builder.store(product.get().lane(0), s.pointer(prefix, "f32", t))
        top = s.splat(_TINY)
        for v, cell in enumerate(w):
            s.store(last, cell.get(), v * LANES)
            top = s.maximum(cell.get(), top)
        return s.max(top)

    return types.float32(dt, decay, head_row, tokens, cb, rows, scales, prefix, last), codegen


@intrinsic
def _pair_tokens(typingctx, x, x_row, tokens, p, last, factor, plain, weighted):
    """x of one head as pairs of tokens [32][p][2]: as it is, and times `last` (a token) and `factor` to 16 bits.

    Of an odd number of tokens the last is paired with itself: its weight there is 0.
    """

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, x_row, tokens, p, last, factor, plain, weighted = args
        unit = s.splat(factor)
        with s.loop(0, tokens, 2) as t:
            second = builder.add(t, s.i64(1))
            inside = builder.select(builder.icmp_signed("<", second, tokens), second, t)
            a, b = (builder.add(x, builder.mul(row, x_row)) for row in (t, inside))
            wa, wb = (s.splat(s.scalar(last, "f32", row)) * unit for row in (t, second))
            base = builder.mul(builder.ashr(t, s.i64(1)), p)
            with s.loop(0, p, LANES) as i:
                xa, xb = (s.widen(s.load(row, "i8", i), "i8") for row in (a, b))
                at = builder.add(base, i)
                s.store(plain, _pair(xa, xb), at)
                qa, qb = (_to_16_bits(s, s.to_f32(v, "i32"), w) for v, w in ((xa, wa), (xb, wb)))
                s.store(weighted, _pair(qa, qb), at)
        return context.get_dummy_value()

    return types.void(x, x_row, tokens, p, last, types.float32, plain, weighted), codegen


@intrinsic(prefer_literal=True)
def _round_state(typingctx, vectors, h, p, states, out, scales):
    """16·vectors (literal) channels of h [N][p] to 16 bits as pairs of states [N/2][p][2], and their scales."""
    count = vectors.literal_value

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        _, h, p, states, out, scales = args
        tops = [s.cell(s.splat(_TINY)) for _ in range(count)]
        with s.loop(0, states) as n:
            for v, top in enumerate(tops):
                value = s.load(h, "f32", builder.add(builder.mul(n, p), s.i64(v * LANES)))
                top.set(s.maximum(s.abs(value), top.get()))
        for v, top in enumerate(tops):
            s.store(scales, top.get() * (1.0 / _LARGEST), v * LANES)
        inverses = [_LARGEST / top.get() for top in tops]
        with s.loop(0, states, 2) as n:
            base, into = builder.mul(n, p), builder.mul(builder.ashr(n, s.i64(1)), p)
            for v, inverse in enumerate(inverses):
                at = builder.add(base, s.i64(v * LANES))
                low, high = (s.load(h, "f32", i) for i in (at, builder.add(at, p)))
                both = _pair(_to_16_bits(s, low, inverse), _to_16_bits(s, high, inverse))
                s.store(out, both, builder.add(into, s.i64(v * LANES)))
        return context.get_dummy_value()

    return types.void(vectors, h, p, states, out, scales), codegen


@intrinsic(prefer_literal=True)
def _outputs(
    typingctx, vectors, rows, row_scales, pairs, x_pairs, c, prefix, c_scale, states, h, h_scales, p, x, x_row, x_scale,
    skip, tokens, y, y_row,
):  # fmt: skip
    """y of four tokens (those below `tokens` are stored) and 16·vectors (literal) channels."""
    count = vectors.literal_value

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        (_, rows, row_scales, pairs, x_pairs, c, prefix, c_scale, states, h, h_scales, p, x, x_row, x_scale, skip,
         tokens, y, y_row) = args  # fmt: skip
        b_row = builder.mul(p, s.i64(4))
        c_row, words = builder.mul(states, s.i64(2)), builder.ashr(states, s.i64(1))
        before = _products(s, c, c_row, h, b_row, words, count)
        h_units = [s.load(h_scales, "f32", v * LANES) * s.splat(c_scale) for v in range(count)]
        floats = [
            [
                s.to_f32(value, "i32") * (h_units[v] * s.splat(s.scalar(prefix, "f32", r)))
                for v, value in enumerate(before[r])
            ]
            for r in range(ROWS)
        ]
        inside = _products(s, rows, s.i64(2 * SSD_CHUNK), x_pairs, b_row, pairs, count)
        x_units, d = [s.load(x_scale, "f32", v * LANES) for v in range(count)], s.splat(skip)
        for r in range(ROWS):
            with builder.if_then(builder.icmp_signed("<", s.i64(r), tokens)):
                unit = s.splat(s.scalar(row_scales, "f32", r))
                xr, yr = (builder.mul(row, s.i64(r)) for row in (x_row, y_row))
                for v in range(count):
                    own = s.load_f32(x, "i8", builder.add(xr, s.i64(v * LANES))) * d
                    mixed = s.fma(s.to_f32(inside[r][v], "i32"), unit, own)
                    s.store(y, s.fma(mixed, x_units[v], floats[r][v]), builder.add(yr, s.i64(v * LANES)))
        return context.get_dummy_value()

    f32 = types.float32
    return types.void(
        vectors, rows, row_scales, pairs, x_pairs, c, prefix, f32, states, h, h_scales, p, x, x_row, x_scale, f32,
        tokens, y, y_row,
    ), codegen  # fmt: skip


@intrinsic(prefer_literal=True)
def _advance(typingctx, vectors, turned, weighted, pairs, p, decay, scale, x_scale, h):
    """h' = decay · h + scale · x_scale · Bᵀ(w·x) of four states and 16·vectors (literal) channels, in place."""
    count = vectors.literal_value

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        _, turned, weighted, pairs, p, decay, scale, x_scale, h = args
        b_row = builder.mul(p, s.i64(4))
        sums = _products(s, turned, s.i64(2 * SSD_CHUNK), weighted, b_row, pairs, count)
        units, keep = [s.load(x_scale, "f32", v * LANES) * s.splat(scale) for v in range(count)], s.splat(decay)
        for r in range(ROWS):
            row = builder.mul(p, s.i64(r))
            for v in range(count):
                at = builder.add(row, s.i64(v * LANES))
                s.store(h, s.fma(s.to_f32(sums[r][v], "i32"), units[v], s.load(h, "f32", at) * keep), at)
        return context.get_dummy_value()

    return types.void(vectors, turned, weighted, pairs, p, types.float32, types.float32, x_scale, h), codegen


@intrinsic(prefer_literal=True)
def _turn(typingctx, source, source_row, target, target_row):
    """Sixteen rows of sixteen floats, turned; rows in elements."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        source, source_row, target, target_row = args
        rows = [s.load(source, "f32", builder.mul(source_row, s.i64(r))) for r in range(LANES)]
        for r, row in enumerate(_transposed(s, rows)):
            s.store(target, row, builder.mul(target_row, s.i64(r)))
        return context.get_dummy_value()

    return types.void(source, source_row, target, target_row), codegen


@njit(cache=True, nogil=True)
def _move_states(state, h, work, heads, p, states, scale, rows, kind, opening):
    """The states of one sequence, (H, P, N) of their own kind, to fp32 [H][N][P], or back; work: 16·N floats."""
    size = 4 >> kind
    for first in range(0, heads * p, LANES):
        turned = h + 4 * (first // p * p * states + first % p)
        if not opening:
            for n in range(0, states, LANES):
                _turn(turned + 4 * n * p, p, work + 4 * n, states)
        for r in range(LANES):
            channel = first + r
            own, wide = state + size * channel * states, work + 4 * r * states
            convert_state(own, wide, states, scale, rows, channel, kind, opening)
        if opening:
            for n in range(0, states, LANES):
                _turn(work + 4 * n, states, turned + 4 * n * p, p)


@njit(cache=True, nogil=True)
def _head(
    x, x_row, x_scale, dt, decay, head_row, c, turned, cb, b_scale, c_scale, skip, h, rows, scales, prefix, last,
    plain, weighted, short, units, y, y_row, tokens, p, states,
):  # fmt: skip
    """One chunk of one head; h [N][P] in place."""
    top = _weights(dt, decay, head_row, tokens, cb, rows, scales, prefix, last)
    _pair_tokens(x, x_row, tokens, p, last, _BYTE_TO_16 / top, plain, weighted)
    pairs, carried = (tokens + 1) // 2, f32_at(prefix + 4 * (tokens - 1))
    scale = top / _BYTE_TO_16 * b_scale
    step = SSD_CHUNK if p % SSD_CHUNK == 0 else LANES
    for first in range(0, p, step):
        lanes, xs = 4 * first, x_scale + 4 * first
        if step == SSD_CHUNK:
            _round_state(_PANELS, h + lanes, p, states, short + lanes, units + lanes)
        else:
            _round_state(1, h + lanes, p, states, short + lanes, units + lanes)
        for t in range(0, tokens, ROWS):
            row, mine = rows + 2 * SSD_CHUNK * t, min((t + ROWS) // 2, pairs)
            source, target = x + t * x_row + first, y + 4 * (t * y_row + first)
            if step == SSD_CHUNK:
                _outputs(
                    _PANELS, row, scales + 4 * t, mine, plain + lanes, c + 2 * states * t, prefix + 4 * t, c_scale,
                    states, short + lanes, units + lanes, p, source, x_row, xs, skip, tokens - t, target, y_row,
                )  # fmt: skip
            else:
                _outputs(
                    1, row, scales + 4 * t, mine, plain + lanes, c + 2 * states * t, prefix + 4 * t, c_scale,
                    states, short + lanes, units + lanes, p, source, x_row, xs, skip, tokens - t, target, y_row,
                )  # fmt: skip
        for n in range(0, states, ROWS):
            own, some = h + 4 * n * p + lanes, turned + 2 * SSD_CHUNK * n
            if step == SSD_CHUNK:
                _advance(_PANELS, some, weighted + lanes, pairs, p, carried, scale, xs, own)
            else:
                _advance(1, some, weighted + lanes, pairs, p, carried, scale, xs, own)


@njit(cache=True, nogil=True)
def ssd_chunks(
    x, x_batch, x_row, delta, delta_batch, delta_row, b, c, bc_batch, bc_row, x_scale, delta_scale, b_scale, c_scale,
    a2, d, bias, low, high, state, state_scale, state_rows, kind, work, y, batch, length, heads, p, groups, states,
):  # fmt: skip
    """All addresses, strides in elements; the state is fp16 or int8 (kind 1, 2); work: `ssd_chunk_floats` floats."""
    width, each = heads * p, SSD_CHUNK * states
    dts = work
    decays = dts + 4 * SSD_CHUNK * heads
    cs = decays + 4 * SSD_CHUNK * heads
    turned = cs + 2 * groups * each
    cbs = turned + 2 * groups * each
    wide = cbs + 4 * groups * SSD_CHUNK * SSD_CHUNK
    pairs = wide + 2 * each
    rows = pairs + 2 * each
    scales = rows + 2 * SSD_CHUNK * SSD_CHUNK
    prefix = scales + 4 * SSD_CHUNK
    last = prefix + 4 * SSD_CHUNK
    plain = last + 4 * SSD_CHUNK
    weighted = plain + 2 * SSD_CHUNK * p
    short = weighted + 2 * SSD_CHUNK * p
    units = short + 2 * states * p
    some = units + 4 * p
    h = some + 4 * LANES * states
    for i in range(batch):
        own = state + (4 >> kind) * i * width * states
        _move_states(own, h, some, heads, p, states, state_scale, state_rows, kind, True)
        for first in range(0, length, SSD_CHUNK):
            tokens = min(SSD_CHUNK, length - first)
            for t in range(tokens):
                at, delta_t = 4 * t * heads, delta + i * delta_batch + (first + t) * delta_row
                step_sizes(delta_t, delta_scale, bias, a2, heads, low, high, dts + at, decays + at, 1)
            for g in range(groups):
                at = i * bc_batch + first * bc_row + g * states
                cg, cb = cs + 2 * g * each, cbs + 4 * g * SSD_CHUNK * SSD_CHUNK
                _widen_rows(b + at, bc_row, tokens, states, wide)
                _widen_rows(c + at, bc_row, tokens, states, cg)
                _turn_b(wide, tokens, states, pairs, turned + 2 * g * each)
                scale = f32_at(b_scale + 4 * g) * f32_at(c_scale + 4 * g)
                for t in range(0, tokens, ROWS):
                    _correlate(cg + 2 * t * states, pairs, states, scale, cb + 4 * t * SSD_CHUNK)
            for head in range(heads):
                g, channel = head // (heads // groups), head * p
                _head(
                    x + i * x_batch + first * x_row + channel, x_row, x_scale + 4 * channel, dts + 4 * head,
                    decays + 4 * head, heads, cs + 2 * g * each, turned + 2 * g * each,
                    cbs + 4 * g * SSD_CHUNK * SSD_CHUNK, f32_at(b_scale + 4 * g), f32_at(c_scale + 4 * g),
                    f32_at(d + 4 * head), h + 4 * channel * states, rows, scales, prefix, last, plain, weighted, short,
                    units, y + 4 * ((i * length + first) * width + channel), width, tokens, p, states,
                )  # fmt: skip
        _move_states(own, h, some, heads, p, states, state_scale, state_rows, kind, False)
