"""Isolated convolutions of every algorithm class, for calibration (see `micro_ops`)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .micro_ops import Call, Shapes, aten

__all__ = ["GENERATORS"]

# Share of convolutions whose data are channels-last: what a norm over channels hands on.
_CHANNELS_LAST = 0.3


def _conv(
    s: Shapes,
    c: int,
    o: int,
    h: int,
    k: int,
    stride: int,
    groups: int,
    b: int | None = None,
    last: float = _CHANNELS_LAST,
) -> Call:
    x = s.tensor(s.batch() if b is None else b, c, h, h)
    if s.rng.random() < last:
        x = x.contiguous(memory_format=torch.channels_last)
    w = s.tensor(o, c // groups, k, k)
    pad = k // 2 if k < 8 else 0
    bias = s.tensor(o) if s.pick(True, False, False) else None
    args = (x, w, bias, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], groups)
    return Call(aten.convolution.default, args, (1, 2))


def _conv_sizes(s: Shapes, k: int, groups: int = 1) -> tuple[int, int, int]:
    while True:
        c, o, h = s.channels(8, 1024), s.channels(8, 1024), s.size(max(4, k), 118)
        if 2 * c * o * h * h * k * k / groups < 1.2e9 and c * h * h < 2e6 and o * h * h < 3e6:
            return c, o, h


def conv_pointwise(s: Shapes) -> Call:
    c, o, h = _conv_sizes(s, 1)
    return _conv(s, c, o, h, 1, 1, 1, min(s.batch(), 8))


def conv_1x1(s: Shapes) -> Call:
    """Of 16 images and more, which ATen gives to oneDNN."""
    while True:
        c, o, h, b = s.channels(8, 768), s.channels(8, 768), s.size(4, 80), s.pick(16, 16, 32)
        if 2 * b * c * o * h * h < 1.2e9 and b * max(c, o) * h * h < 3e6:
            return _conv(s, c, o, h, 1, 1, 1, b)


def conv_by_group(s: Shapes) -> Call:
    """1×1 with groups and of fewer images: ATen slices, calls itself and joins."""
    groups, width, h = s.size(4, 600), s.pick(1, 1, 1, 2, 4, 8), s.size(4, 40)
    return _conv(s, groups * width, groups * width, h, 1, 1, groups, s.pick(1, 1, 2, 4, 8))


def conv_grouped_gemm(s: Shapes) -> Call:
    """Groups of channels that fit no block: two or three a group, or more results than inputs."""
    while True:
        groups, h, (inner, outer), k = (
            s.size(4, 256),
            s.size(7, 60),
            s.pick((2, 2), (1, 2), (1, 2), (3, 3), (6, 6)),
            s.pick(3, 3, 5, 7),
        )
        stride, b = s.pick(1, 2), s.pick(1, 1, 2, 4)
        if b * groups * max(inner, outer) * h * h < 6e5:
            return _conv(s, groups * inner, groups * outer, h, k, stride, groups, b)


def conv_rows(s: Shapes) -> Call:
    """A causal depthwise convolution of rows, as in a state-space model."""
    c, t, k = s.channels(64, 3000), s.size(8, 600), s.pick(4, 4, 3)
    args = (s.tensor(s.pick(1, 1, 2), c, t), s.tensor(c, 1, k), s.tensor(c), [1], [k - 1], [1], False, [0], c)
    return Call(aten.convolution.default, args, (1, 2))


def conv_direct(s: Shapes) -> Call:
    k = s.pick(3, 3, 3, 5)
    c, o, h = _conv_sizes(s, k)
    return _conv(s, c, o, h, k, s.pick(1, 1, 1, 2), 1)


def conv_im2col(s: Shapes) -> Call:
    h = s.size(4, 14)
    return _conv(s, s.channels(8, max(9, 20000 / h**2)), s.channels(8, 512), h, 3, 1, 1, 1)


def conv_1x1_strided(s: Shapes) -> Call:
    c, o, h = _conv_sizes(s, 1)
    return _conv(s, c, o, h, 1, 2, 1)


def conv_stem(s: Shapes) -> Call:
    k, stride = s.pick((3, 2), (7, 2), (4, 4), (16, 16), (3, 1), (7, 4), (8, 8), (32, 32))
    return _conv(s, s.pick(3, 3, 1, 4), s.channels(16, 96 if k < 16 else 768), s.size(48, 240), k, stride, 1)


def conv_depthwise(s: Shapes) -> Call:
    _, c, h = s.image(2e6)
    return _conv(s, c, c, h, s.pick(3, 3, 5, 7), 1, c)


def conv_depthwise_7(s: Shapes) -> Call:
    """Of blocks that mix space by one large kernel between norms over channels."""
    _, c, h = s.image(2e6)
    return _conv(s, c, c, h, 7, 1, c, last=0.7)


def conv_depthwise_by_image(s: Shapes) -> Call:
    """Whose gradient of the weight is a GEMM for each channel of each image: of wide kernels, and of maps that a kernel
    covers."""
    while True:
        b, c, h, k = s.pick(1, 2, 4, 8, 16, 32), s.channels(32, 1500), s.size(2, 48), s.pick(5, 5, 5, 7, 3)
        if b * c * h * h < 2e6 and (k > 3 or h < k):
            return _conv(s, c, c, h, k, s.pick(1, 1, 2), c, b, last=0.1)


def conv_depthwise_strided(s: Shapes) -> Call:
    _, c, h = s.image(2e6)
    return _conv(s, c, c, h, s.pick(3, 3, 3, 5, 7), 2, c)


def conv_grouped(s: Shapes) -> Call:
    width = s.pick(4, 8, 16, 24, 32)
    while True:
        groups, h = s.size(2, 32), s.size(7, 60)
        if groups * width * h * h < 1e6:
            return _conv(s, groups * width, groups * width, h, 3, s.pick(1, 1, 2), groups)


def _backward_of(forward: Callable[[Shapes], Call]) -> Callable[[Shapes], Call]:
    def conv_backward(s: Shapes) -> Call:
        x, w, bias, *rest = forward(s).args
        grad = torch.randn_like(aten.convolution.default(x, w, bias, *rest))
        sizes = None if bias is None else list(bias.shape)
        need_input = bool(x.shape[1] > 4 or s.pick(True, False, False))
        return Call(
            aten.convolution_backward.default, (grad, x, w, sizes, *rest, [need_input, True, bias is not None]), (2,)
        )

    return conv_backward


# Shares of the points: of the forward, and of the backward, which only training runs (see `micro_ops`).
_SHARES: dict[Callable[[Shapes], Call], tuple[float, float]] = {
    conv_pointwise: (3.0, 3.0), conv_direct: (4.0, 4.0), conv_im2col: (1.5, 1.0), conv_1x1_strided: (1.2, 1.7),
    conv_stem: (2.0, 2.0), conv_depthwise: (2.7, 3.5), conv_depthwise_7: (0.6, 1.5), conv_depthwise_strided: (2.0, 2.0),
    conv_grouped: (2.5, 4.0), conv_1x1: (1.8, 1.8), conv_by_group: (1.0, 0.8), conv_grouped_gemm: (1.0, 0.8),
    conv_rows: (0.8, 0.7), conv_depthwise_by_image: (0.7, 3.0),
}  # fmt: skip
GENERATORS: dict[str, tuple[Callable[[Shapes], Call], float, bool]] = {
    **{f.__name__: (f, forward, False) for f, (forward, _) in _SHARES.items()},
    **{f"{f.__name__}_backward": (_backward_of(f), backward, True) for f, (_, backward) in _SHARES.items()},
}
