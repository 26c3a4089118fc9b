"""Inverted-residual nets that no library defines as they were measured, from one line a block.

The rows were read from the layer lists of the nets that ncnn's benchmark ships (BSD-3; mobilenet_v2, mobilenet_v3 and
proxylessnasnet): parameters with batch norm folded and multiply-accumulates agree with those lists to the digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from .own import Own

__all__ = ["MODELS", "InvertedResidual", "IrbNet", "Row", "caffe_mobilenet_v2", "ncnn_mobilenet_v3", "proxyless_nas"]


class Row(NamedTuple):
    """One block: depthwise kernel, hidden and output channels, stride, activation, whether it has squeeze-excite."""

    kernel: int
    hidden: int
    out: int
    stride: int = 1
    act: type[nn.Module] = nn.ReLU
    squeeze: bool = False


class SqueezeExcite(nn.Module):
    """Channel gate: mean over H, W, two linear layers with a quarter of the channels between, hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, channels // 4),
            nn.ReLU(),
            nn.Linear(channels // 4, channels),
            nn.Hardsigmoid(),
            nn.Unflatten(1, (channels, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def conv_bn(
    fan_in: int,
    fan_out: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    act: type[nn.Module] | None = None,
) -> list[nn.Module]:
    """Convolution without bias, padded to keep H and W at stride 1, batch norm, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(fan_in, fan_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(fan_out),
    ]
    return layers + ([act()] if act is not None else [])


class InvertedResidual(nn.Module):
    """Expand 1×1 (unless hidden = input and `expand` is off), depthwise, squeeze-excite, activation, project 1×1."""

    def __init__(self, fan_in: int, row: Row, *, expand: bool = True) -> None:
        super().__init__()
        layers = conv_bn(fan_in, row.hidden, act=row.act) if expand else []
        layers += conv_bn(row.hidden, row.hidden, row.kernel, row.stride, groups=row.hidden)
        layers += [SqueezeExcite(row.hidden)] if row.squeeze else []
        layers += [row.act(), *conv_bn(row.hidden, row.out)]
        self.layers = nn.Sequential(*layers)
        self.residual = row.stride == 1 and fan_in == row.out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class IrbNet(nn.Module):
    """Stem 3×3 stride 2, blocks, a last 1×1 and a classifier; [N, 3, H, W] to [N, num_classes]."""

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        stem: int = 32,
        last: int = 1280,
        hidden_head: int = 0,
        act: type[nn.Module] = nn.ReLU,
        expand_first: bool = False,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        fan_in = stem
        for i, row in enumerate(rows):
            blocks.append(InvertedResidual(fan_in, row, expand=i > 0 or expand_first))
            fan_in = row.out
        head: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if hidden_head:
            head += [act(), nn.Linear(last, hidden_head), act()]
        self.stem = nn.Sequential(*conv_bn(3, stem, 3, 2, act=act))
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(*conv_bn(fan_in, last, act=act))
        self.head = nn.Sequential(*head, nn.Linear(hidden_head or last, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.last(self.blocks(self.stem(x))))
        return y


def _stage(kernel: int, hidden: Sequence[int], out: int, stride: int, act: type[nn.Module] = nn.ReLU) -> list[Row]:
    return [Row(kernel, h, out, stride if i == 0 else 1, act) for i, h in enumerate(hidden)]


def caffe_mobilenet_v2(num_classes: int = 1000) -> IrbNet:
    """MobileNetV2 as the Caffe port has it: the first block expands too, 32 to 32 (1056 parameters more)."""
    rows = [Row(3, 32, 16)]
    fan_in = 16
    for out, repeats, stride in ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)):
        rows += _stage(3, [6 * fan_in] + [6 * out] * (repeats - 1), out, stride)
        fan_in = out
    return IrbNet(rows, expand_first=True, num_classes=num_classes)


def proxyless_nas(num_classes: int = 1000) -> IrbNet:
    """ProxylessNAS with 3×3, 5×5 and 7×7 depthwise kernels, as ncnn's proxylessnasnet."""
    rows = [
        Row(3, 32, 32),
        Row(5, 48, 32, 2),
        Row(3, 96, 32),
        Row(7, 96, 40, 2),
        Row(3, 120, 40),
        *_stage(5, [120, 120], 40, 1),
        Row(7, 240, 80, 2),
        *_stage(5, [240, 240, 240], 80, 1),
        *_stage(5, [480, 288, 288, 288], 96, 1),
        Row(7, 576, 192, 2),
        *_stage(7, [1152, 576, 576], 192, 1),
        Row(7, 1152, 320),
    ]
    return IrbNet(rows, num_classes=num_classes)


def ncnn_mobilenet_v3(num_classes: int = 1000) -> IrbNet:
    """MobileNetV3-Large as ncnn's mobilenet_v3: an early reading of the paper, heavier than the library ones."""
    hard = nn.Hardswish
    rows = [
        Row(3, 16, 16),
        Row(3, 64, 24, 2),
        Row(3, 72, 24),
        Row(5, 72, 40, 2, squeeze=True),
        Row(5, 120, 40, squeeze=True),
        Row(5, 120, 40, squeeze=True),
        *_stage(3, [240, 200, 184, 184], 80, 2, hard),
        Row(3, 480, 112, act=hard, squeeze=True),
        Row(3, 672, 112, act=hard, squeeze=True),
        Row(5, 672, 160, act=hard, squeeze=True),
        Row(5, 672, 160, 2, hard, squeeze=True),
        Row(5, 960, 160, act=hard, squeeze=True),
    ]
    return IrbNet(rows, stem=16, last=960, hidden_head=1280, act=hard, num_classes=num_classes)


MODELS = {
    "caffe-mobilenet-v2": Own(caffe_mobilenet_v2),
    "proxyless-nas": Own(proxyless_nas),
    "ncnn-mobilenet-v3": Own(ncnn_mobilenet_v3),
}
