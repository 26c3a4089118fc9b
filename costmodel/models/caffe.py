"""Caffe's versions of the classic nets, where they differ from the library's: what ncnn, Tengine and others measured.

Each function says the difference. Parameters (batch norm folded) and multiply-accumulates agree with the layer lists of
ncnn's benchmark to the digit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._compat import require
from .own import Own

__all__ = [
    "MODELS",
    "caffe_alexnet",
    "caffe_googlenet",
    "caffe_mobilenet_v1",
    "caffe_resnet18",
    "caffe_resnet50",
    "caffe_shufflenet",
    "caffe_squeezenet",
]


def _torchvision(name: str, **settings: Any) -> Any:
    return require("torchvision").models.get_model(name, weights=None, **settings)


def caffe_resnet50(num_classes: int = 1000) -> nn.Module:
    """ResNet-50 v1: stages 2 to 4 stride in the first 1×1, not in the 3×3 (3.86 G multiply-accumulates, not 4.09)."""
    net = _torchvision("resnet50", num_classes=num_classes)
    for stage in (net.layer2, net.layer3, net.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    model: nn.Module = net
    return model


def caffe_resnet18(num_classes: int = 1000) -> nn.Module:
    """ResNet-18 whose first block has a 1×1 projection on its shortcut although nothing changes shape."""
    net = _torchvision("resnet18", num_classes=num_classes)
    net.layer1[0].downsample = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64))
    model: nn.Module = net
    return model


def caffe_squeezenet(num_classes: int = 1000) -> nn.Module:
    """SqueezeNet 1.1 whose last 1×1 convolution is padded by one, 14×14 to 16×16."""
    net = _torchvision("squeezenet1_1", num_classes=num_classes)
    net.classifier[1].padding = (1, 1)
    model: nn.Module = net
    return model


def caffe_googlenet(num_classes: int = 1000) -> nn.Module:
    """GoogLeNet of 2014: biases instead of batch norm, true 5×5 branches, local response norm after two stages."""
    net = _torchvision(
        "googlenet", num_classes=num_classes, aux_logits=False, init_weights=False, transform_input=False
    )
    for module in list(net.modules()):
        if type(module).__name__ == "Inception":
            narrow = module.branch3[1].conv
            module.branch3[1].conv = nn.Conv2d(narrow.in_channels, narrow.out_channels, 5, padding=2)
    for module in list(net.modules()):
        if type(module).__name__ == "BasicConv2d":
            module.conv = _with_bias(module.conv)
            module.bn = nn.Identity()
    net.maxpool1 = nn.Sequential(net.maxpool1, nn.LocalResponseNorm(5))
    net.maxpool2 = nn.Sequential(nn.LocalResponseNorm(5), net.maxpool2)
    model: nn.Module = net
    return model


def _with_bias(conv: nn.Conv2d) -> nn.Conv2d:
    if conv.bias is None:
        conv.bias = nn.Parameter(torch.zeros(conv.out_channels, device=conv.weight.device))
    return conv


def caffe_alexnet(num_classes: int = 1000) -> nn.Sequential:
    """AlexNet of 2012 at 3x227x227: convolutions 2, 4 and 5 in two groups, local response norm; 60,965,224 parameters.

    >>> sum(p.numel() for p in caffe_alexnet().parameters())
    60965224
    """
    pool = nn.MaxPool2d(3, 2)
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, 4), nn.ReLU(), nn.LocalResponseNorm(5), pool),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), nn.LocalResponseNorm(5), pool),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), pool, nn.Flatten()),
        *(nn.Linear(256 * 6 * 6, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()),
        nn.Linear(4096, num_classes),
    )


def caffe_mobilenet_v1(width: float = 1.0, num_classes: int = 1000) -> nn.Sequential:
    """MobileNet (Howard et al. 2017, table 1) with ReLU and symmetric padding; `width` scales all channels.

    >>> sum(p.numel() for p in caffe_mobilenet_v1().parameters())
    4231976
    """

    def scaled(channels: int) -> int:
        return int(channels * width)

    def conv(fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        weight = nn.Conv2d(fan_in, fan_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [weight, nn.BatchNorm2d(fan_out), nn.ReLU()]

    fan_in = scaled(32)
    layers = conv(3, fan_in, 3, 2)
    strides = {128: 2, 256: 2, 512: 2, 1024: 2}
    previous = 32
    for channels in (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024):
        fan_out = scaled(channels)
        stride = strides.get(channels, 1) if channels != previous else 1
        layers += [*conv(fan_in, fan_in, 3, stride, groups=fan_in), *conv(fan_in, fan_out, 1)]
        fan_in, previous = fan_out, channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, num_classes))


class _ShuffleUnit(nn.Module):
    """Grouped 1×1, shuffle, depthwise 3×3, grouped 1×1; added to the input, or joined to its mean pool at stride 2."""

    def __init__(self, fan_in: int, fan_out: int, groups: int, stride: int) -> None:
        super().__init__()
        branch = fan_out - fan_in if stride == 2 else fan_out
        hidden = branch // 4
        first = 1 if fan_in == 24 else groups  # 24 channels are too few to split
        self.first = nn.Sequential(
            nn.Conv2d(fan_in, hidden, 1, groups=first, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()
        )
        self.shuffle = nn.ChannelShuffle(groups) if first > 1 else nn.Identity()
        self.rest = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.Conv2d(hidden, branch, 1, groups=groups, bias=False),
            nn.BatchNorm2d(branch),
        )
        self.pool = nn.AvgPool2d(3, 2, ceil_mode=True) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.rest(self.shuffle(self.first(x)))
        joined: Tensor = x + y if self.pool is None else torch.cat((self.pool(x), y), 1)
        return joined.relu()


def caffe_shufflenet(num_classes: int = 1000) -> nn.Sequential:
    """ShuffleNet v1 (Zhang et al. 2018), 3 groups, stages of 240, 480 and 960 channels; no library has it."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
    fan_in = 24
    for fan_out, units in ((240, 4), (480, 8), (960, 4)):
        for unit in range(units):
            layers.append(_ShuffleUnit(fan_in, fan_out, groups=3, stride=2 if unit == 0 else 1))
            fan_in = fan_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, num_classes))


MODELS = {
    "caffe-alexnet": Own(caffe_alexnet, (3, 227, 227)),
    "caffe-googlenet": Own(caffe_googlenet),
    "caffe-mobilenet-v1": Own(caffe_mobilenet_v1),
    "caffe-resnet18": Own(caffe_resnet18),
    "caffe-resnet50": Own(caffe_resnet50),
    "caffe-shufflenet": Own(caffe_shufflenet),
    "caffe-squeezenet": Own(caffe_squeezenet, (3, 227, 227)),
}
