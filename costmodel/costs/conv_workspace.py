"""What a convolution takes from torch's allocator beside its results, step by step as ATen runs it.

oneDNN: operands in the kernel's layout, scratch, then the result once in that layout and once plain. Maps that come
in channels-last stay so, and only the weights are copied. ATen's own: an unfolded copy (im2col), group by group.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from . import onednn, onednn_avx2
from .layout import channels_last, copy_bytes
from .onednn import PAGE, Pass
from .spec import OpSpec, TensorSpec

if TYPE_CHECKING:
    from .conv import Geometry

__all__ = ["backward_workspace", "forward_workspace"]

BRGEMM_SCRATCH = 2 * PAGE + 24


def forward(g: Geometry) -> Pass:
    """The forward primitive on the device's vector unit."""
    return onednn_avx2.forward(g) if g.lanes == onednn_avx2.BLOCK else onednn.forward(g)


def backward_data(g: Geometry) -> Pass:
    """The primitive for the input's gradient."""
    return onednn_avx2.backward_data(g) if g.lanes == onednn_avx2.BLOCK else onednn.backward_data(g)


def backward_weights(g: Geometry) -> Pass:
    """The primitive for the weight's gradient."""
    return onednn_avx2.backward_weights(g) if g.lanes == onednn_avx2.BLOCK else onednn.backward_weights(g)


def expanded_weights(g: Geometry) -> int:
    """Bytes of the weight's gradient as a channels-last kernel makes it."""
    return onednn_avx2.expanded_weights(g) if g.lanes == onednn_avx2.BLOCK else onednn.expanded_weights(g)


def _kernel_weights(g: Geometry, backward: bool) -> int:
    """Bytes of the weights as a kernel for maps in channels-last takes them."""
    if g.lanes == onednn_avx2.BLOCK:
        return onednn_avx2.channels_last_weights(g, backward)
    return (backward_data(g) if backward else forward(g)).weights


