"""Pooling and resampling: each result from a window or from neighbours of the source.

Maximum pooling is 1 FLOP a window element (a comparison), average pooling 1 (an add) and a division a result;
the gradient adds each value to where it came from. Interpolation by the weights of each dimension: 2 FLOPs a tap.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod

from .layout import channels_last, copy_bytes
from .spec import Cost, OpSpec, TensorSpec

__all__ = ["FORMULAS"]


def _window(op: OpSpec, x: TensorSpec, y: TensorSpec) -> int:
    """Elements a window; an adaptive pool divides the input evenly."""
    kernel = op.attr("kernel_size")
    dims = int(op.name.split("d_")[0].split(".")[0].rstrip("d")[-1]) if any(c.isdigit() for c in op.name) else 2
    if kernel is None:
        return prod(ceil(a / max(b, 1)) for a, b in zip(x.shape[-dims:], y.shape[-dims:]))
    sizes = [kernel] if isinstance(kernel, int) else list(kernel)
    return prod(sizes) if len(sizes) > 1 else sizes[0] ** dims


def max_pool(op: OpSpec) -> Cost:
    """A comparison a window element.

    >>> from .spec import op
    >>> max_pool(op("aten::max_pool2d_with_indices", [(1, 2, 8, 8)], [(1, 2, 4, 4)], kernel_size=[2, 2])).flops
    128
    """
    return _pool(op, "max_pool", 0)


def average_pool(op: OpSpec) -> Cost:
    """An add a window element and a division a result.

    >>> from .spec import op
    >>> average_pool(op("aten::avg_pool2d", [(1, 2, 8, 8)], [(1, 2, 4, 4)], kernel_size=[2])).flops
    160
    >>> average_pool(op("aten::_adaptive_avg_pool2d", [(1, 2, 8, 8)], [(1, 2, 1, 1)], output_size=[1, 1])).flops
    130
    """
    return _pool(op, "average_pool", 1)


def _pool(op: OpSpec, kind: str, flops_result: int) -> Cost:
    x, y = op.inputs[0], op.outputs[0]
    window = _window(op, x, y)
    terms = {"results": float(y.numel), "taps": float(y.numel * window), "n": float(x.numel)}
    copies = 0 if channels_last(x) else copy_bytes(x)
    kind += "_channels_last" if channels_last(x) else ""
    return Cost(y.numel * (window + flops_result), kind, terms=terms, workspace=copies)


def max_pool_backward(op: OpSpec) -> Cost:
    """Each gradient is added where the maximum was; the input itself is not read.

    >>> from .spec import TensorSpec, op
    >>> ins = [(1, 2, 4, 4), (1, 2, 8, 8), TensorSpec((1, 2, 4, 4), "int64")]
    >>> max_pool_backward(op("aten::max_pool2d_with_indices_backward", ins, [(1, 2, 8, 8)], kernel_size=[2, 2])).flops
    32
    """
    g, out = op.inputs[0], op.outputs[0]
    reads = tuple(t.nbytes if k != 1 else 0 for k, t in enumerate(op.inputs))
    terms = {"results": float(g.numel), "n": float(out.numel)}
    kind = "max_pool_backward" + ("_channels_last" if channels_last(g) else "")
    return Cost(g.numel, kind, terms=terms, read=reads, write=(out.nbytes + g.nbytes,))


def average_pool_backward(op: OpSpec) -> Cost:
    """A division a gradient, and an add for each element of its window.

    >>> from .spec import op
    >>> average_pool_backward(op("aten::avg_pool2d_backward", [(1, 2, 4, 4), (1, 2, 8, 8)], [(1, 2, 8, 8)],
    ...                          kernel_size=[2, 2])).flops
    160
    """
    g, out = op.inputs[0], op.outputs[0]
    taps = g.numel * _window(op, out, g)
    terms = {"results": float(g.numel), "taps": float(taps), "n": float(out.numel)}
    reads = (g.nbytes,) + (0,) * (len(op.inputs) - 1)
    kind = "average_pool_backward" + ("_channels_last" if channels_last(g) else "")
    return Cost(taps + g.numel, kind, terms=terms, read=reads)


# Taps a result and dimensions by the method's name: nearest copies one value, linear weighs 2 a dimension, cubic 4.
_TAPS = {"nearest": 0, "linear": 2, "bilinear": 4, "trilinear": 8, "bicubic": 16}


def _method(name: str) -> int:
    method = max((m for m in _TAPS if m in name), key=len)
    return _TAPS[method]


def upsample(op: OpSpec) -> Cost:
    """Two FLOPs a tap: 2 taps linear, 4 bilinear, 16 bicubic, none for the nearest.

    >>> from .spec import op
    >>> upsample(op("aten::upsample_bilinear2d", [(1, 2, 4, 4)], [(1, 2, 8, 8)])).flops
    1024
    """
    backward = "backward" in op.name
    large = op.inputs[0] if backward else op.outputs[0]
    taps = _method(op.name)
    each = (1 if taps == 0 and backward else 0) + 2 * taps
    kind = ("resample_nearest" if taps == 0 else "resample") + ("_backward" if backward else "")
    terms = {"n": float(large.numel), "taps": float(large.numel * max(taps, 1))}
    return Cost(each * large.numel, kind, terms=terms, workspace=0 if backward else _resample_copies(op))


VECTOR_SIDES = 128  # height + width of results up to which ATen resamples in channels-last


def _resample_copies(op: OpSpec) -> int:
    """Source and result in channels-last, where the vectorised kernel takes a plain map.

    >>> from .spec import op
    >>> _resample_copies(op("aten::upsample_nearest2d", [(1, 2, 4, 4)], [(1, 2, 8, 8)]))  # 4·(32 + 128)
    640
    """
    x, y = op.inputs[0], op.outputs[0]
    vectorised = ("nearest2d" in op.name or "upsample_bilinear2d" in op.name) and not op.name.endswith("aa")
    if not vectorised or channels_last(x) or sum(y.shape[-2:]) > VECTOR_SIDES:
        return 0
    return (x.numel + y.numel) * x.itemsize


def grid_sample(op: OpSpec) -> Cost:
    """Coordinates (about 12 a position) and 4 taps a channel; twice that in the backward.

    >>> from .spec import op
    >>> grid_sample(op("aten::grid_sampler_2d", [(1, 2, 4, 4), (1, 8, 8, 2)], [(1, 2, 8, 8)])).flops
    1792
    """
    backward = "backward" in op.name
    grid = op.inputs[2] if backward else op.inputs[1]
    values = op.inputs[0] if backward else op.outputs[0]
    positions = grid.numel // grid.shape[-1]
    flops = 12 * positions + 2 * (8 if grid.shape[-1] == 3 else 4) * values.numel
    terms = {"n": float(values.numel), "taps": 4.0 * values.numel}
    return Cost(flops * (2 if backward else 1), "resample_backward" if backward else "resample", terms=terms)


def affine_grid(op: OpSpec) -> Cost:
    """Each coordinate is a sum of 3 (4 in 3-D) products.

    >>> from .spec import op
    >>> affine_grid(op("aten::affine_grid_generator", [(1, 2, 3)], [(1, 8, 8, 2)])).flops
    768
    """
    out = op.outputs[0]
    return Cost(2 * op.inputs[0].shape[-1] * out.numel, "resample", terms={"n": float(out.numel), "taps": 0.0})


def _named(names: str, formula: Callable[[OpSpec], Cost]) -> dict[str, Callable[[OpSpec], Cost]]:
    return {f"aten::{name}": formula for name in names.split()}


FORMULAS: dict[str, Callable[[OpSpec], Cost]] = {
    **_named("max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
             "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d mkldnn_max_pool2d",
             max_pool),
    **_named("avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d "
             "adaptive_avg_pool2d adaptive_avg_pool3d mkldnn_adaptive_avg_pool2d", average_pool),
    **_named("max_pool2d_with_indices_backward max_pool3d_with_indices_backward adaptive_max_pool2d_backward "
             "adaptive_max_pool3d_backward fractional_max_pool2d_backward max_unpool2d", max_pool_backward),
    **_named("avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward",
             average_pool_backward),
    **{f"aten::{name}{suffix}": upsample
       for name in ("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
                    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d",
                    "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa",
                    "_upsample_bicubic2d_aa") for suffix in ("", "_backward")},
    **_named("grid_sampler_2d grid_sampler_3d grid_sampler grid_sampler_2d_backward grid_sampler_3d_backward "
             "_grid_sampler_2d_cpu_fallback _grid_sampler_2d_cpu_fallback_backward", grid_sample),
    **_named("affine_grid_generator", affine_grid),
}  # fmt: skip
