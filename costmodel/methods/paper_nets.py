"""The nets that the numbers of the LBP-WHT and MobileTL papers are about, as small as they can be written."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["LAST_STAGE", "InvertedResidual", "MobileNetV3Small", "SqueezeExcite"]

# (inputs, outputs) of the linear layers of EfficientFormer-L1's last stage, 49 tokens: four MLPs (a 1×1 convolution
# is a linear layer there), and the attention's qkv (8 heads of 32 + 32 + 128) and projection
LAST_STAGE = ((448, 1792), (1792, 448)) * 4 + ((448, 1536), (1024, 448))


class SqueezeExcite(nn.Module):
    """x·hardsigmoid(fc2(relu(fc1(mean x)))), a quarter of the channels (rounded to eights) between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = max(8, (channels // 4 + 4) // 8 * 8)
        between += 8 if between < 0.9 * channels / 4 else 0
        self.fc1, self.activation = nn.Conv2d(channels, between, 1), nn.ReLU()
        self.fc2, self.scale_activation = nn.Conv2d(between, channels, 1), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        gate = self.scale_activation(self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True)))))
        y: Tensor = x * gate
        return y


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, act: type[nn.Module] | None = None
) -> list[nn.Module]:
    depthwise = inputs if kernel > 1 and inputs == outputs else 1
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=depthwise, bias=False)
    norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
    return [conv, norm] if act is None else [conv, norm, act()]


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise, squeeze-excite, project 1×1; norm and activation after the first two (not before SE's)."""

    def __init__(
        self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, act: type[nn.Module], squeeze: bool
    ) -> None:
        super().__init__()
        layers = _conv(inputs, hidden, act=act) if hidden != inputs else []
        layers += _conv(hidden, hidden, kernel, stride, act)
        layers += [SqueezeExcite(hidden)] if squeeze else []
        self.layers = nn.Sequential(*layers, *_conv(hidden, outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, outputs, h/stride, w/stride)."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV3Small(nn.Module):
    """MobileNetV3-Small 1.0 (arXiv 1905.02244, table 2): 55.497 M multiply-adds at 224² with ten classes."""

    # hidden and output channels, kernel, stride, activation, squeeze
    ROWS = (
        (16, 16, 3, 2, nn.ReLU, True),
        (72, 24, 3, 2, nn.ReLU, False),
        (88, 24, 3, 1, nn.ReLU, False),
        (96, 40, 5, 2, nn.Hardswish, True),
        (240, 40, 5, 1, nn.Hardswish, True),
        (240, 40, 5, 1, nn.Hardswish, True),
        (120, 48, 5, 1, nn.Hardswish, True),
        (144, 48, 5, 1, nn.Hardswish, True),
        (288, 96, 5, 2, nn.Hardswish, True),
        (576, 96, 5, 1, nn.Hardswish, True),
        (576, 96, 5, 1, nn.Hardswish, True),
    )

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 16, 3, 2, nn.Hardswish))
        inputs = [16] + [row[1] for row in self.ROWS]
        self.blocks = nn.Sequential(*(InvertedResidual(n, *row) for n, row in zip(inputs, self.ROWS)))
        self.last = nn.Sequential(*_conv(96, 576, act=nn.Hardswish))
        self.classifier = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W)."""
        y: Tensor = self.classifier(self.last(self.blocks(self.stem(x))).mean((2, 3)))
        return y
