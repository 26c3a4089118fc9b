"""Selective scan of Mamba-1, fp32, forward and backward, one op each (Gu and Dao, arXiv 2312.00752, section 3.3).

    dt = softplus(delta + delta_bias)      h = exp(dt·A)·h + dt·B·u      y = (C·h + D·u) · silu(z)

`costmodel::selective_scan(u, delta, A, B, C, D, z, delta_bias, h0, checkpoint) -> (y, h, saved)`: u, delta, z (B, L, D)
and B, C (B, L, N) with any batch and row stride, A (D, N), D and delta_bias (D), h0 None or like h, all fp32.

Sixteen channels lie in a vector's lanes, the states of a channel in an inner loop, time outermost in chunks. States are
kept in panels (B, D/16, N, 16): `from_panels` gives (B, D, N). The backward keeps one state a chunk of `CHUNK` tokens
(`saved`) and computes the others again, so that it stores N/CHUNK values a channel and token instead of N.
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

from typing import Any

import torch
from numba import njit, types
from torch import Tensor

from ..costs.scan import CHUNK
from ..errors import CostmodelError
from . import register
from .causal_conv1d import row_strides
from .simd import LANES, LN2, LOG2E, Simd, Vec, intrinsic, require

__all__ = [
    "CHUNK",
    "UNROLL",
    "decay_panels",
    "from_panels",
    "panel_offset",
    "recurrence",
    "selective_scan",
    "to_panels",
]

require(1)

# CHUNK is 32 tokens: states and decays of a chunk take 2·32·N·64 B = 64 KiB at N = 16, half of a small L2
UNROLL = 4  # states in flight


def to_panels(state: Tensor) -> Tensor:
    """(B, D, N) to (B, D/16, N, 16): sixteen channels of a state are neighbours."""
    batch, width, states = state.shape
    return state.reshape(batch, width // LANES, LANES, states).transpose(2, 3).contiguous()


def from_panels(panels: Tensor) -> Tensor:
    """(B, D/16, N, 16) to (B, D, N)."""
    batch, blocks, states, _ = panels.shape
    return panels.transpose(2, 3).reshape(batch, blocks * LANES, states)


def panel_offset(s: Simd, n: Any, j: int) -> Any:
    """Element offset of state n + j inside a panel."""
    return s.builder.mul(s.builder.add(n, s.i64(j)), s.i64(LANES))


def recurrence(
    s: Simd, dt: Vec, du: Vec, a2: Any, h: Any, b: Any, c: Any, states: Any, keep: tuple[Any, Any] | None
) -> Vec:
    """One token of one channel block: updates the panel at `h` (or writes to `keep` = (h', decay)); returns C·h."""
    sums = [s.cell(s.splat(0.0)) for _ in range(UNROLL)]
    with s.loop(0, states, UNROLL) as n:
        for j in range(UNROLL):
            at = panel_offset(s, n, j)
            state = s.builder.add(n, s.i64(j))
            decay = s.exp2(dt * s.load(a2, "f32", at))
            drive = du * s.splat(s.scalar(b, "f32", state))
            new = s.fma(decay, s.load(h, "f32", at), drive)
            if keep is None:
                s.store(h, new, at)
            else:
                s.store(keep[0], new, at)
                s.store(keep[1], decay, at)
            sums[j].set(s.fma(new, s.splat(s.scalar(c, "f32", state)), sums[j].get()))
    return (sums[0].get() + sums[1].get()) + (sums[2].get() + sums[3].get())


@intrinsic
def _scan_tile(typingctx, u, u_row, delta, delta_row, z, z_row, y, y_row, a2, d, bias, h, b, c, bc_row, tokens, states):
    """`tokens` tokens of sixteen channels; row strides in elements; h is updated in place."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        u, u_row, delta, delta_row, z, z_row, y, y_row, a2, d, bias, h, b, c, bc_row, tokens, states = args
        skip, shift = s.load(d, "f32"), s.load(bias, "f32")
        with s.loop(0, tokens) as t:
            dt = s.softplus(s.load(delta, "f32", builder.mul(t, delta_row)) + shift)
            x = s.load(u, "f32", builder.mul(t, u_row))
            bt, ct = (s.address(p, "f32", builder.mul(t, bc_row)) for p in (b, c))
            out = s.fma(x, skip, recurrence(s, dt, dt * x, a2, h, bt, ct, states, None))
            s.store(y, out * s.silu(s.load(z, "f32", builder.mul(t, z_row))), builder.mul(t, y_row))
        return context.get_dummy_value()

    arguments = (u, u_row, delta, delta_row, z, z_row, y, y_row, a2, d, bias, h, b, c, bc_row, tokens, states)
    return types.void(*arguments), codegen


@intrinsic
def _recompute_tile(
    typingctx, u, u_row, delta, delta_row, a2, d, bias, h0, b, c, bc_row, tokens, states, hs, decays, ys
):
    """The forward of a tile again, keeping every state and decay [t][n][16] and C·h + D·u [t][16]."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        u, u_row, delta, delta_row, a2, d, bias, h0, b, c, bc_row, tokens, states, hs, decays, ys = args
        skip, shift = s.load(d, "f32"), s.load(bias, "f32")
        panel = builder.mul(states, s.i64(LANES))
        with s.loop(0, tokens) as t:
            first = builder.icmp_signed("==", t, s.i64(0))
            previous = s.address(hs, "f32", builder.mul(builder.sub(t, s.i64(1)), panel))
            before = builder.select(first, h0, previous)
            dt = s.softplus(s.load(delta, "f32", builder.mul(t, delta_row)) + shift)
            x = s.load(u, "f32", builder.mul(t, u_row))
            bt, ct = (s.address(p, "f32", builder.mul(t, bc_row)) for p in (b, c))
            keep = tuple(s.address(p, "f32", builder.mul(t, panel)) for p in (hs, decays))
            out = s.fma(x, skip, recurrence(s, dt, dt * x, a2, before, bt, ct, states, keep))
            s.store(ys, out, builder.mul(t, s.i64(LANES)))
        return context.get_dummy_value()

    arguments = (u, u_row, delta, delta_row, a2, d, bias, h0, b, c, bc_row, tokens, states, hs, decays, ys)
    return types.void(*arguments), codegen


@intrinsic
def _gradient_token(
    typingctx, gy, u, delta, z, y, a2, d, bias, b, c, h, h_before, decay, states,
    gu, gdelta, gz, ga, gd, gbias, gb, gc, gh,
):  # fmt: skip
    """One token, sixteen channels, backwards. gb, gc hold [n][16] partial sums over channel blocks; gh is carried."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        (gy, u, delta, z, y, a2, d, bias, b, c, h, h_before, decay, states,
         gu, gdelta, gz, ga, gd, gbias, gb, gc, gh) = args  # fmt: skip
        x, gate_in, dy, shifted = s.load(u, "f32"), s.load(z, "f32"), s.load(gy, "f32"), s.load(delta, "f32")
        shifted = shifted + s.load(bias, "f32")
        dt = s.softplus(shifted)
        gate = s.sigmoid(gate_in)
        gs = dy * gate_in * gate
        s.store(gz, dy * s.load(y, "f32") * gate * s.fma(gate_in, 1.0 - gate, 1.0))
        s.store(gd, s.fma(gs, x, s.load(gd, "f32")))
        du = dt * x
        g_du, g_decay = s.cell(s.splat(0.0)), s.cell(s.splat(0.0))
        with s.loop(0, states) as n:
            at = panel_offset(s, n, 0)
            g = s.fma(gs, s.splat(s.scalar(c, "f32", n)), s.load(gh, "f32", at))
            s.store(gc, s.fma(gs, s.load(h, "f32", at), s.load(gc, "f32", at)), at)
            s.store(gb, s.fma(g, du, s.load(gb, "f32", at)), at)
            g_du.set(s.fma(g, s.splat(s.scalar(b, "f32", n)), g_du.get()))
            back = g * s.load(decay, "f32", at)
            s.store(gh, back, at)
            exponent = back * s.load(h_before, "f32", at)
            g_decay.set(s.fma(exponent, s.load(a2, "f32", at), g_decay.get()))
            s.store(ga, s.fma(exponent, dt, s.load(ga, "f32", at)), at)
        g_dt = s.fma(g_du.get(), x, g_decay.get() * LN2)
        s.store(gu, s.fma(g_du.get(), dt, gs * s.load(d, "f32")))
        g_delta = g_dt * s.sigmoid(shifted)
        s.store(gdelta, g_delta)
        s.store(gbias, s.load(gbias, "f32") + g_delta)
        return context.get_dummy_value()

    arguments = (gy, u, delta, z, y, a2, d, bias, b, c, h, h_before, decay, states,
                 gu, gdelta, gz, ga, gd, gbias, gb, gc, gh)  # fmt: skip
    return types.void(*arguments), codegen


@intrinsic
def _sum_lanes(typingctx, source, target, n):
    """target[i] = sum of source[i][0:16] for i below n."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        source, target, n = args
        with s.loop(0, n) as i:
            total = s.sum(s.load(source, "f32", panel_offset(s, i, 0)))
            builder.store(total, s.pointer(target, "f32", i))
        return context.get_dummy_value()

    return types.void(source, target, n), codegen


@njit(cache=True, nogil=True)
def _forward(
    u, u_batch, u_row, delta, delta_batch, delta_row, z, z_batch, z_row, b, c, bc_batch, bc_row,
    a2, d, bias, h, saved, y, batch, length, width, states, chunk,
):  # fmt: skip
    panel = 4 * LANES * states
    blocks = width // LANES
    chunks = (length + chunk - 1) // chunk
    for i in range(batch):
        for k in range(chunks):
            first = k * chunk
            tokens = min(chunk, length - first)
            bt = b + 4 * (i * bc_batch + first * bc_row)
            ct = c + 4 * (i * bc_batch + first * bc_row)
            for block in range(blocks):
                lane = 4 * LANES * block
                state = h + (i * blocks + block) * panel
                if saved != 0:
                    _copy(state, saved + ((i * chunks + k) * blocks + block) * panel, states)
                _scan_tile(
                    u + 4 * (i * u_batch + first * u_row) + lane, u_row,
                    delta + 4 * (i * delta_batch + first * delta_row) + lane, delta_row,
                    z + 4 * (i * z_batch + first * z_row) + lane, z_row,
                    y + 4 * (i * length + first) * width + lane, width,
                    a2 + block * panel, d + lane, bias + lane, state, bt, ct, bc_row, tokens, states,
                )  # fmt: skip


@intrinsic
def _copy(typingctx, source, target, vectors):
    """Copy `vectors` times sixteen floats."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        source, target, vectors = args
        with s.loop(0, vectors) as i:
            s.store(target, s.load(source, "f32", panel_offset(s, i, 0)), panel_offset(s, i, 0))
        return context.get_dummy_value()

    return types.void(source, target, vectors), codegen


@intrinsic
def _zero(typingctx, target, vectors):
    """Clear `vectors` times sixteen floats."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        with s.loop(0, args[1]) as i:
            s.store(args[0], s.splat(0.0), panel_offset(s, i, 0))
        return context.get_dummy_value()

    return types.void(target, vectors), codegen


@njit(cache=True, nogil=True)
def _backward(
    gy, u, u_batch, u_row, delta, delta_batch, delta_row, z, z_batch, z_row, b, c, bc_batch, bc_row,
    a2, d, bias, saved, gu, gdelta, gz, ga, gd, gbias, gb, gc, gh, scratch, batch, length, width, states, chunk,
):  # fmt: skip
    panel = 4 * LANES * states
    blocks = width // LANES
    chunks = (length + chunk - 1) // chunk
    size = chunk * panel  # scratch: states, decays, partial sums of gB and gC [t][n][16], outputs [t][16]
    hs, decays, gbp, gcp, outs = scratch, scratch + size, scratch + 2 * size, scratch + 3 * size, scratch + 4 * size
    for i in range(batch):
        for k in range(chunks - 1, -1, -1):
            first = k * chunk
            tokens = min(chunk, length - first)
            _zero(gbp, 2 * chunk * states)
            bt = b + 4 * (i * bc_batch + first * bc_row)
            ct = c + 4 * (i * bc_batch + first * bc_row)
            for block in range(blocks):
                lane = 4 * LANES * block
                ut = u + 4 * (i * u_batch + first * u_row) + lane
                dt = delta + 4 * (i * delta_batch + first * delta_row) + lane
                zt = z + 4 * (i * z_batch + first * z_row) + lane
                h0 = saved + ((i * chunks + k) * blocks + block) * panel
                ap = a2 + block * panel
                _recompute_tile(
                    ut, u_row, dt, delta_row, ap, d + lane, bias + lane, h0, bt, ct, bc_row, tokens, states,
                    hs, decays, outs,
                )  # fmt: skip
                for t in range(tokens - 1, -1, -1):
                    row = 4 * (i * length + first + t) * width + lane
                    before = h0 if t == 0 else hs + (t - 1) * panel
                    _gradient_token(
                        gy + row, ut + 4 * t * u_row, dt + 4 * t * delta_row, zt + 4 * t * z_row,
                        outs + 4 * LANES * t, ap, d + lane, bias + lane,
                        bt + 4 * t * bc_row, ct + 4 * t * bc_row, hs + t * panel, before, decays + t * panel, states,
                        gu + row, gdelta + row, gz + row, ga + block * panel, gd + lane, gbias + lane,
                        gbp + t * panel, gcp + t * panel, gh + (i * blocks + block) * panel,
                    )  # fmt: skip
            rows = 4 * (i * length + first) * states
            _sum_lanes(gbp, gb + rows, tokens * states)
            _sum_lanes(gcp, gc + rows, tokens * states)


def _check(u: Tensor, a: Tensor, b: Tensor) -> tuple[int, int, int, int]:
    batch, length, width = u.shape
    states = a.shape[1]
    if width % LANES or states % UNROLL or a.shape[0] != width or tuple(b.shape) != (batch, length, states):
        raise CostmodelError(
            f"selective_scan takes u (B, L, D), A (D, N), B (B, L, N), D a multiple of {LANES}, N of {UNROLL}: "
            f"given {tuple(u.shape)}, {tuple(a.shape)}, {tuple(b.shape)}"
        )
    return batch, length, width, states


def _strided(name: str, t: Tensor) -> tuple[int, int, int]:
    return (t.data_ptr(), *row_strides(name, t))


def _alike(b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """B and C with the same strides: they are slices of one projection, or else are copied."""
    return (b, c) if b.stride() == c.stride() else (b.contiguous(), c.contiguous())


def decay_panels(a: Tensor) -> Tensor:
    """A · log2(e) in panels (D/16, N, 16): exp(dt·A) is then one exp2."""
    return to_panels((a * LOG2E).unsqueeze(0))


def _scan_cpu(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor, bias: Tensor, h0: Tensor | None,
    checkpoint: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, width, states = _check(u, a, b)
    blocks, chunks = width // LANES, -(-length // CHUNK)
    a2 = decay_panels(a)
    h = u.new_zeros(batch, blocks, states, LANES) if h0 is None else h0.clone()
    saved = u.new_empty(batch, chunks if checkpoint else 0, blocks, states, LANES)
    y = u.new_empty(batch, length, width)
    b, c = _alike(b, c)
    d, bias = d.contiguous(), bias.contiguous()
    _forward(
        *_strided("u", u), *_strided("delta", delta), *_strided("z", z), b.data_ptr(), *_strided("C", c),
        a2.data_ptr(), d.data_ptr(), bias.data_ptr(), h.data_ptr(),
        saved.data_ptr() if checkpoint else 0, y.data_ptr(), batch, length, width, states, CHUNK,
    )  # fmt: skip
    return y, h, saved


def _scan_backward_cpu(
    gy: Tensor, gh: Tensor | None, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor,
    bias: Tensor, saved: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    batch, length, width, states = _check(u, a, b)
    a2 = decay_panels(a)
    gu, gdelta, gz = (u.new_empty(batch, length, width) for _ in range(3))
    gb, gc = (u.new_empty(batch, length, states) for _ in range(2))
    ga, gd, gbias = torch.zeros_like(a2), torch.zeros_like(d), torch.zeros_like(bias)
    carry = torch.zeros_like(saved[:, 0]) if gh is None else gh.clone(memory_format=torch.contiguous_format)
    b, c = _alike(b, c)
    gy, d, bias = gy.contiguous(), d.contiguous(), bias.contiguous()
    scratch = u.new_empty(CHUNK * LANES * (4 * states + 1))
    _backward(
        gy.data_ptr(), *_strided("u", u), *_strided("delta", delta), *_strided("z", z),
        b.data_ptr(), *_strided("C", c), a2.data_ptr(), d.data_ptr(), bias.data_ptr(),
        saved.data_ptr(), gu.data_ptr(), gdelta.data_ptr(), gz.data_ptr(), ga.data_ptr(), gd.data_ptr(),
        gbias.data_ptr(), gb.data_ptr(), gc.data_ptr(), carry.data_ptr(), scratch.data_ptr(),
        batch, length, width, states, CHUNK,
    )  # fmt: skip
    return gu, gdelta, from_panels(ga)[0], gb, gc, gd, gz, gbias, carry


def _scan_fake(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor, bias: Tensor, h0: Tensor | None,
    checkpoint: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, width, states = _check(u, a, b)
    blocks = width // LANES
    chunks = -(-length // CHUNK) if checkpoint else 0
    h = u.new_empty(batch, blocks, states, LANES)
    return u.new_empty(u.shape), h, u.new_empty(batch, chunks, blocks, states, LANES)


def _scan_backward_fake(
    gy: Tensor, gh: Tensor | None, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, z: Tensor,
    bias: Tensor, saved: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    gu, gdelta, gz = (u.new_empty(u.shape) for _ in range(3))
    ga, gb, gc, gd, gbias = (t.new_empty(t.shape) for t in (a, b, c, d, bias))
    return gu, gdelta, ga, gb, gc, gd, gz, gbias, saved.new_empty(saved.shape[0], *saved.shape[2:])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, h0, checkpoint = inputs
    if not checkpoint:
        raise CostmodelError("selective_scan is differentiable only with checkpoint=True")
    ctx.set_materialize_grads(False)
    ctx.has_h0 = h0 is not None
    ctx.save_for_backward(*tensors, output[2])


def _scan_autograd(ctx: Any, gy: Tensor | None, gh: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    u, delta, a, b, c, d, z, bias, saved = ctx.saved_tensors
    gy = torch.zeros_like(u) if gy is None else gy
    gu, gdelta, ga, gb, gc, gd, gz, gbias, gh0 = _BACKWARD(gy, gh, u, delta, a, b, c, d, z, bias, saved)
    return gu, gdelta, ga, gb, gc, gd, gz, gbias, gh0 if ctx.has_h0 else None, None


_BACKWARD = register(
    "selective_scan_backward(Tensor gy, Tensor? gh, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D,"
    " Tensor z, Tensor delta_bias, Tensor saved)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _scan_backward_cpu,
    _scan_backward_fake,
    direct=True,
)
_FORWARD = register(
    "selective_scan(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor z, Tensor delta_bias,"
    " Tensor? h0, bool checkpoint) -> (Tensor, Tensor, Tensor)",
    _scan_cpu,
    _scan_fake,
    backward=_scan_autograd,
    setup_context=_setup,
    direct=True,
)


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor,
    h0: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, L, D) and the last state in panels (B, D/16, N, 16); differentiable where gradients are wanted."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, h0)
    train = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, h, _ = _FORWARD(*tensors, train)
    return y, h
