"""Convolutions, forward and backward: two FLOPs a multiply-add over the channels of a group, padding counted as data.

The kind is the algorithm that ATen and oneDNN pick on a CPU (`algorithm`): per-sample GEMM on the map as it lies
(``conv_pointwise_gemm``) or on an unfolded copy (``conv_im2col``), with ``_by_group`` where ATen slices the channels,
calls itself for each group and joins the results; or oneDNN's kernels on channels in blocks of a vector: ``conv_1x1``,
``conv_1x1_strided``, ``conv_direct``, ``conv_direct_strided``, ``conv_stem`` (few input channels), ``conv_depthwise``,
``conv_depthwise_strided``, ``conv_grouped_4``, ``_8``, ``_16`` (channels a block), ``conv_grouped_gemm``,
``conv_transposed``. Backward kinds end in ``_backward``; depthwise ones also in the kernel size.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

from .conv_workspace import backward_weights, backward_workspace, by_position, forward_workspace
from .layout import ceil_to
from .matmul import gemm_terms, padded_flops
from .spec import Cost, OpSpec

__all__ = ["FORMULAS", "Geometry", "algorithm", "backend", "geometry"]

# Channels a block that oneDNN's kernels for groups have, by lanes of the unit; a group of other sizes goes to GEMM.
GROUP_BLOCKS = {16: (16, 8, 4), 8: (8,)}
GEMM_BATCH = 16  # ATen: from so many images on, 1×1 kernels go to oneDNN on one thread as well
STEM_CHANNELS = 4
SMALL_MAP = 256
LARGE_PATCH = 512  # taps of a kernel beyond which reordering a weight takes three times as long
MKLDNN_ELEMENTS = 20480  # ATen: a single image smaller than this does not go to oneDNN


class Geometry(NamedTuple):
    """What a convolution is, whichever op spells it; `inside` and `outside` are its two maps, input and output."""

    batch: int
    ci: int
    co: int
    groups: int
    inside: tuple[int, ...]
    outside: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    dtype: str
    itemsize: int
    threads: int
    lanes: int  # channels a block of oneDNN's layouts: 16 on 512-bit units, 8 on 256-bit ones

    @property
    def pixels(self) -> int:
        return self.batch * prod(self.inside if self.transposed else self.outside)

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    @property
    def flops(self) -> int:
        return 2 * self.pixels * self.co * (self.ci // self.groups) * self.taps

    @property
    def strided(self) -> bool:
        return max(self.stride) > 1

    @property
    def dilated(self) -> bool:
        return max(self.dilation) > 1

    @property
    def pointwise(self) -> bool:
        return self.taps == 1

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.ci == self.co

    @property
    def padded_channels(self) -> tuple[int, int]:
        """Input and output channels rounded up to whole blocks, group by group."""
        if self.depthwise:
            return (ceil_to(self.ci, self.lanes),) * 2
        block = self.group_block
        g = self.groups
        stem = g == 1 and self.ci < self.lanes
        ci = self.ci if stem else ceil_to(self.ci // g, block) * g
        return ci, ceil_to(self.co // g, block) * g

    @property
    def group_block(self) -> int:
        """Channels a block: a vector, or the largest block that divides the channels of a group; 1 if none does."""
        if self.groups == 1:
            return self.lanes
        inner, outer = self.ci // self.groups, self.co // self.groups
        return next((b for b in GROUP_BLOCKS[self.lanes] if inner % b == 0 and outer % b == 0), 1)


def _tuple(value: object, dims: int, default: int) -> tuple[int, ...]:
    if value is None or isinstance(value, str):
        return (default,) * dims
    values = [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]
    return tuple(values) * dims if len(values) == 1 else tuple(values)


def geometry(op: OpSpec) -> Geometry:
    """The geometry of a forward or backward convolution, one-dimensional ones seen as rows of height 1.

    >>> from .spec import op
    >>> g = geometry(op("aten::convolution", [(1, 4, 10), (6, 4, 3)], [(1, 6, 8)], stride=[1]))
    >>> g.inside, g.kernel, g.flops  # 2·8·6·4·3
    ((1, 10), (1, 3), 1152)
    """
    backward = "backward" in op.name
    x, w = op.inputs[1:3] if backward else op.inputs[:2]
    y = op.inputs[0] if backward else op.outputs[0]
    dims = len(w.shape) - 2
    unbatched = len(x.shape) == dims + 1
    transposed = bool(op.attr("transposed", "transpose" in op.name))
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
    stride, padding, dilation, extra = (_tuple(op.attr(key), dims, value) for key, value in defaults.items())
    if op.attr("padding") == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, w.shape[2:]))
    spatial = [tuple(x.shape[-dims:]), tuple(y.shape[-dims:]), tuple(w.shape[2:]), stride, padding, dilation, extra]
    if dims == 1:
        spatial = [(flat, *sizes) for flat, sizes in zip((1, 1, 1, 1, 0, 1, 0), spatial)]
    inside, outside, kernel, stride, padding, dilation, extra = spatial
    return Geometry(
        batch=1 if unbatched else x.shape[0],
        ci=x.shape[-dims - 1],
        co=y.shape[-dims - 1],
        groups=op.attr("groups", 1),
        inside=inside,
        outside=outside,
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        output_padding=extra,
        transposed=transposed,
        dtype=x.dtype,
        itemsize=x.itemsize,
        threads=op.threads,
        lanes=op.lanes,
    )


def backend(g: Geometry) -> str:
    """Which library ATen sends a convolution to on an x86 CPU: the rule of `ConvParams::use_mkldnn`, then the shape.

    oneDNN takes float32 and, with AVX-512, bfloat16, unless the map is one small image, the kernel is 1×1 with stride
    1, fewer than 16 images and one thread, where a plain GEMM is faster, or a transposed one is padded by a whole
    stride.

    >>> from .spec import op
    >>> small = op("aten::convolution", [(8, 16, 28, 28), (32, 16, 1, 1)], [(8, 32, 28, 28)])
    >>> backend(geometry(small)), backend(geometry(small._replace(threads=2)))
    ('Slow2d', 'Mkldnn')
    """
    if 0 in (g.batch, g.ci, g.co, *g.inside):
        return "Empty"
    last = g.kernel[-2:]
    plain = not g.strided and not g.dilated and g.batch < GEMM_BATCH and last == (1, 1) and g.threads == 1
    worth = g.groups > 1 or min(last) > 3 or g.batch > 1 or prod((g.batch, g.ci, *g.inside)[:4]) > MKLDNN_ELEMENTS
    widened = g.transposed and any(e >= s for e, s in zip(g.output_padding, g.stride))
    narrow = g.dtype in ("bfloat16", "float16") and g.lanes == 16
    if not widened and (narrow or (g.dtype == "float32" and not plain and worth)):
        return "MkldnnTranspose" if g.transposed else "Mkldnn"
    dims = f"{len(g.kernel)}d"
    if g.transposed:
        return f"SlowTranspose{dims}"
    return f"SlowDilated{dims}" if g.dilated else f"Slow{dims}"


def algorithm(op: OpSpec) -> str:
    """The class of kernel that runs, forward.

    >>> from .spec import op
    >>> def kind(n, ci, co, k, size, stride=1, groups=1):
    ...     out = -(-size // stride)
    ...     return algorithm(op("aten::convolution", [(n, ci, size, size), (co, ci // groups, k, k)],
    ...                         [(n, co, out, out)], stride=[stride] * 2, padding=[k // 2] * 2, groups=groups))
    >>> kind(8, 24, 144, 1, 56), kind(16, 24, 144, 1, 56), kind(1, 512, 512, 3, 6)
    ('conv_pointwise_gemm', 'conv_1x1', 'conv_im2col')
    >>> kind(8, 3, 32, 3, 224, stride=2), kind(8, 96, 96, 3, 56, groups=96), kind(8, 64, 64, 3, 56)
    ('conv_stem', 'conv_depthwise', 'conv_direct')
    >>> kind(1, 512, 512, 1, 7, groups=512), kind(16, 512, 512, 1, 7, groups=512), kind(1, 64, 128, 7, 56, groups=64)
    ('conv_pointwise_gemm_by_group', 'conv_depthwise', 'conv_grouped_gemm')
    """
    return _algorithm(geometry(op))


def _algorithm(g: Geometry) -> str:
    picked = backend(g)
    if "Transpose" in picked:
        return "conv_transposed" if picked.startswith("Mkldnn") else "conv_transposed_im2col"
    if not picked.startswith("Mkldnn"):
        unfolded = not g.pointwise or g.strided or max(g.padding) > 0
        each = "_by_group" if g.groups > 1 else ""
        return ("conv_im2col" if unfolded else "conv_pointwise_gemm") + each
    step = "_strided" if g.strided else ""
    if g.depthwise:
        return f"conv_depthwise{step}"
    if g.groups > 1:
        return f"conv_grouped_{g.group_block}" if g.group_block > 1 else "conv_grouped_gemm"
    if g.ci <= STEM_CHANNELS:
        return "conv_stem"
    if g.pointwise:
        return f"conv_1x1{step}"
    return f"conv_direct{step}"


def _terms(g: Geometry, kind: str, bias: bool) -> dict[str, float]:
    """Features of the time of one pass (LATENCY.md, features by branch)."""
    if "gemm" in kind or "im2col" in kind:
        per_group = g.co // g.groups
        terms = gemm_terms(per_group, g.pixels // g.batch, g.ci // g.groups * g.taps, g.batch * g.groups)
        terms["bias"] = float(g.pixels * g.co) if bias else 0.0
        if "_by_group" in kind:
            terms["groups"] = float(g.groups)
        if "im2col" in kind or (g.groups > 1 and not g.pointwise):
            terms["unfolded_bytes"] = float(g.pixels * g.ci * g.taps * g.itemsize)
        return terms
    ci, co = g.padded_channels
    pixels, taps = g.pixels, g.taps
    rows = pixels // max(g.outside[-1], 1)
    inside = g.batch * g.ci * prod(g.inside)
    outside = g.batch * g.co * prod(g.outside)
    moved = {"in": float(inside), "out": float(outside)}
    if g.depthwise:
        return {
            "taps": float(pixels * co * taps),
            "pixels": float(pixels * co),
            "tap_rows": float(pixels * co * g.kernel[-2]),
            "rows": float(rows * co),
            **moved,
        }
    inner = ci // g.groups
    weight = g.co * (g.ci // g.groups) * taps
    small = prod(g.outside) < SMALL_MAP
    return {
        "taps": float(pixels * inner * co * taps),
        "taps_wide": float(rows * ceil_to(g.outside[-1], 14) * inner * co * taps),
        "tap_rows": float(rows * inner * co * taps),
        **moved,
        "weight": float(weight),
        "in_odd": moved["in"] if g.ci % g.lanes else 0.0,
        "out_odd": moved["out"] if g.co % g.lanes else 0.0,
        "in_small": moved["in"] if small else 0.0,
        "out_small": moved["out"] if small else 0.0,
        "weight_spatial": float(weight) if taps > 1 else 0.0,
        "weight_patch": float(weight) if taps > LARGE_PATCH else 0.0,
    }


def _work(g: Geometry, kind: str) -> float:
    """FLOPs on whole blocks of channels; on whole panels of a GEMM."""
    if ("gemm" in kind and g.groups == 1) or "im2col" in kind:
        per_group = g.co // g.groups
        k = g.ci // g.groups * g.taps
        return padded_flops(per_group, g.pixels // g.batch, k, g.batch * g.groups)
    ci, co = g.padded_channels
    return 2.0 * g.pixels * g.taps * (co if g.depthwise else co * (ci // g.groups))


def _layout(op: OpSpec) -> str:
    """Channels-last data take other kernels and no reorders: a class of its own."""
    return "_channels_last" if by_position(*op.inputs[:2]) else ""


def convolution(op: OpSpec) -> Cost:
    """2·N·Ho·Wo·Co·(Ci/groups)·k²; the bias is not counted.

    >>> from .spec import op
    >>> c = convolution(op("aten::convolution", [(1, 3, 8, 8), (4, 3, 3, 3)], [(1, 4, 6, 6)]))
    >>> c.flops  # 2·36·4·3·9
    7776
    """
    g = geometry(op)
    kind = _algorithm(g)
    return Cost(
        flops=g.flops,
        kind=kind + _layout(op),
        work=_work(g, kind),
        terms=_terms(g, kind, len(op.inputs) > 2),
        workspace=forward_workspace(op, g, backend(g)),
    )


def convolution_backward(op: OpSpec) -> Cost:
    """As many FLOPs as the forward for each gradient that is asked for; the bias's sum is not counted.

    A depthwise forward and backward is three forwards, as it should be:

    >>> from .spec import op
    >>> x, w, y = (2, 8, 6, 6), (8, 1, 3, 3), (2, 8, 6, 6)
    >>> forward = convolution(op("aten::convolution", [x, w], [y], padding=[1, 1], groups=8)).flops
    >>> backward = convolution_backward(op("aten::convolution_backward", [y, x, w], [x, w], padding=[1, 1], groups=8,
    ...                                    output_mask=[True, True, False])).flops
    >>> forward, backward  # 2·(2·36)·8·9
    (10368, 20736)
    """
    g = geometry(op)
    kind = _algorithm(g)
    to_x, to_w, to_b = (bool(v) for v in op.attr("output_mask", [True, True, True]))
    passes = to_x + to_w
    backward_kind = f"{kind}_backward"
    terms = {key: passes * value for key, value in _terms(g, kind, False).items()}
    if g.depthwise and kind.startswith("conv_depthwise"):
        backward_kind += f"_k{max(g.kernel)}"
        # without a kernel for the weight's gradient (nor has a map that one covers), a GEMM for each channel and image
        covered = any(side < taps for side, taps in zip(g.inside, g.kernel))
        by_image = to_w and (covered or backward_weights(g).name == "gemm")
        terms["images"] = float(g.batch * g.co) if by_image else 0.0
    if to_b:
        terms["bias"] = float(g.pixels * g.co)
    return Cost(
        flops=passes * g.flops,
        kind=backward_kind + _layout(op),
        work=passes * _work(g, kind),
        terms=terms,
        read=_read(op, to_x, to_w, to_b),
        workspace=backward_workspace(op, g, backend(g), to_x, to_w),
        calls=max(passes, 1),
    )


def _read(op: OpSpec, to_x: bool, to_w: bool, to_b: bool) -> tuple[int, ...]:
    """The output's gradient once a pass, the weight for the input's gradient, the input for the weight's."""
    y, x, w = (t.nbytes for t in op.inputs[:3])
    return (y * (to_x + to_w + to_b), x if to_w else 0, w if to_x else 0, *(0 for _ in op.inputs[3:]))


_FORWARD = """convolution _convolution convolution_overrideable conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d mkldnn_convolution _slow_conv2d_forward thnn_conv2d slow_conv3d slow_conv3d_forward
    slow_conv_dilated2d slow_conv_dilated3d slow_conv_transpose2d slow_conv_transpose3d _conv_depthwise2d
    conv_depthwise3d _convolution_mode"""
FORMULAS: dict[str, Callable[[OpSpec], Cost]] = {
    **{f"aten::{name}": convolution for name in _FORWARD.split()},
    "aten::convolution_backward": convolution_backward,
    "aten::convolution_backward_overrideable": convolution_backward,
}