def _sizes(g: Geometry) -> tuple[int, int, int]:
    """Bytes of input, weight and output."""
    weight = g.co * (g.ci // g.groups) * g.taps
    maps = (g.batch * g.ci * prod(g.inside), weight, g.batch * g.co * prod(g.outside))
    return tuple(n * g.itemsize for n in maps)  # type: ignore[return-value]


def by_position(*tensors: TensorSpec) -> bool:
    """Whether one of them is channels-last and not plain as well."""
    return any(channels_last(t) and not t.contiguous for t in tensors)


def _swapped(g: Geometry) -> Geometry:
    """A transposed convolution is the input's gradient of the plain one whose input is its output."""
    return g._replace(ci=g.co, co=g.ci, inside=g.outside, outside=g.inside, transposed=False)


def unfolded(g: Geometry) -> int:
    """Bytes of the im2col buffer of one image and all groups; a 1×1 kernel reads the map itself."""
    if g.pointwise and not g.strided and not max(g.padding):
        return 0
    channels, positions = (g.co, g.inside) if g.transposed else (g.ci, g.outside)
    return channels * g.taps * prod(positions) * g.itemsize


def forward_workspace(op: OpSpec, g: Geometry, backend: str) -> int:
    """Peak beyond the output.

    Reordered operands first, then the reordered result beside the plain one:

    >>> from .conv import backend, geometry
    >>> from .spec import op
    >>> x = (8, 96, 56, 56)
    >>> spec = op("aten::convolution", [x, (96, 1, 3, 3)], [x], padding=[1, 1], groups=96)
    >>> forward_workspace(spec, geometry(spec), backend(geometry(spec)))
    9637248
    """
    x, w = op.inputs[:2]
    _, weight, result = _sizes(g)
    if not backend.startswith("Mkldnn"):
        if g.groups > 1 and not g.transposed:  # parts of every group, then joined
            return max(result, (unfolded(g) * g.batch + _sizes(g)[0]) // g.groups) + copy_bytes(x)
        whole = 1 if g.transposed else g.batch
        return unfolded(g) * whole + (0 if channels_last(x) else copy_bytes(x))
    if by_position(x, w) and not g.transposed:
        copies = (0 if channels_last(x) else x.numel * x.itemsize) + (0 if channels_last(w) else weight)
        return copies + _kernel_weights(g, False) + (0 if g.depthwise else BRGEMM_SCRATCH)
    copies = copy_bytes(x) + copy_bytes(w)
    if g.transposed:
        run = backward_data(_swapped(g))
        plain = 2 if run.name == "channels_last" else 1
        return copies + max(run.total - result, run.src + (plain - 1) * result)
    run = forward(g)
    return copies + max(run.total - result, run.dst)


def backward_workspace(op: OpSpec, g: Geometry, backend: str, to_x: bool, to_w: bool) -> int:
    """Peak beyond the gradients: the input's is made first, then the weight's.

    >>> from .conv import backend, geometry
    >>> from .spec import op
    >>> x, w = (8, 96, 56, 56), (96, 1, 3, 3)
    >>> spec = op("aten::convolution_backward", [x, x, w], [x, w], padding=[1, 1], groups=96)
    >>> g = geometry(spec)
    >>> backward_workspace(spec, g, backend(g), True, True)  # both maps and the gradient of w, reordered
    19267584
    """
    gy, x, w = op.inputs[:3]
    map_bytes, weight, _ = _sizes(g)
    grad_x, grad_w = map_bytes * to_x, weight * to_w
    if not backend.startswith("Mkldnn"):
        alike = channels_last if by_position(x) else TensorSpec.contiguous.fget  # type: ignore[attr-defined]
        copies = sum(t.numel * t.itemsize for t in (gy, x) if not alike(t))
        return copies + _plain_backward(g, backend, to_x, to_w)
    if by_position(x, w) and not g.transposed:
        return _channels_last_backward(g, gy, x, w, to_x, to_w)
    plain = _swapped(g) if g.transposed else g
    peaks = [0]
    if to_x:
        run = forward(plain) if g.transposed else backward_data(plain)
        result = run.dst if g.transposed else run.src
        copies = 2 if run.name == "channels_last" and not g.transposed else 1  # plain channels-last first, then plain
        peaks += [run.total, result + copies * grad_x]
    if to_w:
        run = backward_weights(plain)
        peaks += [grad_x + run.total, grad_x + run.weights + grad_w]
    return copy_bytes(gy) + copy_bytes(x) + max(0, max(peaks) - grad_x - grad_w)


def _plain_backward(g: Geometry, backend: str, to_x: bool, to_w: bool) -> int:
    """ATen's own kernels: the gradient of an undilated map is folded in place, others unfold a copy."""
    map_bytes, weight, result = _sizes(g)
    if g.groups > 1 and not g.transposed:
        slices = (map_bytes + result + unfolded(g) * g.batch) // g.groups if to_w else 0
        return max(map_bytes * to_x + weight * to_w, slices)
    if backend == "Slow2d":
        return unfolded(g) * g.batch * to_w
    return unfolded(g)


def _channels_last_backward(g: Geometry, gy: TensorSpec, x: TensorSpec, w: TensorSpec, to_x: bool, to_w: bool) -> int:
    """Maps are used as they lie; the weight is copied to channels-last, its gradient made in the kernel's layout.

    >>> from .conv import geometry
    >>> from .spec import op
    >>> x, w = TensorSpec((4, 64, 20, 20), stride=(25600, 1, 1280, 64)), TensorSpec((64, 64, 3, 3))
    >>> g = geometry(op("aten::convolution_backward", [x, x, w], [x, w], padding=[1, 1]))
    >>> _channels_last_backward(g, x, x, w, False, True)  # the weight's copy, and its gradient twice before the last
    442368
    """
    _, weight, _ = _sizes(g)
    copies = sum(t.numel * t.itemsize for t in (gy, x, w) if not channels_last(t))
    peaks = [0]
    if to_x:
        run = backward_data(g)
        scratch = 0 if g.depthwise else run.scratch if run.name == "channels_last" else BRGEMM_SCRATCH
        peaks.append(_kernel_weights(g, True) + scratch - weight * to_w)
    if to_w:
        peaks.append(expanded_weights(g) + weight)
    return copies + max(peaks)
