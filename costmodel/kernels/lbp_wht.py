# ruff: noqa: ARG001  # a fake takes what the op takes and needs only shapes
"""LBP-WHT ops for linear layers and 1×1 convolutions: exact forward, low-rank backward (METHODS.md §1).

    y, x̂ = lbp_wht(x, W, b, …)                 x̂ = project(x), all that is saved besides a reference to W
    g_x, g_W, g_b = lbp_wht_backward(g, x̂, W, …)
        ĝ = project(g)/tile²    g_x = unproject(ĝ W)    g_W = ĝᵀ x̂    g_b = Σ g

A 2-D weight makes a linear layer, x (B, prefix + h·w, Ci); a 4-D weight a 1×1 convolution, x (B, Ci, h, w).
Both are one op each way; gradients that nothing needs come back empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import register
from .reduced import backward_rows, fits, project_rows
from .wht import Tiling, project, unproject

__all__ = ["lbp_wht", "lbp_wht_apply", "lbp_wht_backward"]

_TILING = "int[2] grid, int prefix, int tile, int[] bases, str padding"


def _tiling(grid: Sequence[int], prefix: int, tile: int, bases: Sequence[int], padding: str) -> Tiling:
    return Tiling((grid[0], grid[1]), prefix, tile, tuple(bases), padding)


def _tokens_last(x: Tensor) -> Tensor:
    """(B, C, h, w) as (B, h·w, C); rows of tokens stay as they are. A view."""
    return x.flatten(2).transpose(1, 2) if x.ndim == 4 else x


def _like_input(tokens: Tensor, grid: tuple[int, int], convolution: bool) -> Tensor:
    """Tokens (B, n, C) in the layout of the layer's input, contiguous."""
    if convolution:
        return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid).contiguous()
    return tokens.contiguous()


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    grid: Sequence[int], prefix: int, tile: int, bases: Sequence[int], padding: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tiling = _tiling(grid, prefix, tile, bases, padding)
    if weight.ndim == 4:
        y = torch.nn.functional.conv2d(x, weight, bias)
    else:
        y = torch.nn.functional.linear(x, weight, bias)
    if fits(x, weight, tiling):
        x_hat = x.new_empty((tiling.rows(x.shape[0]), weight.shape[1]))
        project_rows(x, tiling, x_hat, 1.0)
        return y, x_hat
    return y, project(_tokens_last(x), tiling, mean=False).contiguous()


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None,
    grid: Sequence[int], prefix: int, tile: int, bases: Sequence[int], padding: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tiling = _tiling(grid, prefix, tile, bases, padding)
    outputs, inputs = weight.shape[:2]
    shape = (x.shape[0], outputs, *x.shape[2:]) if weight.ndim == 4 else (*x.shape[:-1], outputs)
    return x.new_empty(shape), x.new_empty((tiling.rows(x.shape[0]), inputs))


def _backward(
    g: Tensor, x_hat: Tensor, weight: Tensor,
    grid: Sequence[int], prefix: int, tile: int, bases: Sequence[int], padding: str, mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    tiling = _tiling(grid, prefix, tile, bases, padding)
    convolution = weight.ndim == 4
    tokens = _tokens_last(g)
    if fits(g, weight, tiling):
        g_x, g_w = backward_rows(g, x_hat, weight, tiling, mask[0], mask[1])
        return g_x, g_w, tokens.sum((0, 1)) if mask[2] else g.new_empty(0)
    g_hat = project(tokens, tiling, mean=True)
    g_x, g_w, g_b = (g.new_empty(0) for _ in range(3))
    if mask[0]:
        rows = g_hat @ weight.flatten(1)
        g_x = _like_input(unproject(rows, g.shape[0], tiling), tiling.grid, convolution)
    if mask[1]:
        g_w = (g_hat.T @ x_hat).view(weight.shape)
    if mask[2]:
        g_b = tokens.sum((0, 1))
    return g_x, g_w, g_b


def _backward_fake(
    g: Tensor, x_hat: Tensor, weight: Tensor,
    grid: Sequence[int], prefix: int, tile: int, bases: Sequence[int], padding: str, mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    outputs, inputs = weight.shape[:2]
    g_x = (g.shape[0], inputs, *g.shape[2:]) if weight.ndim == 4 else (*g.shape[:-1], inputs)
    return (
        g.new_empty(g_x if mask[0] else 0),
        g.new_empty(weight.shape if mask[1] else 0),
        g.new_empty(outputs if mask[2] else 0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_hat = output[1]
    ctx.mark_non_differentiable(x_hat)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x_hat if ctx.needs_input_grad[1] else None, inputs[1])
    ctx.tiling = inputs[3:]


def _autograd(ctx: Any, g: Tensor | None, _: None) -> tuple[Any, ...]:
    if g is None:
        return (None,) * 8
    x_hat, weight = ctx.saved_tensors
    mask = [bool(need) for need in ctx.needs_input_grad[:3]]
    empty = weight.new_empty(0) if x_hat is None else x_hat
    grads = lbp_wht_backward(g.contiguous(), empty, weight, *ctx.tiling, mask)
    return (*(grad if need else None for grad, need in zip(grads, mask)), *(None,) * 5)


lbp_wht_backward = register(
    f"lbp_wht_backward(Tensor g, Tensor x_hat, Tensor weight, {_TILING}, bool[3] mask) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    direct=True,
)
lbp_wht = register(
    f"lbp_wht(Tensor x, Tensor weight, Tensor? bias, {_TILING}) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    backward=_autograd,
    setup_context=_setup,
    direct=True,
)


def lbp_wht_apply(x: Tensor, weight: Tensor, bias: Tensor | None, tiling: Tiling) -> Tensor:
    """The layer's exact output, (B, L, Co) or (B, Co, h, w), with the low-rank backward attached.

    Args:
        x: (B, prefix + h·w, Ci), or (B, Ci, h, w) for a 1×1 convolution; fp32, bf16, fp16 or fp64.
        weight: (Co, Ci) or (Co, Ci, 1, 1).
        bias: (Co,) or None.
        tiling: grid, tile and bases; it must have passed `Tiling.check`.
    """
    y: Tensor = lbp_wht(x.contiguous(), weight, bias, *tiling)[0]
    return y
