"""ONNX operators that move and pick, in torch; they join `onnx_ops.OPS`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .onnx_ops import DTYPES, OPS, Attributes, Value, numbers, operator, tensor

__all__ = ["OPS"]

OPS |= {
    "Transpose": lambda a, x: tensor(x).permute(a.get("perm", list(reversed(range(tensor(x).dim()))))),
    "Concat": lambda a, *x: torch.cat([tensor(v) for v in x], a["axis"]),
    "Expand": lambda _a, x, shape: _expand(tensor(x), numbers(shape)),
    "Tile": lambda _a, x, repeats: tensor(x).repeat(numbers(repeats)),
    "GatherElements": lambda a, x, i: torch.gather(tensor(x), a.get("axis", 0), tensor(i)),
    "ScatterElements": lambda a, x, i, v: torch.scatter(tensor(x), a.get("axis", 0), tensor(i), tensor(v)),
    "DepthToSpace": lambda a, x: F.pixel_shuffle(x, a["blocksize"]),
    "SpaceToDepth": lambda a, x: F.pixel_unshuffle(x, a["blocksize"]),
    "Shape": lambda a, x: np.array(list(x.shape)[a.get("start", 0) : a.get("end")], dtype=np.int64),
    "Size": lambda _a, x: np.array(x.numel() if isinstance(x, Tensor) else x.size, dtype=np.int64),
}


def _expand(x: Tensor, shape: list[int]) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


@operator("Reshape")
def _reshape(attrs: Attributes, x: Value, shape: Value) -> Tensor:
    x, wanted = tensor(x), numbers(shape)
    if not attrs.get("allowzero"):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def _flatten(attrs: Attributes, x: Tensor) -> Tensor:
    axis = attrs.get("axis", 1)
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


@operator("Squeeze")
def _squeeze(attrs: Attributes, x: Value, axes: Value = None) -> Tensor:
    given = attrs.get("axes") if axes is None else numbers(axes)
    return tensor(x).squeeze(tuple(given)) if given else tensor(x).squeeze()


@operator("Unsqueeze")
def _unsqueeze(attrs: Attributes, x: Value, axes: Value = None) -> Tensor:
    x, given = tensor(x), attrs.get("axes") if axes is None else numbers(axes)
    assert given is not None
    rank = x.dim() + len(given)
    for axis in sorted(a % rank for a in given):
        x = x.unsqueeze(axis)
    return x


@operator("Split")
def _split(attrs: Attributes, x: Tensor, sizes: Value = None) -> tuple[Tensor, ...]:
    axis, given = attrs.get("axis", 0), attrs.get("split") if sizes is None else numbers(sizes)
    if given:
        return tuple(torch.split(x, given, axis))
    return tuple(torch.split(x, -(-x.shape[axis] // attrs["outputs"]), axis))


@operator("Slice")
def _slice(
    attrs: Attributes, x: Value, starts: Value = None, ends: Value = None, axes: Value = None, steps: Value = None
) -> Any:
    x = tensor(x)
    begin = attrs["starts"] if starts is None else numbers(starts)
    end = attrs["ends"] if ends is None else numbers(ends)
    over = attrs.get("axes", list(range(len(begin)))) if axes is None else numbers(axes)
    step = [1] * len(begin) if steps is None else numbers(steps)
    for axis, b, e, s in zip(over, begin, end, step):
        if s < 0:  # torch has no backward slices
            x = x.flip(axis)
            n = x.shape[axis]
            b, e = (n - 1 - min(b + n if b < 0 else b, n - 1)), (n if e < -n else n - 1 - (e + n if e < 0 else e))
        x = x[(slice(None),) * (axis % x.dim()) + (slice(b, e, abs(s)),)]
    return x


@operator("Gather")
def _gather(attrs: Attributes, x: Value, indices: Value) -> Tensor:
    axis, x = attrs.get("axis", 0), tensor(x)
    if isinstance(indices, np.ndarray) and indices.ndim == 0:
        return x.select(axis, int(indices))
    index = tensor(indices, x)
    if axis == 0 and x.dim() == 2 and x.is_floating_point():
        return F.embedding(index, x)
    rows = x.index_select(axis, index.reshape(-1))
    axis %= x.dim()
    return rows.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@operator("GatherND")
def _gather_nd(attrs: Attributes, x: Value, indices: Value) -> Tensor:
    x, index = tensor(x), tensor(indices)
    if attrs.get("batch_dims"):
        raise NotImplementedError("GatherND with batch_dims")
    return x[tuple(index.unbind(-1))]


@operator("ScatterND")
def _scatter_nd(_attrs: Attributes, x: Value, indices: Value, updates: Value) -> Tensor:
    x = tensor(x).clone()
    x[tuple(tensor(indices).unbind(-1))] = tensor(updates, x).to(x.dtype)
    return x


@operator("Pad")
def _pad(attrs: Attributes, x: Tensor, pads: Value = None, value: Value = None, axes: Value = None) -> Tensor:
    given = attrs["pads"] if pads is None else numbers(pads)
    over = list(range(x.dim())) if axes is None else [a % x.dim() for a in numbers(axes)]
    before, after = dict(zip(over, given)), dict(zip(over, given[len(over) :]))
    around = [p for d in reversed(range(x.dim())) for p in (before.get(d, 0), after.get(d, 0))]
    while len(around) > 2 and around[-2:] == [0, 0]:
        around = around[:-2]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        attrs.get("mode", "constant")
    ]
    fill = attrs.get("value", 0.0) if value is None else float(np.array(value).reshape(-1)[0])
    return F.pad(x, around, mode, fill) if mode == "constant" else F.pad(x, around, mode)


@operator("ConstantOfShape")
def _constant_of_shape(attrs: Attributes, shape: Value) -> Any:
    value = attrs.get("value")
    filled = 0.0 if value is None else np.array(value).reshape(-1)[0].item()
    dtype = torch.float32 if value is None else torch.from_numpy(np.array(value)).dtype
    return torch.full(numbers(shape), filled, dtype=dtype)


@operator("Range")
def _range(_attrs: Attributes, start: Value, limit: Value, delta: Value) -> Tensor:
    first, last, step = (
        np.array(v.cpu() if isinstance(v, Tensor) else v).reshape(-1)[0].item() for v in (start, limit, delta)
    )
    return torch.arange(first, last, step)


@operator("EyeLike")
def _eye(attrs: Attributes, x: Tensor) -> Tensor:
    return torch.eye(*x.shape[:2], dtype=DTYPES[attrs["dtype"]] if "dtype" in attrs else x.dtype)


@operator("OneHot")
def _one_hot(attrs: Attributes, indices: Value, depth: Value, values: Value) -> Tensor:
    hot = F.one_hot(tensor(indices).long(), numbers(depth)[0]).movedim(-1, attrs.get("axis", -1))
    off, on = tensor(values).unbind()
    return torch.where(hot.bool(), on, off)


@operator("Resize", "Upsample")
def _resize(attrs: Attributes, x: Tensor, *rest: Value) -> Tensor:
    """Sizes, or scales; where both are empty the node has no meaning."""
    dims = x.dim() - 2
    sizes = rest[2] if len(rest) > 2 and rest[2] is not None and len(rest[2]) else None
    scales = rest[1] if len(rest) > 1 else rest[0] if rest else np.array(attrs["scales"])
    if sizes is not None:
        target = numbers(sizes)[-dims:]
    else:
        factors = [float(f) for f in np.array(scales).reshape(-1)][-dims:]
        target = [int(n * f) for n, f in zip(x.shape[2:], factors)]
    kind = {"nearest": "nearest", "linear": ("linear", "bilinear", "trilinear")[dims - 1], "cubic": "bicubic"}[
        attrs.get("mode", "nearest")
    ]
    corners = attrs.get("coordinate_transformation_mode", "half_pixel") == "align_corners"
    return F.interpolate(x, target, mode=kind, align_corners=None if kind == "nearest" else corners)


@operator("LSTM", "GRU", "RNN")
def _recurrent(attrs: Attributes, x: Tensor, w: Tensor, r: Tensor, b: Value = None, *rest: Value) -> tuple[Tensor, ...]:
    """torch's recurrence on the same shapes. The gates lie in another order, which changes values and no cost."""
    directions, width = w.shape[0], attrs["hidden_size"]
    weights: list[Tensor] = []
    for d in range(directions):
        weights += [w[d], r[d]]
        if b is not None:
            half = b.shape[1] // 2
            weights += [b[d][:half], b[d][half:]]
    given = (*rest[1:3], None, None)[:2]
    first = [x.new_zeros(directions, x.shape[1], width) if h is None else tensor(h, x) for h in given]
    settings = (weights, b is not None, 1, 0.0, False, directions == 2, False)
    kind = attrs["operator"]
    if kind == "LSTM":
        y, *state = torch.lstm(x, first, *settings)
    else:
        y, *state = (torch.gru if kind == "GRU" else torch.rnn_tanh)(x, first[0], *settings)
    return y.reshape(*y.shape[:2], directions, width).transpose(1, 2), *state
