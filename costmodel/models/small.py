"""Two nets that trace, run and train in milliseconds: for the demo, the tests and a first look."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from .own import Own

__all__ = ["MODELS", "conv_small", "mlp_small"]


def mlp_small(widths: Sequence[int] = (784, 256, 256, 10)) -> nn.Sequential:
    """Linear layers with ReLU between, [N, widths[0]] to [N, widths[-1]]; 269,322 parameters as it is.

    >>> sum(p.numel() for p in mlp_small().parameters())
    269322
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv_small(num_classes: int = 10, width: int = 16) -> nn.Sequential:
    """Three convolutions with batch norm, strides 1, 2, 2, and a linear head; [N, 3, H, W] to [N, num_classes]."""
    layers: list[nn.Module] = []
    fan_in = 3
    for stage, stride in enumerate((1, 2, 2)):
        fan_out = width << stage
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False), nn.BatchNorm2d(fan_out), nn.ReLU()]
        fan_in = fan_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, num_classes))


MODELS = {
    "mlp-small": Own(mlp_small, (784,)),
    "conv-small": Own(conv_small, (3, 32, 32)),
}
