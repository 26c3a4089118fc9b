"""MobileNetV3-Small (Howard et al. 2019, table 2): the net of MobileTL's tables, without a library."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from .irb import conv_bn
from .own import Own

__all__ = ["MODELS", "InvertedResidual", "SqueezeExcite", "mobilenet_v3_small"]


class _Row(NamedTuple):
    """One line of table 2: depthwise kernel, hidden and output channels, squeeze-excite, Hard-Swish or ReLU, stride."""

    kernel: int
    hidden: int
    out: int
    squeeze: bool
    hard: bool
    stride: int


_TABLE = (
    _Row(3, 16, 16, True, False, 2),
    _Row(3, 72, 24, False, False, 2),
    _Row(3, 88, 24, False, False, 1),
    _Row(5, 96, 40, True, True, 2),
    _Row(5, 240, 40, True, True, 1),
    _Row(5, 240, 40, True, True, 1),
    _Row(5, 120, 48, True, True, 1),
    _Row(5, 144, 48, True, True, 1),
    _Row(5, 288, 96, True, True, 2),
    _Row(5, 576, 96, True, True, 1),
    _Row(5, 576, 96, True, True, 1),
)


class SqueezeExcite(nn.Module):
    """Channel gate: mean over H, W, 1×1 to a quarter of the channels (a multiple of 8), ReLU, 1×1, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        narrow = max(8, (quarter + 4) // 8 * 8)
        if narrow < 0.9 * quarter:  # the paper's rounding never takes more than a tenth away
            narrow += 8
        self.fc1 = nn.Conv2d(channels, narrow, 1)
        self.activation = nn.ReLU()
        self.fc2 = nn.Conv2d(narrow, channels, 1)
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.scale_activation(self.fc2(self.activation(self.fc1(squeezed))))


class InvertedResidual(nn.Module):
    """Expand 1×1 (if it widens), depthwise, squeeze-excite, project 1×1; added to the input where shapes allow."""

    def __init__(self, fan_in: int, row: _Row) -> None:
        super().__init__()
        act = nn.Hardswish if row.hard else nn.ReLU
        layers = conv_bn(fan_in, row.hidden, act=act) if row.hidden != fan_in else []
        layers += conv_bn(row.hidden, row.hidden, row.kernel, row.stride, groups=row.hidden, act=act)
        layers += [SqueezeExcite(row.hidden)] if row.squeeze else []
        self.layers = nn.Sequential(*layers, *conv_bn(row.hidden, row.out))
        self.residual = row.stride == 1 and fan_in == row.out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def mobilenet_v3_small(num_classes: int = 1000) -> nn.Sequential:
    """Stem, eleven blocks, last 1×1, pool and classifier; [N, 3, H, W] to [N, num_classes].

    >>> sum(p.numel() for p in mobilenet_v3_small().parameters())
    2542856
    """
    blocks: list[nn.Module] = []
    fan_in = 16
    for row in _TABLE:
        blocks.append(InvertedResidual(fan_in, row))
        fan_in = row.out
    net = nn.Sequential(
        *conv_bn(3, 16, 3, 2, act=nn.Hardswish),
        *blocks,
        *conv_bn(fan_in, 576, act=nn.Hardswish),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(576, 1024),
        nn.Hardswish(),
        nn.Dropout(0.2),
        nn.Linear(1024, num_classes),
    )
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.01
    return net


MODELS = {"mobilenet-v3-small": Own(mobilenet_v3_small)}
