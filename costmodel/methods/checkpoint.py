"""Activation checkpointing: blocks keep their input only and run again in the backward pass (Chen et al. 2016)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import CostmodelError

__all__ = ["Checkpointed", "apply"]


class Checkpointed(nn.Module):
    """A block whose activations are made again when the backward pass needs them.

    In evaluation mode, or where nothing needs a gradient, it is the block.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return self.block(*args, **kwargs)
        return checkpoint(self.block, *args, use_reentrant=False, **kwargs)


def apply(model: nn.Module, inputs: Any) -> nn.Module:  # noqa: ARG001  # every method takes the inputs
    """Checkpoint the blocks of a model: its library's own way if it has one, else its longest sequence of blocks."""
    if getattr(model, "supports_gradient_checkpointing", False):  # transformers
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        return model
    if hasattr(model, "set_grad_checkpointing"):  # timm
        model.set_grad_checkpointing(True)  # type: ignore[operator]
        return model
    sequences = [m for m in model.modules() if isinstance(m, (nn.Sequential, nn.ModuleList)) and len(m) > 1]
    if not sequences:
        raise CostmodelError(
            f"checkpoint: {type(model).__name__} has no sequence of blocks (nn.Sequential, nn.ModuleList) to checkpoint"
        )
    blocks = max(sequences, key=len)
    for i, block in enumerate(blocks):
        if any(True for _ in block.parameters()):
            blocks[i] = Checkpointed(block)
    return model
