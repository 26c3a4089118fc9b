# ruff: noqa: ARG001, ARG005  # a fake takes what the op takes and needs only shapes
"""MobileTL ops: one-bit activations, shift-only norms, a trained norm that keeps its input only (METHODS.md §2).

    signed_act       y = act(a), keeps 1[a ≥ 0] packed; backward g·mask            (Hard-Swish, ReLU6; exact for ReLU)
    shift_norm       y = γ(x − μ)/σ + β with frozen statistics; backward γ/σ·g, Σg  (keeps no activation)
    shift_norm_act   both as one pass, within 1e-5 of torch's pair, or bit-identical where `exact`
    train_norm       batch statistics as in `nn.BatchNorm2d`; keeps x, recomputes the statistics in backward
    se_scale         y = x·hardsigmoid(z), keeps both; one product where eager keeps three tensors

Activations are (B, C, h, w), made contiguous; vectors are (C,). Source: MobileTL, arXiv 2212.03246, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import CostmodelError
from . import register
from .mobiletl_simd import (
    CLAMP,
    EXACT_HARDSWISH,
    HARDSWISH,
    act_planes,
    mask_norm_planes,
    mask_planes,
    norm_act_planes,
)
from .norm_simd import norm_backward, scale_backward, scale_norm_planes

__all__ = [
    "ACTIVATIONS",
    "mask_bytes",
    "pack",
    "se_scale",
    "shift_norm",
    "shift_norm_act",
    "signed_act",
    "train_norm",
    "unpack",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"hardswish": F.hardswish, "relu6": F.relu6, "relu": F.relu}


def mask_bytes(numel: int) -> int:
    """Bytes of a packed mask.

    >>> mask_bytes(16), mask_bytes(17)
    (2, 3)
    """
    return -(-numel // 8)


def passes(a: Tensor, act: str) -> Tensor:
    """Where the backward lets a gradient through: a ≥ 0, and for ReLU a > 0, which is its exact derivative."""
    return a > 0 if act == "relu" else a >= 0


def pack(bits: Tensor) -> Tensor:
    """Booleans of any shape to uint8 (ceil(numel/8),): element i is bit i % 8 of byte i // 8."""
    flat = F.pad(bits.flatten(), (0, -bits.numel() % 8)).contiguous()
    # eight bytes of 0 or 1, least significant first, move to the top byte in order (no two terms meet in a bit)
    return (flat.view(torch.int64) * 0x0102040810204080 >> 56).to(torch.uint8)


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The booleans that `pack` packed."""
    numel = 1
    for n in shape:
        numel *= n
    return _bytes_to_bits()[packed.long()].view(torch.bool)[:numel].view(tuple(shape))


@cache
def _bytes_to_bits() -> Tensor:
    """Eight booleans of each byte value as one int64, (256,)."""
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    return bits.to(torch.uint8).view(torch.int64).flatten()


def _gain(weight: Tensor, var: Tensor, eps: float) -> Tensor:
    return weight * torch.rsqrt(var + eps)


def _per_channel(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1)


def _check_act(act: str) -> None:
    if act not in ACTIVATIONS:
        raise CostmodelError(f"act={act!r} has no one-bit backward: use {', '.join(ACTIVATIONS)}")


def _fast(*tensors: Tensor) -> bool:
    """Whether the vector kernels take these: fp32 on a CPU, contiguous, with a mask of at least eight bytes."""
    for t in tensors:
        if t.dtype is not torch.float32 or not t.is_cpu or not t.is_contiguous():
            return False
    return tensors[0].numel() > 56


# a > 0 is a ≥ the least positive number
_LEAST = {"hardswish": 0.0, "relu6": 0.0, "relu": float(np.nextafter(np.float32(0), np.float32(1)))}
_HIGH = {"hardswish": 0.0, "relu6": 6.0, "relu": float("inf")}
_ONE, _ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


def _empty_mask(a: Tensor, keep: bool) -> Tensor:
    return a.new_empty(mask_bytes(a.numel()) if keep else 0, dtype=torch.uint8)


def _signed_act(a: Tensor, act: str, keep: bool) -> tuple[Tensor, Tensor]:
    _check_act(act)
    if _fast(a):
        y, mask = torch.empty_like(a), _empty_mask(a, keep)
        act_planes(
            EXACT_HARDSWISH if act == "hardswish" else CLAMP, a.data_ptr(), y.data_ptr(),
            mask.data_ptr(), len(mask), 1, a.numel(),
            _ONE, _ZERO, _HIGH[act], _LEAST[act],
        )  # fmt: skip
        return y, mask
    mask = pack(passes(a, act)) if keep else a.new_empty(0, dtype=torch.uint8)
    return ACTIVATIONS[act](a), mask


def _signed_act_fake(a: Tensor, act: str, keep: bool) -> tuple[Tensor, Tensor]:
    _check_act(act)
    return a.new_empty(a.shape), a.new_empty(mask_bytes(a.numel()) if keep else 0, dtype=torch.uint8)


def _signed_act_backward(g: Tensor, mask: Tensor) -> Tensor:
    if _fast(g):
        out = torch.empty_like(g)
        mask_planes(g.data_ptr(), out.data_ptr(), mask.data_ptr(), len(mask), 1, g.numel(), _ONE, 0)
        return out
    return g * unpack(mask, g.shape)


def _shift_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)


def _shift_norm_backward(
    g: Tensor, weight: Tensor, var: Tensor, eps: float, need: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    if need[0] and need[1] and _fast(g, weight):
        out, g_b = torch.empty_like(g), torch.empty_like(var)
        images, channels = g.shape[:2]
        scale_norm_planes(
            g.data_ptr(), out.data_ptr(), images, channels, g.numel() // (images * channels),
            weight.data_ptr(), var.data_ptr(), eps, g_b.data_ptr(),
        )  # fmt: skip
        return out, g_b
    g_x = g * _per_channel(_gain(weight, var, eps)) if need[0] else g.new_empty(0)
    return g_x, g.sum((0, 2, 3)) if need[1] else g.new_empty(0)


def _shift_norm_backward_fake(
    g: Tensor, weight: Tensor, var: Tensor, eps: float, need: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    return g.new_empty(g.shape if need[0] else 0), g.new_empty(g.shape[1] if need[1] else 0)


def _shift_norm_act(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, act: str, keep: bool, exact: bool
) -> tuple[Tensor, Tensor]:
    if exact or not _fast(x, weight):
        return _signed_act(_shift_norm(x, weight, bias, mean, var, eps), act, keep)
    _check_act(act)
    y, mask = torch.empty_like(x), _empty_mask(x, keep)
    images, channels = x.shape[:2]
    norm_act_planes(
        HARDSWISH if act == "hardswish" else CLAMP, x.data_ptr(), y.data_ptr(), mask.data_ptr(), len(mask),
        images, channels, x.numel() // (images * channels),
        weight.data_ptr(), bias.data_ptr(), mean.data_ptr(), var.data_ptr(), eps,
        _HIGH[act], _LEAST[act],
    )  # fmt: skip
    return y, mask


def _shift_norm_act_fake(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, act: str, keep: bool, exact: bool
) -> tuple[Tensor, Tensor]:
    return _signed_act_fake(x, act, keep)


def _shift_norm_act_backward(
    g: Tensor, mask: Tensor, weight: Tensor, var: Tensor, eps: float, need: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    if not _fast(g, weight):
        return _shift_norm_backward(_signed_act_backward(g, mask), weight, var, eps, need)
    g_x, g_b = torch.empty_like(g), torch.empty_like(var)
    images, channels = g.shape[:2]
    mask_norm_planes(
        g.data_ptr(), g_x.data_ptr(), mask.data_ptr(), len(mask), images, channels,
        g.numel() // (images * channels), weight.data_ptr(), var.data_ptr(), eps, g_b.data_ptr(),
    )  # fmt: skip
    return g_x, g_b if need[1] else g.new_empty(0)


def _shift_norm_act_backward_fake(
    g: Tensor, mask: Tensor, weight: Tensor, var: Tensor, eps: float, need: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    return _shift_norm_backward_fake(g, weight, var, eps, need)


def _train_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    # momentum 1 makes torch's own running statistics those of this batch (the variance unbiased)
    mean, var = torch.zeros_like(weight), torch.zeros_like(weight)
    y = torch.native_batch_norm(x, weight, bias, mean, var, True, 1.0, eps)[0]
    return y, mean, var


def _train_norm_fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(weight)


def _train_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, eps: float, need: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    if _fast(g, x, weight):
        g_x = torch.empty_like(g) if need[0] else g.new_empty(0)
        g_w, g_b = torch.empty_like(weight), torch.empty_like(weight)
        images, channels = x.shape[:2]
        norm_backward(
            g.data_ptr(), x.data_ptr(), g_x.data_ptr(), images, channels, x.numel() // (images * channels),
            weight.data_ptr(), eps, need[0], g_w.data_ptr(), g_b.data_ptr(),
        )  # fmt: skip
        return g_x, g_w if need[1] else g.new_empty(0), g_b if need[2] else g.new_empty(0)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    grads = torch.ops.aten.native_batch_norm_backward(
        g, x, weight, None, None, mean, torch.rsqrt(var + eps), True, eps, list(need)
    )
    g_x, g_w, g_b = (g.new_empty(0) if grad is None else grad for grad in grads)
    return g_x, g_w, g_b


def _train_norm_backward_fake(
    g: Tensor, x: Tensor, weight: Tensor, eps: float, need: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    vector = [g.new_empty(weight.shape if needed else 0) for needed in need[1:]]
    return g.new_empty(g.shape if need[0] else 0), vector[0], vector[1]


def _se_scale(x: Tensor, z: Tensor) -> Tensor:
    return x * F.hardsigmoid(z)


def _se_scale_backward(g: Tensor, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    if _fast(g, x, z):
        scale, g_scale, g_x = F.hardsigmoid(z), torch.empty_like(z), torch.empty_like(g)
        planes = x.shape[0] * x.shape[1]
        scale_backward(
            g.data_ptr(), x.data_ptr(), g_x.data_ptr(), planes, x.numel() // planes,
            scale.view(-1).numpy(), g_scale.view(-1).numpy(),
        )  # fmt: skip
        return g_x, torch.ops.aten.hardsigmoid_backward(g_scale, z)
    g_scale = (g * x).sum((2, 3), keepdim=True)
    return g * F.hardsigmoid(z), torch.ops.aten.hardsigmoid_backward(g_scale, z)


def _setup_signed_act(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _autograd_signed_act(ctx: Any, g: Tensor | None, _: None) -> tuple[Any, ...]:
    grad = None if g is None else signed_act_backward(g.contiguous(), *ctx.saved_tensors)
    return grad, None, None


def _setup_shift_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1], inputs[4])
    ctx.eps = inputs[5]


def _autograd_shift_norm(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    weight, var = ctx.saved_tensors
    need = _needed(ctx, 0, 2)
    g_x, g_b = shift_norm_backward(g.contiguous(), weight, var, ctx.eps, need)
    return g_x if need[0] else None, None, g_b if need[1] else None, None, None, None


def _setup_shift_norm_act(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], inputs[1], inputs[4])
    ctx.eps = inputs[5]


def _autograd_shift_norm_act(ctx: Any, g: Tensor | None, _: None) -> tuple[Any, ...]:
    if g is None:
        return (None,) * 9
    mask, weight, var = ctx.saved_tensors
    need = _needed(ctx, 0, 2)
    g_x, g_b = shift_norm_act_backward(g.contiguous(), mask, weight, var, ctx.eps, need)
    return g_x if need[0] else None, None, g_b if need[1] else None, *(None,) * 6


def _setup_train_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:2])
    ctx.eps = inputs[3]


def _autograd_train_norm(ctx: Any, g: Tensor | None, *_: None) -> tuple[Any, ...]:
    if g is None:
        return (None,) * 4
    need = _needed(ctx, 0, 1, 2)
    grads = train_norm_backward(g.contiguous(), *ctx.saved_tensors, ctx.eps, need)
    return (*(grad if needed else None for grad, needed in zip(grads, need)), None)


def _setup_se_scale(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _autograd_se_scale(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
    grads: tuple[Tensor, Tensor] = se_scale_backward(g.contiguous(), *ctx.saved_tensors)
    return grads


def _needed(ctx: Any, *places: int) -> list[bool]:
    return [bool(ctx.needs_input_grad[place]) for place in places]


signed_act_backward = register(
    "signed_act_backward(Tensor g, Tensor mask) -> Tensor",
    _signed_act_backward,
    lambda g, mask: g.new_empty(g.shape),
    direct=True,
)
signed_act = register(
    "signed_act(Tensor a, str act, bool keep) -> (Tensor, Tensor)",
    _signed_act,
    _signed_act_fake,
    backward=_autograd_signed_act,
    setup_context=_setup_signed_act,
    direct=True,
)
shift_norm_backward = register(
    "shift_norm_backward(Tensor g, Tensor weight, Tensor var, float eps, bool[2] need) -> (Tensor, Tensor)",
    _shift_norm_backward,
    _shift_norm_backward_fake,
    direct=True,
)
shift_norm = register(
    "shift_norm(Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor var, float eps) -> Tensor",
    _shift_norm,
    lambda x, weight, bias, mean, var, eps: x.new_empty(x.shape),
    backward=_autograd_shift_norm,
    setup_context=_setup_shift_norm,
    direct=True,
)
shift_norm_act_backward = register(
    "shift_norm_act_backward(Tensor g, Tensor mask, Tensor weight, Tensor var, float eps, bool[2] need)"
    " -> (Tensor, Tensor)",
    _shift_norm_act_backward,
    _shift_norm_act_backward_fake,
    direct=True,
)
shift_norm_act = register(
    "shift_norm_act(Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor var, float eps, str act, bool keep,"
    " bool exact) -> (Tensor, Tensor)",
    _shift_norm_act,
    _shift_norm_act_fake,
    backward=_autograd_shift_norm_act,
    setup_context=_setup_shift_norm_act,
    direct=True,
)
train_norm_backward = register(
    "train_norm_backward(Tensor g, Tensor x, Tensor weight, float eps, bool[3] need) -> (Tensor, Tensor, Tensor)",
    _train_norm_backward,
    _train_norm_backward_fake,
    direct=True,
)
train_norm = register(
    "train_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)",
    _train_norm,
    _train_norm_fake,
    backward=_autograd_train_norm,
    setup_context=_setup_train_norm,
    direct=True,
)
se_scale_backward = register(
    "se_scale_backward(Tensor g, Tensor x, Tensor z) -> (Tensor, Tensor)",
    _se_scale_backward,
    lambda g, x, z: (g.new_empty(g.shape), z.new_empty(z.shape)),
    direct=True,
)
se_scale = register(
    "se_scale(Tensor x, Tensor z) -> Tensor",
    _se_scale,
    lambda x, z: x.new_empty(x.shape),
    backward=_autograd_se_scale,
    setup_context=_setup_se_scale,
    direct=True,
)
