"""Partial fine-tuning: the last stage and what follows it train (baseline)."""

from __future__ import annotations

from typing import Any

from torch import nn

from .structure import freeze_before, last_stage

__all__ = ["apply"]


def apply(model: nn.Module, inputs: Any) -> nn.Module:  # noqa: ARG001  # every method takes the inputs
    """Freeze everything before the last stage; modifies the model in place and returns it."""
    freeze_before(model, last_stage(model))
    return model
