"""Isolated norms, softmax, pools and resampling, for calibration (see `micro_ops`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .micro_ops import Call, Shapes, aten

__all__ = ["GENERATORS"]


def batch_norm(s: Shapes, training: bool) -> Call:
    b, c, h = s.image()
    x = s.tensor(b, c, h, h)
    layout = s.rng.random()
    if layout < 0.15:  # over the features of tokens
        c = s.channels(32, 1024)
        x = s.tensor(s.size(16, 800), c)
    elif layout < 0.3:
        x = x.contiguous(memory_format=torch.channels_last)
    w, bias, mean, var = s.tensor(c), s.tensor(c), torch.zeros(c), torch.ones(c)
    return Call(aten.native_batch_norm.default, (x, w, bias, mean, var, training, 0.1, 1e-5), (1, 2))


def batch_norm_eval(s: Shapes) -> Call:
    return batch_norm(s, False)


def batch_norm_train(s: Shapes) -> Call:
    return batch_norm(s, True)


def batch_norm_train_backward(s: Shapes) -> Call:
    x, w, _, mean, var, *_ = batch_norm(s, True).args
    saved, inverse = torch.zeros_like(mean), torch.ones_like(mean)
    args = (torch.randn_like(x), x, w, mean, var, saved, inverse, True, 1e-5, [True, True, True])
    return Call(aten.native_batch_norm_backward.default, args, (2,))


def layer_norm(s: Shapes, permuted: float = 0.3) -> Call:
    """A share of `permuted` of the inputs are maps whose channels are moved last."""
    b, t, c = s.batch(), s.size(8, 800), s.channels(32, 2048)
    if s.rng.random() < permuted:
        b, c, h = s.image(2e6)
        x = s.tensor(b, c, h * h).transpose(1, 2)
    else:
        x = s.tensor(b, t, c)
    return Call(aten.native_layer_norm.default, (x, [c], s.tensor(c), s.tensor(c), 1e-5), (2, 3))


def layer_norm_backward(s: Shapes) -> Call:
    call = layer_norm(s, 0.0)
    x, shape, w, b, _ = call.args
    _, mean, rstd = call.func(*call.args)
    args = (torch.randn_like(x), x, shape, mean, rstd, w, b, [True, True, True])
    return Call(aten.native_layer_norm_backward.default, args, (5, 6))


def softmax(s: Shapes) -> Call:
    shape = (s.batch(), s.size(1, 16), s.size(4, 400), s.size(8, 800))
    return Call(s.pick(aten._softmax, aten._softmax, aten._log_softmax).default, (s.tensor(*shape), -1, False))


def softmax_safe(s: Shapes) -> Call:
    return Call(aten._safe_softmax.default, (s.tensor(s.batch(), s.size(1, 16), s.size(4, 400), s.size(8, 400)), -1))


def softmax_outer(s: Shapes) -> Call:
    return Call(aten._softmax.default, (s.tensor(s.batch(), s.size(2, 64), s.size(16, 2000)), 1, False))


def softmax_backward(s: Shapes) -> Call:
    out = torch.softmax(s.tensor(s.batch(), s.size(1, 16), s.size(4, 400), s.size(8, 800)).float(), -1).to(s.dtype)
    func = s.pick(aten._softmax_backward_data, aten._log_softmax_backward_data).default
    return Call(func, (torch.randn_like(out), out, -1, s.dtype))


def group_norm(s: Shapes) -> Call:
    b, c, h = s.image(2e6)
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if c % g == 0)
    x, w, bias = s.tensor(b, c, h, h), s.tensor(c), s.tensor(c)
    return Call(aten.native_group_norm.default, (x, w, bias, b, c, h * h, s.pick(groups, groups, 1), 1e-5), (1, 2))


def group_norm_backward(s: Shapes) -> Call:
    x, w, _, b, c, positions, groups, _ = (call := group_norm(s)).args
    _, mean, rstd = call.func(*call.args)
    args = (torch.randn_like(x), x, mean, rstd, w, b, c, positions, groups, [True, True, True])
    return Call(aten.native_group_norm_backward.default, args, (4,))


def _small_map(s: Shapes) -> Tensor:
    b, c, h = s.image(4e5)
    return s.tensor(b, c, h, h)


def resample_nearest(s: Shapes) -> Call:
    x, times = _small_map(s), s.pick(2, 2, 4)
    return Call(aten.upsample_nearest2d.default, (x, [times * x.shape[2], times * x.shape[3]]))


def resample_nearest_backward(s: Shapes) -> Call:
    x, size = resample_nearest(s).args
    return Call(aten.upsample_nearest2d_backward.default, (s.tensor(*x.shape[:2], *size), size, list(x.shape)))


def resample(s: Shapes) -> Call:
    x, times = _small_map(s), s.pick(2, 2, 4)
    size = [times * x.shape[2], times * x.shape[3]]
    func = s.pick(aten.upsample_bilinear2d, aten.upsample_bilinear2d, aten.upsample_bicubic2d)
    return Call(func.default, (x, size, s.pick(True, False)))


def resample_backward(s: Shapes) -> Call:
    x, size, aligned = resample(s).args
    return Call(
        aten.upsample_bilinear2d_backward.default, (s.tensor(*x.shape[:2], *size), size, list(x.shape), aligned)
    )


def _pooled(s: Shapes, least: float, most: float) -> Tensor:
    """An image, some of them channels-last."""
    while True:
        b, c, h = s.image(most)
        if b * c * h * h >= least:
            break
    x = s.tensor(b, c, h, h)
    return x.contiguous(memory_format=torch.channels_last) if s.rng.random() < 0.2 else x


def max_pool(s: Shapes) -> Call:
    # A smaller map than this, repeated, is learnt by heart by the branch predictor: three times as fast as in a model.
    x = _pooled(s, 1e5, 2e6).relu()
    k, stride, pad = s.pick((3, 2, 1), (3, 2, 1), (2, 2, 0), (3, 1, 1))
    return Call(aten.max_pool2d_with_indices.default, (x, [k, k], [stride] * 2, [pad] * 2))


def max_pool_backward(s: Shapes) -> Call:
    x, k, stride, pad = max_pool(s).args
    out, index = aten.max_pool2d_with_indices.default(x, k, stride, pad)
    args = (torch.randn_like(out), x, k, stride, pad, [1, 1], False, index)
    return Call(aten.max_pool2d_with_indices_backward.default, args)


def average_pool(s: Shapes) -> Call:
    k, stride, pad = s.pick((2, 2, 0), (3, 2, 1), (3, 1, 1))
    return Call(aten.avg_pool2d.default, (_pooled(s, 500, 2e6), [k, k], [stride] * 2, [pad] * 2))


def average_pool_backward(s: Shapes) -> Call:
    x, k, stride, pad = average_pool(s).args
    grad = torch.randn_like(aten.avg_pool2d.default(x, k, stride, pad))
    return Call(aten.avg_pool2d_backward.default, (grad, x, k, stride, pad, False, True, None))


_ALWAYS = (batch_norm_eval, layer_norm, softmax, softmax_safe, softmax_outer, group_norm, max_pool, average_pool)
_TRAINING = (batch_norm_train, batch_norm_train_backward, layer_norm_backward, softmax_backward, group_norm_backward,
             max_pool_backward, average_pool_backward)  # fmt: skip
# As in `micro_ops`: share of the points, and whether only training runs it.
GENERATORS: dict[str, tuple[Callable[[Shapes], Call], float, bool]] = {
    **{f.__name__: (f, 1.0, f in _TRAINING) for f in (*_ALWAYS, *_TRAINING)},
    "layer_norm": (layer_norm, 1.5, False),
    "resample_nearest": (resample_nearest, 0.6, False),
    "resample": (resample, 0.6, False),
    "resample_nearest_backward": (resample_nearest_backward, 0.5, True),
    "resample_backward": (resample_backward, 0.5, True),
}
