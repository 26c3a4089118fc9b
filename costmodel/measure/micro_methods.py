"""Isolated calls of the training methods' own kernels, for calibration (see `micro_ops`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import lbp_wht as lbp
from ..kernels import mobiletl as tl
from ..kernels.wht import Tiling, select_bases
from .micro_ops import Call, Shapes

__all__ = ["GENERATORS"]


# LBP-WHT


def _tiling(s: Shapes, prefix: int) -> Tiling:
    """Mostly the paper's: tiles of 8, a low order, whole or cropped tiles."""
    tile = s.pick(8, 8, 8, 8, 4, 16)
    side = s.pick(7, 8, 14, 14, 16, 24, s.size(5, 28))
    family = s.pick("l1", "l1", "l1", "linf")
    order = s.pick(*range(1, tile + 1 if family == "l1" else 5))
    return Tiling((side, side), prefix, tile, select_bases(order, family, tile), s.pick("zero", "zero", "reflect"))


def _lbp_sizes(s: Shapes, prefix: int) -> tuple[Tiling, int, int, int]:
    """Tiling, images, channels in and out of a layer of 10 MFLOPs to 3 GFLOPs a product, in whole vectors."""
    while True:
        tiling, images = _tiling(s, prefix), s.pick(1, 2, 4, 8, 16, 32)
        inputs, outputs = s.size(32, 2048, 16), s.size(32, 2048, 16)
        rows = max(images * tiling.tokens, tiling.rows(images))
        if 1e7 < 2 * rows * inputs * outputs < 3e9 and rows * max(inputs, outputs) < 6e6:
            return tiling, images, inputs, outputs


def _tokens(s: Shapes, images: int, channels: int, tiling: Tiling, convolution: bool) -> Tensor:
    return s.tensor(images, channels, *tiling.grid) if convolution else s.tensor(images, tiling.tokens, channels)


def _lbp(s: Shapes, convolution: bool) -> Call:
    tiling, images, inputs, outputs = _lbp_sizes(s, 0 if convolution else s.pick(0, 0, 1, 2))
    weight = s.tensor(outputs, inputs, 1, 1) if convolution else s.tensor(outputs, inputs)
    x, bias = _tokens(s, images, inputs, tiling, convolution), s.tensor(outputs)
    return Call(lbp.lbp_wht, (x, weight, bias, *tiling), (1, 2))


def _lbp_backward(s: Shapes, convolution: bool) -> Call:
    tiling, images, inputs, outputs = _lbp_sizes(s, 0 if convolution else s.pick(0, 0, 1, 2))
    weight = s.tensor(outputs, inputs, 1, 1) if convolution else s.tensor(outputs, inputs)
    g, x_hat = _tokens(s, images, outputs, tiling, convolution), s.tensor(tiling.rows(images), inputs)
    mask = s.pick([True] * 3, [True] * 3, [True, True, False], [False, True, True])
    return Call(lbp.lbp_wht_backward, (g, x_hat, weight, *tiling, mask), (1, 2))


def lbp_linear(s: Shapes) -> Call:
    return _lbp(s, False)


def lbp_conv(s: Shapes) -> Call:
    return _lbp(s, True)


def lbp_linear_backward(s: Shapes) -> Call:
    return _lbp_backward(s, False)


def lbp_conv_backward(s: Shapes) -> Call:
    return _lbp_backward(s, True)


# MobileTL

_EPS = 1e-5


def _map(s: Shapes) -> Tensor:
    """A feature map of a trained block: 80 kB to 16 MB."""
    while True:
        b, c, h = s.image(4e6)
        if b * c * h * h > 2e4:
            return s.tensor(b, c, h, h)


def _vectors(s: Shapes, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """γ, β, μ and σ² of a norm."""
    return s.tensor(channels), s.tensor(channels), s.tensor(channels), torch.rand(channels).to(s.dtype) + 0.5


def signed_act(s: Shapes) -> Call:
    return Call(tl.signed_act, (_map(s), s.pick("hardswish", "relu6", "relu"), True))


def signed_act_backward(s: Shapes) -> Call:
    g = _map(s)
    return Call(tl.signed_act_backward, (g, tl.pack(g >= 0)))


def shift_norm(s: Shapes) -> Call:
    x = _map(s)
    return Call(tl.shift_norm, (x, *_vectors(s, x.shape[1]), _EPS), (1, 2, 3, 4))


def shift_norm_backward(s: Shapes) -> Call:
    g = _map(s)
    weight, _, _, var = _vectors(s, g.shape[1])
    return Call(tl.shift_norm_backward, (g, weight, var, _EPS, [True, True]), (1, 2))


def _shift_norm_act(s: Shapes, exact: bool) -> Call:
    x = _map(s)
    act, keep = s.pick("hardswish", "relu6", "relu"), s.pick(True, True, False)
    return Call(tl.shift_norm_act, (x, *_vectors(s, x.shape[1]), _EPS, act, keep, exact), (1, 2, 3, 4))


def shift_norm_act(s: Shapes) -> Call:
    return _shift_norm_act(s, False)


def shift_norm_act_exact(s: Shapes) -> Call:
    return _shift_norm_act(s, True)


def shift_norm_act_backward(s: Shapes) -> Call:
    g = _map(s)
    weight, _, _, var = _vectors(s, g.shape[1])
    return Call(tl.shift_norm_act_backward, (g, tl.pack(g >= 0), weight, var, _EPS, [True, True]), (2, 3))


def train_norm(s: Shapes) -> Call:
    x = _map(s)
    weight, bias, _, _ = _vectors(s, x.shape[1])
    return Call(tl.train_norm, (x, weight, bias, _EPS), (1, 2))


def train_norm_backward(s: Shapes) -> Call:
    x = _map(s)
    return Call(tl.train_norm_backward, (torch.randn_like(x), x, _vectors(s, x.shape[1])[0], _EPS, [True] * 3), (2,))


def _gate(s: Shapes) -> tuple[Tensor, Tensor]:
    x = _map(s)
    return x, s.tensor(*x.shape[:2], 1, 1)


def se_scale(s: Shapes) -> Call:
    return Call(tl.se_scale, _gate(s))


def se_scale_backward(s: Shapes) -> Call:
    x, z = _gate(s)
    return Call(tl.se_scale_backward, (torch.randn_like(x), x, z))


# As in `micro_ops`: share of the points, and whether only training runs it.
GENERATORS: dict[str, tuple[Callable[[Shapes], Call], float, bool]] = {
    **{f.__name__: (f, 1.0, True) for f in (lbp_linear, lbp_linear_backward, lbp_conv, lbp_conv_backward)},
    "shift_norm_act": (shift_norm_act, 0.7, False),  # frozen blocks run it in inference as well
    **{
        f.__name__: (f, 0.7, True)
        for f in (
            signed_act, signed_act_backward, shift_norm_backward, shift_norm_act_exact, shift_norm_act_backward,
            train_norm, train_norm_backward, se_scale, se_scale_backward,
        )
    },
    "shift_norm": (shift_norm, 0.3, True),  # prices as batch_norm_eval, which has points of its own
}  # fmt: skip
