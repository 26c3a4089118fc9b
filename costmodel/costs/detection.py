"""What detectors do with boxes: torchvision's compiled ops.

Non-maximum suppression sorts the scores and compares each box that it keeps with all that follow: four extrema, two
clamped differences, a product, the union and a division a pair, 13 FLOPs. How many it keeps depends on data; priced are
as many as can be, up to the 1,000 that detectors use. RoI align reads, for each result, a grid of samples, each from
four neighbours (He et al. 2017, "Mask R-CNN", section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

from .spec import Cost, OpSpec

__all__ = ["FORMULAS"]

PAIR_FLOPS = 13
MOST_KEPT = 1000  # proposals after suppression in Faster R-CNN; detections are fewer
SAMPLE_FLOPS = 4 * 2  # four products by weights that a bin's samples share among channels, and their sum
ADAPTIVE_GRID = 2  # samples each way where the op takes as many as the box is large: that of the published models


def nms(op: OpSpec) -> Cost:
    """A sort, and each box that is kept against those after it.

    >>> from .spec import TensorSpec, op
    >>> nms(op("torchvision::nms", [(10, 4), (10,)], [TensorSpec((10,), "int64")], iou_threshold=0.5)).flops  # 45·13
    585
    """
    n = op.inputs[1].numel
    kept = min(n, MOST_KEPT)
    pairs = kept * n - kept * (kept + 1) // 2
    terms = {"n": float(pairs), "runs": float(n), "nlogn": n * log2(n) if n > 1 else 0.0}
    workspace = n * (op.inputs[1].itemsize + 8 + 1)  # areas, order, suppressed
    return Cost(PAIR_FLOPS * pairs, "nms", terms=terms, workspace=workspace)


def roi_align(op: OpSpec) -> Cost:
    """Samples of each bin, averaged.

    >>> from .spec import op
    >>> roi_align(op("torchvision::roi_align", [(1, 8, 50, 50), (10, 5)], [(10, 8, 7, 7)], sampling_ratio=2)).flops
    129360
    """
    out = op.outputs[0]
    samples = _samples(op)
    terms = {"results": float(out.numel), "taps": float(out.numel * samples * 4), "n": float(op.inputs[0].numel)}
    reads = (min(op.inputs[0].nbytes, out.numel * samples * 4 * out.itemsize), op.inputs[1].nbytes)
    return Cost(out.numel * (samples * SAMPLE_FLOPS + 1), "roi_align", terms=terms, read=reads)


def roi_align_backward(op: OpSpec) -> Cost:
    """Each gradient is spread to the neighbours of its samples.

    >>> from .spec import op
    >>> roi_align_backward(op("torchvision::_roi_align_backward", [(10, 8, 7, 7), (10, 5)], [(1, 8, 50, 50)],
    ...                       sampling_ratio=2)).flops
    129360
    """
    g = op.inputs[0]
    samples = _samples(op)
    terms = {"results": float(g.numel), "taps": float(g.numel * samples * 4), "n": float(op.outputs[0].numel)}
    return Cost(g.numel * (samples * SAMPLE_FLOPS + 1), "roi_align_backward", terms=terms)


def _samples(op: OpSpec) -> int:
    ratio = int(op.attr("sampling_ratio", 0))
    return (ratio if ratio > 0 else ADAPTIVE_GRID) ** 2


def deform_conv(op: OpSpec) -> Cost:
    """A convolution of columns that are sampled between four neighbours: 2·taps·out, and 8 FLOPs a sampled value.

    >>> from .spec import op
    >>> ins = [(1, 4, 8, 8), (6, 4, 3, 3), (1, 18, 8, 8), (1, 9, 8, 8), (6,)]
    >>> deform_conv(op("torchvision::deform_conv2d", ins, [(1, 6, 8, 8)])).flops  # 64·(2·36·6 + 8·36)
    46080
    """
    weight, out = op.inputs[1], op.outputs[0]
    fan_in = ceil(weight.numel / max(weight.shape[0], 1))
    places = out.numel // max(out.shape[1], 1)
    columns = places * op.inputs[0].shape[1] * weight.shape[2] * weight.shape[3]
    flops = 2 * out.numel * fan_in + SAMPLE_FLOPS * columns
    return Cost(flops, "deform_conv", workspace=columns * out.itemsize)


FORMULAS: dict[str, Callable[[OpSpec], Cost]] = {
    "torchvision::nms": nms,
    "torchvision::roi_align": roi_align,
    "torchvision::_roi_align_backward": roi_align_backward,
    "torchvision::deform_conv2d": deform_conv,
}
