"""State-space scan of Mamba-2, fp32, forward and backward, one op each (Dao and Gu, arXiv 2405.21060, section 3).

    dt = clamp(softplus(delta + delta_bias))    h = exp(dt·A)·h + dt·x Bᵀ    y = h·C + D·x

`costmodel::ssd_scan(x, delta, A, B, C, D, delta_bias, h0, low, high, checkpoint) -> (y, h, saved)`: x (B, L, H, P),
delta (B, L, H), B and C (B, L, G, N) with any batch and token stride, A, D, delta_bias (H), h and h0 (B, H, P, N).

The states of a channel lie in the lanes, four channels share the loads of B and C, time runs inside chunks. On a CPU
the recurrence (3 vector operations an element of the state) is as cheap as the chunked matrix form with chunks of 64
(64/2 + N + N multiply-adds a channel and token against 3·N), needs no exp of differences, and a prefill equals
its steps bit for bit. The backward keeps one state a chunk of `CHUNK` tokens and computes the others again.
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
# ruff: noqa: ARG001
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from numba import njit, types
from torch import Tensor

from ..costs.scan import CHUNK
from ..errors import CostmodelError
from . import register
from .simd import LANES, Simd, intrinsic, require

__all__ = ["CHUNK", "ROWS", "copy_floats", "f32_at", "ssd_scan", "ssd_tile"]

require(1)

# CHUNK is 32 tokens: their states take 32·4·N·4 B = 64 KiB at N = 128
ROWS = 4  # channels in flight


@intrinsic
def ssd_tile(typingctx, x, x_row, y, y_row, a, dt, head_row, b, c, bc_row, h, hs, d, tokens, states):
    """`tokens` tokens of four channels of one head; h [4][N] in place; where hs is not 0 it gets every state."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, x_row, y, y_row, a, dt, head_row, b, c, bc_row, h, hs, d, tokens, states = args
        skip = s.splat(d, 4)
        keep = builder.icmp_signed("!=", hs, s.i64(0))
        tile = builder.mul(states, s.i64(ROWS))
        with s.loop(0, tokens) as t:
            here = builder.mul(t, head_row)
            decay, step = s.splat(s.scalar(a, "f32", here)), s.scalar(dt, "f32", here)
            inputs = s.load(x, "f32", builder.mul(t, x_row), 4)
            drives = (inputs * s.splat(step, 4)).value
            drive = [s.splat(builder.extract_element(drives, s.i64(r))) for r in range(ROWS)]
            bt, ct = (s.address(p, "f32", builder.mul(t, bc_row)) for p in (b, c))
            copy = builder.select(keep, s.address(hs, "f32", builder.mul(t, tile)), h)
            sums = [s.cell(s.splat(0.0)) for _ in range(ROWS)]
            with s.loop(0, states, LANES) as n:
                bn, cn = s.load(bt, "f32", n), s.load(ct, "f32", n)
                for r in range(ROWS):
                    at = builder.add(n, builder.mul(states, s.i64(r)))
                    new = s.fma(drive[r], bn, s.load(h, "f32", at) * decay)
                    s.store(h, new, at)
                    s.store(copy, new, at)
                    sums[r].set(s.fma(new, cn, sums[r].get()))
            s.store(y, s.fma(inputs, skip, s.sums(*(v.get() for v in sums))), builder.mul(t, y_row))
        return context.get_dummy_value()

    return types.void(x, x_row, y, y_row, a, dt, head_row, b, c, bc_row, h, hs, d, tokens, states), codegen


