"""Bias-only fine-tuning: biases, norm shifts and the last layer train; norms keep their statistics (TinyTL-style)."""

from __future__ import annotations

from typing import Any

from torch import nn

from .mobiletl import ShiftNorm
from .structure import head, replace, train_all

__all__ = ["apply"]


def apply(model: nn.Module, inputs: Any) -> nn.Module:
    """Train what needs no activation for its gradient; modifies the model in place and returns it.

    Batch norms become shift-only ones, so that they keep nothing, and stay so after `train()`; activations are
    exact and keep what they keep (arXiv 2007.11622, without its lite residual modules).
    """
    last = head(model, inputs)
    train_all(model, False)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            replace(model, name, ShiftNorm(module, "", exact=True, then=getattr(module, "act", None)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] == "bias")
    train_all(model.get_submodule(last))
    return model
