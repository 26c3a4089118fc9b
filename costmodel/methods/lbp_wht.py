"""LBP-WHT: exact forward, low-rank backward by Walsh-Hadamard projection of the tokens (arXiv 2309.15275)."""

from __future__ import annotations

from math import isqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import CostmodelError
from ..kernels.lbp_wht import lbp_wht_apply
from ..kernels.wht import Tiling, select_bases
from .structure import freeze_before, input_shapes, is_pointwise, last_stage, replace

__all__ = ["LbpConv2d", "LbpLinear", "apply"]

_PREFIX_TOKENS = ("cls_token", "class_token", "dist_token", "distillation_token", "reg_token", "register_tokens")
# linear layers that run on a table of positions, not on tokens
_POSITION_TABLES = ("cpb_mlp", "continuous_position_bias_mlp")


class LbpLinear(nn.Linear):
    """`nn.Linear` on tokens whose backward is low-rank; same parameters, same output, exact in eval mode.

    Takes (B, prefix + h·w, Ci) with the grid of `tiling`, or (B, h, w, Ci) with any grid that can be tiled.
    """

    tiling: Tiling

    def forward(self, x: Tensor) -> Tensor:
        """y = x Wᵀ + b, shaped as x but for the channels."""
        if not _active(self):
            return super().forward(x)
        tiling = self.tiling
        if x.ndim == 4:
            tiling = tiling._replace(grid=(x.shape[1], x.shape[2]), prefix=0)
            y = lbp_wht_apply(x.flatten(1, 2), self.weight, self.bias, tiling)
            return y.unflatten(1, tiling.grid)
        if x.ndim != 3 or x.shape[1] != tiling.tokens:
            h, w = tiling.grid
            raise CostmodelError(
                f"lbp_wht: an input of shape {tuple(x.shape)} on a layer made for {tiling.prefix} + {h}x{w} tokens: "
                "apply the method again with inputs of this size"
            )
        return lbp_wht_apply(x, self.weight, self.bias, tiling)


class LbpConv2d(nn.Conv2d):
    """A 1×1 `nn.Conv2d` (stride 1, one group, no padding) whose backward is low-rank; exact in eval mode."""

    tiling: Tiling

    def forward(self, x: Tensor) -> Tensor:
        """y (B, Co, h, w) of x (B, Ci, h, w)."""
        if not _active(self):
            return super().forward(x)
        tiling = self.tiling._replace(grid=(x.shape[2], x.shape[3]))
        return lbp_wht_apply(x, self.weight, self.bias, tiling)


def _active(layer: nn.Linear | nn.Conv2d) -> bool:
    return layer.training and torch.is_grad_enabled() and layer.weight.requires_grad


def apply(
    model: nn.Module,
    inputs: Any,
    *,
    order: int | None = None,
    family: Literal["l1", "linf"] = "l1",
    bases: tuple[str, ...] | None = None,
    padding: Literal["zero", "reflect"] = "zero",
    tile: Literal[4, 8, 16] = 8,
    grid: tuple[int, int] | None = None,
    layers: tuple[str, ...] | None = None,
    stage: Literal["all", "last"] = "all",
) -> nn.Module:
    """Give the linear layers and 1×1 convolutions that run on a token grid the low-rank backward.

    Modifies the model in place and returns it. What trains stays as it is, unless ``stage=last``.

    Args:
        model: transformers' or timm's ViT, DeiT, Swin, EfficientFormer, or any model of such layers.
        inputs: example inputs; one forward finds the tokens of each layer.
        order: o of the selection, 4 where neither it nor `bases` is given.
        family: ``l1``, i + j < o, or ``linf``, max(i, j) < o.
        bases: instead of an order, the kept pairs, ``0.0+0.1+1.0``.
        padding: ``zero`` converges to exact back-propagation, ``reflect`` is the paper's.
        tile: tokens a side of a tile.
        grid: (h, w) of the tokens of layers whose input is (B, L, C). Otherwise L, less the class, distillation
            and register tokens that the model has, must be a square (a guess that is refused where it is not one).
        layers: parts of module names; a layer is taken whose name contains one of them. Default: all that can be.
        stage: ``last`` freezes everything before the last stage.
    """
    chosen = _bases(order, family, bases, tile)
    prefix = _prefix_tokens(model)
    taken: dict[str, Tiling] = {}
    for name, shape in input_shapes(model, inputs, (nn.Linear, nn.Conv2d)).items():
        layer = model.get_submodule(name)
        named = layers is not None and any(part in name for part in layers)
        why_not = _unfit(layer, name, shape)
        if named and why_not:
            raise CostmodelError(f"lbp_wht: layer {name} {why_not}")
        if why_not or not (named or layers is None):
            continue
        found, extra = _token_grid(name, shape, prefix, grid, isinstance(layer, nn.Conv2d))
        taken[name] = Tiling(found, extra, tile, chosen, padding)
        taken[name].check()
    if not taken:
        raise CostmodelError(f"lbp_wht: no layer of {type(model).__name__} fits {layers or 'the method'}")
    for name, tiling in taken.items():
        replace(model, name, _low_rank(model.get_submodule(name), tiling))
    if stage == "last":
        freeze_before(model, last_stage(model))
    return model