@intrinsic
def _ssd_gradient(typingctx, gy, x, a, dt, b, c, h, h_before, d, states, gx, gstep, ga, gd, gb, gc, gh):
    """One token, four channels, backwards; all but gx are added to; gh [4][N] is carried."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        gy, x, a, dt, b, c, h, h_before, d, states, gx, gstep, ga, gd, gb, gc, gh = args
        decay, step = s.splat(s.scalar(a, "f32")), s.splat(s.scalar(dt, "f32"), 4)
        inputs, dy = s.load(x, "f32", lanes=4), s.load(gy, "f32", lanes=4)
        drives = (inputs * step).value
        drive = [s.splat(builder.extract_element(drives, s.i64(r))) for r in range(ROWS)]
        grad = [s.splat(builder.extract_element(dy.value, s.i64(r))) for r in range(ROWS)]
        g_drive, g_decay = [s.cell(s.splat(0.0)) for _ in range(ROWS)], s.cell(s.splat(0.0))
        with s.loop(0, states, LANES) as n:
            bn, cn = s.load(b, "f32", n), s.load(c, "f32", n)
            gbn, gcn = s.load(gb, "f32", n), s.load(gc, "f32", n)
            for r in range(ROWS):
                at = builder.add(n, builder.mul(states, s.i64(r)))
                g = s.fma(grad[r], cn, s.load(gh, "f32", at))
                gcn = s.fma(grad[r], s.load(h, "f32", at), gcn)
                gbn = s.fma(drive[r], g, gbn)
                g_drive[r].set(s.fma(g, bn, g_drive[r].get()))
                g_decay.set(s.fma(g, s.load(h_before, "f32", at), g_decay.get()))
                s.store(gh, g * decay, at)
            s.store(gb, gbn, n)
            s.store(gc, gcn, n)
        g_input = s.sums(*(v.get() for v in g_drive))
        s.store(gx, s.fma(g_input, step, dy * s.splat(d, 4)))
        for target, value in ((gstep, s.sum(g_input * inputs)), (gd, s.sum(dy * inputs)), (ga, s.sum(g_decay.get()))):
            pointer = s.pointer(target, "f32")
            builder.store(builder.fadd(builder.load(pointer, typ=value.type), value), pointer)
        return context.get_dummy_value()

    arguments = (gy, x, a, dt, b, c, h, h_before, d, states, gx, gstep, ga, gd, gb, gc, gh)
    return types.void(*arguments), codegen


@intrinsic
def f32_at(typingctx, address):
    """The float at an address."""

    def codegen(context, builder, signature, args):
        return Simd(builder).scalar(args[0], "f32")

    return types.float32(address), codegen


@intrinsic
def copy_floats(typingctx, source, target, n):
    """Copy n floats, a multiple of 16."""

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        with s.loop(0, args[2], LANES) as i:
            s.store(args[1], s.load(args[0], "f32", i), i)
        return context.get_dummy_value()

    return types.void(source, target, n), codegen


@njit(cache=True, nogil=True)
def _forward(
    x, x_batch, x_row, b, c, bc_batch, bc_row, a, dt, d, h, saved, y, batch, length, heads, width, groups, states, chunk
):
    size = heads * width * states
    chunks = (length + chunk - 1) // chunk
    for i in range(batch):
        for k in range(chunks):
            first = k * chunk
            tokens = min(chunk, length - first)
            if saved != 0:
                copy_floats(h + 4 * i * size, saved + 4 * (i * chunks + k) * size, size)
            for head in range(heads):
                bc = 4 * (i * bc_batch + first * bc_row + head // (heads // groups) * states)
                here = 4 * ((i * length + first) * heads + head)
                for p in range(0, width, ROWS):
                    channel = head * width + p
                    ssd_tile(
                        x + 4 * (i * x_batch + first * x_row + channel), x_row,
                        y + 4 * ((i * length + first) * heads * width + channel), heads * width,
                        a + here, dt + here, heads, b + bc, c + bc, bc_row,
                        h + 4 * (i * size + channel * states), 0, f32_at(d + 4 * head), tokens, states,
                    )  # fmt: skip


@njit(cache=True, nogil=True)
def _backward(
    gy, x, x_batch, x_row, b, c, bc_batch, bc_row, a, dt, d, saved, gx, gstep, ga, gd, gb, gc, gh, scratch,
    batch, length, heads, width, groups, states, chunk,
):  # fmt: skip
    size = heads * width * states
    tile = 4 * ROWS * states
    chunks = (length + chunk - 1) // chunk
    last, ys, hs = scratch, scratch + tile, scratch + tile + 4 * ROWS * chunk
    for i in range(batch):
        for k in range(chunks - 1, -1, -1):
            first = k * chunk
            tokens = min(chunk, length - first)
            for head in range(heads):
                group = head // (heads // groups)
                bc = 4 * (i * bc_batch + first * bc_row + group * states)
                here = 4 * ((i * length + first) * heads + head)
                skip = f32_at(d + 4 * head)
                for p in range(0, width, ROWS):
                    channel = head * width + p
                    xt = x + 4 * (i * x_batch + first * x_row + channel)
                    h0 = saved + 4 * ((i * chunks + k) * size + channel * states)
                    copy_floats(h0, last, ROWS * states)
                    ssd_tile(
                        xt, x_row, ys, ROWS, a + here, dt + here, heads, b + bc, c + bc, bc_row, last, hs, skip,
                        tokens, states,
                    )  # fmt: skip
                    for t in range(tokens - 1, -1, -1):
                        row = 4 * ((i * length + first + t) * heads * width + channel)
                        at = here + 4 * t * heads
                        group_row = 4 * (((i * length + first + t) * groups + group) * states)
                        _ssd_gradient(
                            gy + row, xt + 4 * t * x_row, a + at, dt + at, b + bc + 4 * t * bc_row,
                            c + bc + 4 * t * bc_row, hs + t * tile, h0 if t == 0 else hs + (t - 1) * tile, skip, states,
                            gx + row, gstep + at, ga + at, gd + 4 * head, gb + group_row, gc + group_row,
                            gh + 4 * (i * size + channel * states),
                        )  # fmt: skip


def _check(x: Tensor, delta: Tensor, b: Tensor) -> tuple[int, int, int, int, int, int]:
    """batch, length, heads, width of a head, groups, states."""
    batch, length, heads, width = x.shape
    groups, states = b.shape[2:]
    if width % ROWS or states % LANES or heads % groups or tuple(delta.shape) != (batch, length, heads):
        raise CostmodelError(
            f"ssd_scan takes x (B, L, H, P), delta (B, L, H), B (B, L, G, N), P a multiple of {ROWS}, N of {LANES}, "
            f"H of G: given {tuple(x.shape)}, {tuple(delta.shape)}, {tuple(b.shape)}"
        )
    return batch, length, heads, width, groups, states


def _packed(t: Tensor) -> Tensor:
    """(B, L, M, K) whose last two dimensions are one run of memory; copied if they are not."""
    return t if t.stride(3) == 1 and t.stride(2) == t.shape[3] else t.contiguous()


def _steps(delta: Tensor, a: Tensor, bias: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """dt and exp(dt·A), (B, L, H)."""
    dt = F.softplus(delta + bias).clamp(low, high).contiguous()
    return dt, torch.exp(dt * a)


def _ssd_run(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, bias: Tensor, h0: Tensor | None,
    low: float, high: float, checkpoint: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, heads, width, groups, states = _check(x, delta, b)
    dt, decay = _steps(delta, a, bias, low, high)
    x, b, c, d = _packed(x), _packed(b), _packed(c), d.contiguous()
    if b.stride() != c.stride():
        b, c = b.contiguous(), c.contiguous()
    h = x.new_zeros(batch, heads, width, states)
    if h0 is not None:
        h.copy_(h0)
    saved = x.new_empty(batch, -(-length // CHUNK) if checkpoint else 0, heads, width, states)
    y = x.new_empty(batch, length, heads, width)
    _forward(
        x.data_ptr(), x.stride(0), x.stride(1), b.data_ptr(), c.data_ptr(), c.stride(0), c.stride(1), decay.data_ptr(),
        dt.data_ptr(), d.data_ptr(), h.data_ptr(), saved.data_ptr() if checkpoint else 0, y.data_ptr(),
        batch, length, heads, width, groups, states, CHUNK,
    )  # fmt: skip
    return y, h, saved


def _ssd_backward_run(
    gy: Tensor, gh: Tensor | None, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, bias: Tensor,
    saved: Tensor, low: float, high: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    batch, length, heads, width, groups, states = _check(x, delta, b)
    dt, decay = _steps(delta, a, bias, low, high)
    gy, x, b, c, d = gy.contiguous(), _packed(x), _packed(b), _packed(c), d.contiguous()
    if b.stride() != c.stride():
        b, c = b.contiguous(), c.contiguous()
    gx, gb, gc = torch.empty_like(gy), b.new_zeros(b.shape), c.new_zeros(c.shape)
    gstep, gdecay, gd = torch.zeros_like(dt), torch.zeros_like(dt), torch.zeros_like(d)
    carry = x.new_zeros(batch, heads, width, states) if gh is None else gh.clone(memory_format=torch.contiguous_format)
    scratch = x.new_empty(ROWS * (states * (CHUNK + 1) + CHUNK))
    _backward(
        gy.data_ptr(), x.data_ptr(), x.stride(0), x.stride(1), b.data_ptr(), c.data_ptr(), c.stride(0), c.stride(1),
        decay.data_ptr(), dt.data_ptr(), d.data_ptr(), saved.data_ptr(), gx.data_ptr(), gstep.data_ptr(),
        gdecay.data_ptr(), gd.data_ptr(), gb.data_ptr(), gc.data_ptr(), carry.data_ptr(), scratch.data_ptr(),
        batch, length, heads, width, groups, states, CHUNK,
    )  # fmt: skip
    exponent = gdecay.mul_(decay)
    ga = (exponent * dt).sum((0, 1))
    inside = (dt > low) & (dt < high)  # softplus is positive: dt > low holds wherever low = 0
    gdelta = gstep.add_(exponent * a) * torch.sigmoid(delta + bias) * inside
    return gx, gdelta, ga, gb, gc, gd, gdelta.sum((0, 1)), carry


def _ssd_fake(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, bias: Tensor, h0: Tensor | None,
    low: float, high: float, checkpoint: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, length, heads, width, _, states = _check(x, delta, b)
    chunks = -(-length // CHUNK) if checkpoint else 0
    h = x.new_empty(batch, heads, width, states)
    return x.new_empty(x.shape), h, x.new_empty(batch, chunks, heads, width, states)


def _ssd_backward_fake(
    gy: Tensor, gh: Tensor | None, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, bias: Tensor,
    saved: Tensor, low: float, high: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    grads = tuple(t.new_empty(t.shape) for t in (x, delta, a, b, c, d, bias))
    return *grads, saved.new_empty(saved.shape[0], *saved.shape[2:])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, h0, low, high, checkpoint = inputs
    if not checkpoint:
        raise CostmodelError("ssd_scan is differentiable only with checkpoint=True")
    ctx.set_materialize_grads(False)
    ctx.has_h0, ctx.limits = h0 is not None, (low, high)
    ctx.save_for_backward(*tensors, output[2])


def _ssd_autograd(ctx: Any, gy: Tensor | None, gh: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, *others, saved = ctx.saved_tensors
    gy = torch.zeros_like(x) if gy is None else gy
    *grads, gh0 = _BACKWARD(gy, gh, x, *others, saved, *ctx.limits)
    return *grads, gh0 if ctx.has_h0 else None, None, None, None


_BACKWARD = register(
    "ssd_scan_backward(Tensor gy, Tensor? gh, Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D,"
    " Tensor delta_bias, Tensor saved, float low, float high)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _ssd_backward_run,
    _ssd_backward_fake,
    direct=True,
)
_FORWARD = register(
    "ssd_scan(Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor D, Tensor delta_bias, Tensor? h0,"
    " float low, float high, bool checkpoint) -> (Tensor, Tensor, Tensor)",
    _ssd_run,
    _ssd_fake,
    backward=_ssd_autograd,
    setup_context=_setup,
    direct=True,
)


def ssd_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor,
    h0: Tensor | None = None, limit: tuple[float, float] = (0.0, float("inf")),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """y (B, L, H, P) and the last state (B, H, P, N); differentiable where gradients are wanted."""
    tensors = (x, delta, A, B, C, D, delta_bias, h0)
    train = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, h, _ = _FORWARD(*tensors, *limit, train)
    return y, h
