"""What oneDNN's convolutions allocate: copies of their operands in layouts that suit the kernel, and scratch.

Operands arrive as plain NCHW. Each kernel reorders them to channels in blocks (``aBcd16b``: 16 on 512-bit units, 8 for
the AVX2 kernels that serve some gradients, 4 in narrow groups), padded to whole blocks; gradients of strided
convolutions go through channels-last. The copies come from torch's allocator and are seen in its peak.
Rules read off ``ONEDNN_VERBOSE=1`` and the allocator's events over random shapes (oneDNN 3.x, AVX-512).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

from .layout import ceil_to

if TYPE_CHECKING:
    from .conv import Geometry

__all__ = [
    "ALIGN", "PAGE", "Pass", "backward_data", "backward_weights", "expanded_weights", "forward",
    "gemm_backward", "gemm_forward", "gemm_weights", "map_bytes", "one_by_one",
]  # fmt: skip

BLOCK = 16
AVX2_BLOCK = 8
ALIGN = 128  # oneDNN aligns each piece of its scratchpad
PAGE = 4096
SHARED_MAP = 512  # positions of the output from which the GEMM kernels split one image among threads
ACCUMULATORS = 10 * PAGE  # of the blocked-GEMM kernels; 7 to 14 pages with their blocking


class Pass(NamedTuple):
    """Bytes that one primitive allocates: reordered copies of its operands (0: used as they came) and scratch.

    `src` is the input's side, `dst` the output's side, whichever of them the pass computes.
    """

    name: str
    src: int
    weights: int
    dst: int
    scratch: int = 0

    @property
    def total(self) -> int:
        return self.src + self.weights + self.dst + self.scratch


def map_bytes(g: Geometry, ci: int, co: int) -> tuple[int, int]:
    """Bytes of the input's and the output's map with `ci` and `co` channels."""
    return (
        g.batch * ci * prod(g.inside) * g.itemsize,
        g.batch * co * prod(g.outside) * g.itemsize,
    )


def _unfolded(g: Geometry) -> int:
    """Bytes of the im2col buffer of a group of one image; a 1×1 kernel of stride 1 reads the map itself."""
    if g.pointwise and not g.strided and not max(g.padding):
        return 0
    return g.ci // g.groups * g.taps * prod(g.outside) * g.itemsize


def gemm_forward(g: Geometry, most: int = 1 << 62) -> Pass:
    """An unfolded image a thread, or as much of it as `most` bytes hold."""
    _, dst = map_bytes(g, g.ci, g.co)
    return Pass("gemm", 0, 0, dst, g.threads * min(_unfolded(g), most) + ALIGN)


def one_by_one(g: Geometry) -> bool:
    """Whether the 1×1 kernel takes it: a stride must divide the map."""
    divides = all(o * s == i for i, o, s in zip(g.inside, g.outside, g.stride))
    return g.pointwise and not max(g.padding) and (not g.strided or divides)


def _gathered(g: Geometry) -> int:
    """The 1×1 kernel gathers the pixels that a stride keeps, an image at a time."""
    return ceil_to(g.ci, BLOCK) * prod(g.outside) * g.itemsize + ALIGN if g.strided and g.pointwise else 0


def forward(g: Geometry) -> Pass:
    """The forward primitive.

    A 96-channel depthwise 3×3 on 56×56 maps of 8 images reorders all three operands; nothing is padded:

    >>> from .conv import geometry
    >>> from .spec import op
    >>> x = (8, 96, 56, 56)
    >>> forward(geometry(op("aten::convolution", [x, (96, 1, 3, 3)], [x], padding=[1, 1], groups=96)))
    Pass(name='depthwise', src=9633792, weights=3456, dst=9633792, scratch=0)
    """
    size = g.itemsize
    if g.depthwise:
        channels = ceil_to(g.ci, BLOCK)
        src, dst = map_bytes(g, channels, channels)
        return Pass("depthwise", src, channels * g.taps * size, dst)
    if g.groups > 1:
        if g.group_block == 1:
            return gemm_forward(g)
        src, dst = map_bytes(g, g.ci, g.co)
        return Pass("grouped", src, g.co * (g.ci // g.groups) * g.taps * size, dst)
    ci, co = ceil_to(g.ci, BLOCK), ceil_to(g.co, BLOCK)
    src, dst = map_bytes(g, ci, co)
    if one_by_one(g):
        return Pass("1x1", src, ci * co * size, dst, _gathered(g))
    if g.ci < BLOCK:
        return Pass("stem", 0, co * g.ci * g.taps * size, dst)
    return Pass("direct", src, co * ci * g.taps * size, dst)


def backward_data(g: Geometry) -> Pass:
    """The primitive for the input's gradient.

    >>> from .conv import geometry
    >>> from .spec import op
    >>> x, w, y = (8, 64, 14, 14), (64, 64, 3, 3), (8, 64, 7, 7)
    >>> backward_data(geometry(op("aten::convolution_backward", [y, x, w], [x, w], stride=[2, 2], padding=[1, 1]))).name
    'channels_last'
    """
    if g.groups > 1:
        if g.depthwise and g.dilated:
            return gemm_backward(g)
        picked = forward(g)
        wide = min(g.ci, g.co) // g.groups >= BLOCK
        if g.depthwise or not g.strided or not wide:
            return gemm_backward(g) if picked.name == "gemm" else picked
    size = g.itemsize
    if g.strided and g.dilated and not g.pointwise:
        return gemm_backward(g)
    if g.strided and not g.dilated:
        src, dst = map_bytes(g, g.ci, g.co)
        block = BLOCK if g.ci // g.groups <= BLOCK else 2 * BLOCK
        reordered = 0 if prod(g.outside) == 1 else dst
        widened = (o + 2 * (k - 1 - p) // s for o, k, p, s in zip(g.outside, g.kernel, g.padding, g.stride))
        scratch = g.threads * (g.co // g.groups * prod(widened) * size + ACCUMULATORS)  # an image with its borders
        weights = ceil_to(g.ci // g.groups, block) * g.co * g.taps * size
        return Pass("channels_last", src, weights, reordered, scratch)
    ci, co = ceil_to(g.ci, BLOCK), ceil_to(g.co, BLOCK)
    src, dst = map_bytes(g, ci, co)
    return Pass("1x1" if one_by_one(g) else "direct", src, ci * co * g.taps * size, dst, _gathered(g))


def gemm_backward(g: Geometry, workers: int | None = None) -> Pass:
    """An unfolded image a worker; all threads are, unless said otherwise."""
    src, _ = map_bytes(g, g.ci, g.co)
    return Pass("gemm", src, 0, 0, (workers or g.threads) * _unfolded(g) + ALIGN)


def gemm_weights(g: Geometry, workers: int | None = None) -> Pass:
    """An unfolded image and sums of the weight's gradient a worker."""
    weights = g.co * (g.ci // g.groups) * g.taps * g.itemsize
    return Pass("gemm", 0, weights, 0, (workers or _workers(g)) * (_unfolded(g) + 4 * weights) + 2 * ALIGN)


def backward_weights(g: Geometry) -> Pass:
    """The primitive for the weight's gradient. Depthwise kernels over 3×3 have none of their own and fall to GEMM.

    >>> from .conv import geometry
    >>> from .spec import op
    >>> def name(k):
    ...     x, w = (8, 96, 56, 56), (96, 1, k, k)
    ...     spec = op("aten::convolution_backward", [x, x, w], [x, w], padding=[k // 2] * 2, groups=96)
    ...     return backward_weights(geometry(spec)).name
    >>> name(3), name(5)
    ('depthwise', 'gemm')
    """
    size = g.itemsize
    narrow_group = g.groups > 1 and not g.depthwise and g.group_block < AVX2_BLOCK
    if (
        narrow_group
        or (g.depthwise and (max(g.kernel) > 3 or g.dilated))
        or (g.groups == 1 and min(g.kernel) > 14 and g.strided)
    ):
        return gemm_weights(g)
    if g.groups > 1:
        return forward(g)
    stem = g.ci < BLOCK and not one_by_one(g)
    block = AVX2_BLOCK if stem and g.ci > 3 else BLOCK
    ci = g.ci if stem and g.ci <= 3 else ceil_to(g.ci, block)
    co = ceil_to(g.co, block)
    src, dst = map_bytes(g, ci, co)
    picked = Pass("direct", src, co * ci * g.taps * size, dst)
    partial = (g.threads - 1) * picked.weights + (2 * PAGE + ALIGN if g.threads > 1 else 0)  # a sum a thread
    if stem and g.ci <= 3:
        return picked._replace(name="stem", src=0, scratch=partial)
    if one_by_one(g):
        return picked._replace(name="1x1", scratch=_gathered(g) or partial)
    return picked._replace(scratch=partial)


def expanded_weights(g: Geometry) -> int:
    """Bytes of the weight's gradient as the channels-last kernel makes it.

    There is no kernel for depthwise ones wider than 3×3: each channel becomes a group padded to a block of 16 by 16,
    256 times the weight (ConvNeXt trains through here: 768 channels of 7×7 take 38 MB).

    >>> from .conv import geometry
    >>> from .spec import op
    >>> x, w = (1, 768, 7, 7), (768, 1, 7, 7)
    >>> expanded_weights(geometry(op("aten::convolution_backward", [x, x, w], [x, w], padding=[3, 3], groups=768)))
    38535168
    """
    padded = BLOCK * BLOCK if g.depthwise and max(g.kernel) > 3 else 1
    return padded * g.co * (g.ci // g.groups) * g.taps * g.itemsize


def _workers(g: Geometry) -> int:
    """Threads that have a group and image of their own; one where the map is large enough to share."""
    return g.threads if prod(g.outside) < SHARED_MAP else 1