def _bases(order: int | None, family: str, pairs: tuple[str, ...] | None, tile: int) -> tuple[int, ...]:
    if pairs is None:
        return select_bases(4 if order is None else order, family, tile)
    if order is not None:
        raise CostmodelError("lbp_wht: give order or bases, not both")
    chosen = []
    for pair in pairs:
        i, dot, j = pair.partition(".")
        if not (dot and i.isdecimal() and j.isdecimal() and int(i) < tile and int(j) < tile):
            raise CostmodelError(f"lbp_wht: bases={pair}; a base is i.j with i and j from 0 to {tile - 1}")
        chosen.append(int(i) * tile + int(j))
    return tuple(chosen)


def _prefix_tokens(model: nn.Module) -> int:
    """Class, distillation and register tokens, (1, count, C) parameters by the names that libraries give them."""
    return sum(p.shape[-2] for name, p in model.named_parameters() if name.rpartition(".")[2] in _PREFIX_TOKENS)


def _unfit(layer: nn.Module, name: str, shape: tuple[int, ...]) -> str:
    """Why the method cannot take a layer, or nothing."""
    if isinstance(layer, nn.Conv2d):
        if not is_pointwise(layer):
            return "is no 1×1 convolution of stride 1, one group and no padding"
        return "runs on a single position" if shape[2] * shape[3] == 1 else ""
    if any(table in name for table in _POSITION_TABLES):
        return "runs on a table of positions"
    if len(shape) not in (3, 4) or shape[1] == 1:
        return f"runs on an input of shape {shape}, which has no token grid"
    return ""


def _token_grid(
    name: str, shape: tuple[int, ...], prefix: int, grid: tuple[int, int] | None, convolution: bool
) -> tuple[tuple[int, int], int]:
    """(h, w) and prefix tokens of a layer's input."""
    if convolution:
        return (shape[2], shape[3]), 0
    if len(shape) == 4:
        return (shape[1], shape[2]), 0
    tokens = shape[1] - prefix
    if grid is None and tokens > 0 and isqrt(tokens) ** 2 == tokens:
        return (isqrt(tokens), isqrt(tokens)), prefix
    if grid is not None:
        for extra in (prefix, 0):  # a layer may run before the prefix tokens are there, and grid= says so
            if shape[1] - extra == grid[0] * grid[1]:
                return grid, extra
    wanted = f"grid={grid[0]}x{grid[1]}" if grid else "a square grid"
    raise CostmodelError(
        f"lbp_wht: layer {name} has {shape[1]} tokens, which is not {wanted}"
        f"{f' with {prefix} prefix tokens' if prefix else ''}: give grid=HxW, and layers=… if layers differ"
    )


def _low_rank(layer: nn.Module, tiling: Tiling) -> nn.Module:
    """The same layer with the same parameters (not copies), of the class that has the low-rank backward."""
    kind = LbpConv2d if isinstance(layer, nn.Conv2d) else LbpLinear
    twin: Any = kind.__new__(kind)
    twin.__dict__ = layer.__dict__
    twin.tiling = tiling
    module: nn.Module = twin
    return module
