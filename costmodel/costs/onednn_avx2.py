"""What oneDNN's convolutions allocate on 256-bit units: the same as `onednn`, by the rules of the AVX2 kernels.

Channels are in blocks of 8 (``aBcd8b``), padded to whole blocks unless the convolution has groups. Direct kernels
hold a few positions of a row in registers, and leave to GEMM what their borders do not fit in. Gradients of strided
convolutions go through channels-last, as on 512-bit units.
Rules read off ``ONEDNN_VERBOSE=1`` and the allocator's events over random shapes (oneDNN 3.x on a Zen 3).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from .layout import ceil_to
from .onednn import ALIGN, PAGE, Pass, gemm_backward, gemm_forward, gemm_weights, map_bytes, one_by_one

if TYPE_CHECKING:
    from .conv import Geometry

__all__ = ["backward_data", "backward_weights", "channels_last_weights", "expanded_weights", "forward"]

BLOCK = 8
ROW = 3  # positions of a row that the forward kernel holds at once
REGISTERS = 15
WIDE_KERNEL = 7  # wider ones take no border and stride at once
WIDEST_WEIGHTS = 13
WIDEST_BLOCKS = (32, 24)  # channels a block of the channels-last kernel
BATCH_ELEMENT = 32  # bytes that it keeps of each tap
UNFOLDED_MOST = 320 << 10  # bytes of an unfolded image that GEMM takes at once: 160 to 460 KB with its blocking
WHOLE_OUTPUTS = 30  # blocks of output channels up to which it takes all
SEARCHED = 9  # blocks of input channels up to which the kernel for the gradient of 1×1 weights takes all


def _channels(g: Geometry) -> tuple[int, int]:
    """Channels of both maps; those of groups are not padded."""
    return (g.ci, g.co) if g.groups > 1 else (ceil_to(g.ci, BLOCK), ceil_to(g.co, BLOCK))


def _in_blocks(g: Geometry) -> bool:
    """Whether the channels of each group come in whole blocks."""
    return g.groups == 1 or (g.ci // g.groups % BLOCK == 0 and g.co // g.groups % BLOCK == 0)


def _reach(g: Geometry) -> tuple[int, ...]:
    """Positions from the first tap of a kernel to its last, in each dimension."""
    return tuple((k - 1) * d for k, d in zip(g.kernel, g.dilation))


def _end_padding(g: Geometry) -> tuple[int, ...]:
    """What the last position of the output reads beyond the input; negative where it does not reach its end."""
    sides = zip(g.outside, g.inside, g.kernel, g.stride, g.padding, g.dilation)
    return tuple((o - 1) * s + (k - 1) * d + 1 - i - p for o, i, k, s, p, d in sides)


def _covers_borders(g: Geometry) -> bool:
    """Whether no position is computed from borders alone."""
    return all(r >= max(p, e) for r, p, e in zip(_reach(g), g.padding, _end_padding(g)))


def _direct_forward(g: Geometry) -> bool:
    """Whether borders fit in what the forward kernel holds of a row."""
    wide, size, stride, before = g.kernel[-1], g.outside[-1], g.stride[-1], g.padding[-1]
    row = min(ROW, size)
    if not _covers_borders(g) or before > row or (wide > WIDE_KERNEL and max(g.padding) > 0 and g.strided):
        return False
    after = _end_padding(g)[-1] - size % row * stride
    if after > row * stride and size // row > 1:
        row = min(after // stride + size % row, size, REGISTERS // 2)
        return row >= max(before, _end_padding(g)[-1] - size % row * stride)
    return True


def _direct_data(g: Geometry) -> bool:
    """Whether the kernel for the input's gradient finds a blocking of its rows that borders fit in."""
    if not _covers_borders(g) or (g.strided and g.dilated) or len(set(g.stride[-2:])) > 1:
        return False
    size, stride, reach, after = g.inside[-1], g.stride[-1], _reach(g)[-1], _end_padding(g)[-1]
    before = (reach - g.padding[-1]) // stride * stride
    blocks, fits = ceil_to(g.ci // g.groups, BLOCK) // BLOCK, [(0, 0)]
    for b in range(1, 5):
        for u in range(stride, size + stride, stride):
            row = min(u, size)
            if blocks % b == 0 and u * b + u // stride <= REGISTERS and (before <= row or row == size):
                fits.append((-(-row // stride) * b, row))
    row = max(fits)[1]
    if not row:
        return False
    tail = size % row
    return (reach - after - tail) // stride * stride <= row and (
        row >= size or (row % stride == 0 and after + tail >= 0)
    )


def _direct_weights(g: Geometry) -> bool:
    """Whether there is a kernel for the weight's gradient: no dilation, and a kernel no wider than its registers."""
    return (
        not g.dilated
        and _covers_borders(g)
        and g.kernel[-1] <= WIDEST_WEIGHTS
        and g.kernel[-2] <= g.inside[-2]
        and g.padding[-2] < g.kernel[-2]
    )


def _workers(g: Geometry) -> int:
    """Threads that have a group and image of their own; one where they cannot be shared out evenly."""
    return 1 if g.batch * g.groups % g.threads else g.threads


def _narrowed(blocks: int) -> int:
    """Blocks of input channels that the kernel for the gradient of 1×1 weights takes at once.

    >>> [_narrowed(n) for n in (9, 12, 13, 15, 40)]
    [9, 6, 13, 5, 5]
    """
    while blocks > SEARCHED:
        part = next((p for p in (2, 3) if blocks % p == 0), 1)
        if part == 1:
            break
        blocks //= part
    return blocks


def _gathered(g: Geometry, channels: int) -> int:
    """What the 1×1 kernel gathers of an image where it strides: so many channels a thread."""
    return g.threads * channels * prod(g.outside) * g.itemsize + ALIGN if g.strided else 0


def forward(g: Geometry) -> Pass:
    """The forward primitive.

    >>> from .conv import geometry
    >>> from .spec import op
    >>> x = (8, 20, 14, 14)
    >>> forward(geometry(op("aten::convolution", [x, (20, 20, 3, 3)], [x], padding=[1, 1])._replace(lanes=8)))
    Pass(name='direct', src=150528, weights=20736, dst=150528, scratch=0)
    """
    size = g.itemsize
    if g.depthwise:
        channels = ceil_to(g.ci, BLOCK)
        src, dst = map_bytes(g, channels, channels)
        return Pass("depthwise", src, channels * g.taps * size, dst)
    flat = g.ci < BLOCK and (g.groups == 1 or g.co // g.groups % BLOCK == 0)
    if not (_in_blocks(g) or flat) or not (one_by_one(g) or _direct_forward(g)):
        return gemm_forward(g, UNFOLDED_MOST)
    ci, co = _channels(g)
    src, dst = map_bytes(g, ci, co)
    if g.groups == 1 and one_by_one(g):
        return Pass("1x1", src, ci * co * size, dst, _gathered(g, ci))
    if flat:
        return Pass("stem", 0, co * (g.ci // g.groups) * g.taps * size, dst)
    return Pass("grouped" if g.groups > 1 else "direct", src, co * (ci // g.groups) * g.taps * size, dst)


def backward_data(g: Geometry) -> Pass:
    """The primitive for the input's gradient."""
    size = g.itemsize
    if g.depthwise and not g.dilated:
        return forward(g)
    if g.strided and not g.dilated and (g.groups == 1 or g.co // g.groups > BLOCK):
        return _channels_last_data(g)
    plain = g.groups == 1 and one_by_one(g)
    if g.depthwise or not _in_blocks(g) or not (plain or _direct_data(g)):
        return gemm_backward(g, _workers(g))
    ci, co = _channels(g)
    src, dst = map_bytes(g, ci, co)
    return Pass("1x1" if plain else "direct", src, ci * (co // g.groups) * g.taps * size, dst)


def _channels_last_data(g: Geometry) -> Pass:
    """The strided kernel: a thread copies the gradient with its borders, and a row where the stride leaves a rest."""
    size, after = g.itemsize, _end_padding(g)
    src, dst = map_bytes(g, g.ci, g.co)
    borders = zip(g.outside, _reach(g), g.padding, after, g.stride)
    widened = prod(o + max(0, r - p) // s + max(0, r - e) // s for o, r, p, e, s in borders)
    buffers = [ceil_to(widened * g.co, PAGE) * size, PAGE, ceil_to(g.taps * BATCH_ELEMENT, PAGE)]
    if g.inside[-1] % g.stride[-1]:
        buffers.append(ceil_to(ceil_to(g.inside[-1], g.stride[-1]) * g.ci, PAGE) * size)
    weights = _in_wide_blocks(g.ci // g.groups) * g.co * g.taps * size
    return Pass(
        "channels_last",
        src,
        weights,
        0 if prod(g.outside) == 1 else dst,
        g.threads * sum(buffers) + len(buffers) * PAGE,
    )


def _in_wide_blocks(channels: int) -> int:
    """Channels padded to a block of the channels-last kernels: one of up to 32, else the nearest fit of two."""
    return min(ceil_to(channels, block) for block in ((ceil_to(channels, BLOCK),) if channels <= 32 else WIDEST_BLOCKS))


def channels_last_weights(g: Geometry, backward: bool) -> int:
    """Bytes of the weights for maps in channels-last, forward and for the input's gradient.

    Of blocks of 24 and of 32 channels the library takes which its estimate of speed says; here the nearest fit.

    >>> from .conv import geometry
    >>> from .spec import op
    >>> x = (4, 40, 20, 20)
    >>> g = geometry(op("aten::convolution", [x, (64, 40, 3, 3)], [(4, 64, 20, 20)], padding=[1, 1])._replace(lanes=8))
    >>> channels_last_weights(g, False), channels_last_weights(g, True)  # 64·40·9·4, and 40 channels as 48
    (92160, 110592)
    """
    if g.depthwise:
        return ceil_to(g.ci, BLOCK) * g.taps * g.itemsize
    inner, outer = (g.co, g.ci) if backward else (g.ci, g.co)
    return inner // g.groups * _in_wide_blocks(outer // g.groups) * g.groups * g.taps * g.itemsize


def backward_weights(g: Geometry) -> Pass:
    """The primitive for the weight's gradient."""
    if g.depthwise and max(g.kernel) <= 3 and not g.dilated:
        return forward(g)
    plain = g.groups == 1 and one_by_one(g)
    if g.depthwise or not _in_blocks(g) or not (plain or _direct_weights(g)):
        return gemm_weights(g, 1 if g.batch * g.groups == 1 else None)
    ci, co = _channels(g)
    src, dst = map_bytes(g, ci, co)
    weights = co * (ci // g.groups) * g.taps * g.itemsize
    blocks = ci // g.groups // BLOCK
    if plain:
        at_once = _narrowed(blocks)
        uneven = blocks // at_once * (2 if co // BLOCK > WHOLE_OUTPUTS else 1) % g.threads > 0
        sums = g.threads * weights + 2 * PAGE + ALIGN if uneven else 0
        return Pass("1x1", src, weights, dst, _gathered(g, at_once * BLOCK) + sums)
    if g.ci == 3:
        src, weights, blocks = 0, co * 3 * g.taps * g.itemsize, 1
    shared = g.batch > 1 and blocks * (co // BLOCK) < g.threads
    sums = (g.threads - 1) * weights + 3 * PAGE if shared else 0  # of threads that share a block
    return Pass("direct" if src else "stem", src, weights, dst, sums)


def expanded_weights(g: Geometry) -> int:
    """Bytes of the weight's gradient as the channels-last kernel makes it: wide depthwise ones in blocks of 8 by 8."""
    if g.depthwise:
        padded = BLOCK * BLOCK if max(g.kernel) > 3 else 1
        return padded * g.co * g.taps * g.itemsize
    ci, co = _channels(g)
    return co * (ci // g.groups) * g.taps * g.itemsize
