"""Small nets with random widths, for what isolated ops cannot show: how cold code is inside a model.

They are made of the blocks that people use, at sizes drawn from a seed, and are nobody's model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from .own import Own

__all__ = ["MODELS", "inverted", "residual", "transformer"]


class _Residual(nn.Module):
    """Two 3×3 convolutions with batch norm around a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        same = stride == 1 and inside == outside
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        )
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.skip(x))


class _Inverted(nn.Module):
    """Expand, depthwise, project, with a shortcut where shapes allow."""

    def __init__(self, inside: int, outside: int, stride: int, kernel: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        wide = 4 * inside
        self.body = nn.Sequential(
            nn.Conv2d(inside, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            act(),
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            act(),
            nn.Conv2d(wide, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.same = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.same else y


class _Attention(nn.Module):
    """A pre-norm transformer block, written out as people write it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c)
        x = x + self.out(y)
        return x + self.mlp(self.norm2(x))


class _Tokens(nn.Module):
    """Patches of an image as a sequence."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2)


class _Head(nn.Module):
    """Mean over positions and a linear classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean((2, 3)) if x.dim() == 4 else x.mean(1))


def _widths(rng: np.random.Generator, low: int, high: int, n: int, multiple: int = 8) -> list[int]:
    drawn = np.sort(np.exp(rng.uniform(np.log(low), np.log(high), n)))
    return [max(multiple, round(w / multiple) * multiple) for w in drawn]


def _residual_net(rng: np.random.Generator) -> nn.Module:
    widths = _widths(rng, 24, 320, 4)
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    for inside, outside in zip([widths[0], *widths], widths):
        layers += [_Residual(inside, outside, 2), _Residual(outside, outside, 1)]
    return nn.Sequential(*layers, _Head(widths[-1], 17))


def _inverted_net(rng: np.random.Generator) -> nn.Module:
    widths = _widths(rng, 16, 120, 5)
    act = (nn.ReLU6, nn.Hardswish, nn.SiLU)[int(rng.integers(3))]
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), act()]
    for i, (inside, outside) in enumerate(zip([widths[0], *widths], widths)):
        kernel = int(rng.choice([3, 5]))
        layers += [_Inverted(inside, outside, 2 if i in (1, 3) else 1, kernel, act)]
        layers += [_Inverted(outside, outside, 1, kernel, act) for _ in range(2)]
    return nn.Sequential(*layers, _Head(widths[-1], 17))


def _transformer_net(rng: np.random.Generator) -> nn.Module:
    heads = int(rng.choice([3, 4, 5]))
    width = 8 * heads * int(rng.integers(6, 12))
    blocks = [_Attention(width, heads) for _ in range(int(rng.integers(4, 8)))]
    return nn.Sequential(_Tokens(width, 14), *blocks, nn.LayerNorm(width), _Head(width, 17))


def residual(seed: int = 0) -> nn.Module:
    """Residual 3×3 convolutions, [N, 3, H, W] to [N, 17]; widths from `seed`."""
    return _residual_net(np.random.default_rng(1000 + seed))


def inverted(seed: int = 0) -> nn.Module:
    """Inverted residual blocks, [N, 3, H, W] to [N, 17]; widths, kernels and activation from `seed`."""
    return _inverted_net(np.random.default_rng(2000 + seed))


def transformer(seed: int = 0) -> nn.Module:
    """Pre-norm transformer blocks over 14×14 patches, [N, 3, H, W] to [N, 17]; width and depth from `seed`."""
    return _transformer_net(np.random.default_rng(3000 + seed))


MODELS = {
    "synthetic-residual": Own(residual, (3, 154, 154)),
    "synthetic-inverted": Own(inverted, (3, 140, 140)),
    "synthetic-transformer": Own(transformer, (3, 168, 168)),
}
