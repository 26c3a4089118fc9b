"""Low-rank adaptation: frozen linear layers with a trained product of two thin matrices beside them (baseline)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CostmodelError
from .structure import head, input_shapes, is_pointwise, replace, train_all

__all__ = ["Adapted", "apply"]


class Adapted(nn.Module):
    """y = layer(x) + (alpha/rank)·B(A(x)): `layer` is frozen, A is random, B starts at zero (arXiv 2106.09685).

    The layer is an `nn.Linear` or a 1×1 `nn.Conv2d`; A and B are of its kind, without bias.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.scale = alpha / rank
        like: dict[str, Any] = {"bias": False, "device": layer.weight.device, "dtype": layer.weight.dtype}
        outputs, inputs = layer.weight.shape[:2]
        if isinstance(layer, nn.Conv2d):
            self.down: nn.Module = nn.Conv2d(inputs, rank, 1, **like)
            self.up: nn.Module = nn.Conv2d(rank, outputs, 1, **like)
        else:
            self.down, self.up = nn.Linear(inputs, rank, **like), nn.Linear(rank, outputs, **like)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, (…, Co) or (B, Co, h, w)."""
        return torch.add(self.layer(x), self.up(self.down(x)), alpha=self.scale)


def apply(
    model: nn.Module,
    inputs: Any,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    layers: tuple[str, ...] = ("qkv", "query", "key", "value", "q_proj", "k_proj", "v_proj", "proj"),
) -> nn.Module:
    """Put adapters beside the layers whose last name is in `layers` (``all``: every one); train them and the head.

    Modifies the model in place and returns it.
    """
    if rank < 1:
        raise CostmodelError(f"lora: rank={rank}; it is at least 1")
    last = head(model, inputs)
    names = [
        name
        for name in input_shapes(model, inputs, (nn.Linear, nn.Conv2d))
        if name != last
        and (layers == ("all",) or name.rpartition(".")[2] in layers)
        and _pointwise(model.get_submodule(name))
    ]
    if not names:
        raise CostmodelError(f"lora: no linear layer is named {', '.join(layers)}; name some, or layers=all")
    train_all(model, False)
    for name in names:
        layer: Any = model.get_submodule(name)
        replace(model, name, Adapted(layer, rank, alpha))
    train_all(model.get_submodule(last))
    return model


def _pointwise(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    return isinstance(layer, nn.Conv2d) and is_pointwise(layer)
