"""Normalisation, forward and backward.

FLOPs an element. Frozen statistics: scale and shift, 2. Statistics of the batch: +3 (an add for the mean, a
multiply-add for the square). Layer and group norm: 3 for the statistics, 2 to normalise, 2 for scale and shift where
they are. RMS norm: 2 for the square, 1 to normalise, 1 for the scale. Work once a channel or row is not counted.
"""

from __future__ import annotations

from math import prod

from .layout import channels_last, copy_bytes, loop
from .spec import Cost, OpSpec, TensorSpec

__all__ = ["FORMULAS"]

STATISTICS = 3
AFFINE = 2


def _channels(x: TensorSpec) -> tuple[int, int, int]:
    """Batch, channels and positions of (N, C, ...)."""
    n, c = (x.shape[0], x.shape[1]) if len(x.shape) > 1 else (1, x.numel)
    return n, c, x.numel // max(n * c, 1)


def _channel_terms(x: TensorSpec) -> dict[str, float]:
    n, c, positions = _channels(x)
    # without positions there are no planes to start on: the loop runs over channels
    return {"n": float(x.numel), "channels": float(c), "planes": float(n * c) if positions > 1 else 0.0}


def batch_norm(op: OpSpec) -> Cost:
    """Scale and shift by frozen statistics, or by the batch's own: 3 an element more.

    >>> from .spec import op
    >>> ins, outs = [(2, 4, 5, 5), (4,), (4,), (4,), (4,)], [(2, 4, 5, 5), (4,), (4,)]
    >>> [batch_norm(op("aten::native_batch_norm", ins, outs, training=t)).flops for t in (False, True)]  # 200 elements
    [400, 1000]
    """
    x, channels = op.inputs[0], op.outputs[0].shape[1] if len(op.outputs[0].shape) > 1 else 1
    training = op.attr("training", op.attr("train", "running" not in op.name and "no_training" not in op.name))
    if "no_training" in op.name:
        training = False
    return Cost(
        (AFFINE + (STATISTICS if training else 0)) * x.numel,
        ("batch_norm_train" if training else "batch_norm_eval") + _by_layout(x),
        terms=_channel_terms(x),
        workspace=_vectors(x, bool(training), op.threads) * channels * x.itemsize,
    )


def _by_position(x: TensorSpec) -> bool:
    """Whether the kernel's inner loop runs over channels, not over the positions of a plane."""
    return channels_last(x) or len(x.shape) == 2


def _by_layout(x: TensorSpec) -> str:
    """Suffix of the class: two loops, of which the one over planes adds up one double after the other."""
    return "_channels_last" if _by_position(x) else ""


def _vectors(x: TensorSpec, training: bool, threads: int) -> int:
    """Vectors of one value a channel that the kernel of this layout keeps: scale and shift, or partial sums."""
    by_position = _by_position(x)
    if not (x.contiguous or by_position):
        return 0 if training else 3
    return 2 + (threads if training and by_position else 0)


def batch_norm_backward(op: OpSpec) -> Cost:
    """Σ g (1), Σ g·(x − μ) (3), and the input's gradient: 5 with the batch's statistics, 1 with frozen ones.

    >>> from .spec import op
    >>> ins, outs = [(2, 4, 5, 5), (2, 4, 5, 5), (4,), (4,), (4,), (4,), (4,)], [(2, 4, 5, 5), (4,), (4,)]
    >>> [batch_norm_backward(op("aten::native_batch_norm_backward", ins, outs, train=t, output_mask=[True] * 3)).flops
    ...  for t in (False, True)]
    [1000, 1800]
    """
    g, x = op.inputs[:2]
    to_x, to_w, to_b = op.attr("output_mask", [True] * 3)
    train = op.attr("train", op.attr("training", True))
    sums = 4 if train and to_x else (3 if to_w else 0) + (1 if to_b else 0)
    return Cost(
        (sums + ((5 if train else 1) if to_x else 0)) * g.numel,
        ("batch_norm_train_backward" if train else "batch_norm_eval_backward") + _by_layout(x),
        terms=_channel_terms(x),
        # one more map where input and gradient lie alike, one vector where they do not
        workspace=x.numel * x.itemsize if _alike(g, x) else _channels(x)[1] * x.itemsize,
    )


def _alike(g: TensorSpec, x: TensorSpec) -> bool:
    return (g.contiguous and x.contiguous) or (channels_last(g) and channels_last(x))


def _row_terms(x: TensorSpec, width: int) -> dict[str, float]:
    return {"n": float(x.numel), "rows": float(x.numel // max(width, 1))}


def _has_affine(op: OpSpec, tensors: int) -> bool:
    return len(op.inputs) > tensors


def layer_norm(op: OpSpec) -> Cost:
    """Statistics 3, normalise 2, scale and shift 2 an element.

    >>> from .spec import op
    >>> layer_norm(op("aten::native_layer_norm", [(6, 10), (10,), (10,)], [(6, 10), (6, 1), (6, 1)],
    ...               normalized_shape=[10])).flops
    420
    """
    x = op.inputs[0]
    width = prod(op.attr("normalized_shape", x.shape[-1:]))
    each = STATISTICS + 2 + (AFFINE if _has_affine(op, 1) else 0)
    terms = _row_terms(x, width) | _copy_terms(x)
    return Cost(each * x.numel, "layer_norm", terms=terms, workspace=copy_bytes(x))


def _copy_terms(x: TensorSpec) -> dict[str, float]:
    """Elements and runs of the copy that is made of an input whose rows do not lie side by side.

    >>> _copy_terms(TensorSpec((4, 8))), _copy_terms(TensorSpec((4, 8), stride=(1, 4)))
    ({}, {'copied': 32.0, 'copied_runs': 4.0})
    """
    if x.contiguous:
        return {}
    return {"copied": float(x.numel), "copied_runs": float(loop(TensorSpec(x.shape, x.dtype), [x]).runs)}


def layer_norm_backward(op: OpSpec) -> Cost:
    """Normalised x (2); Σ g·x̂ (2) and Σ g (1) by column; by row g·γ (1), Σ (1), Σ ·x̂ (2), and the input's gradient (5).

    >>> from .spec import op
    >>> ins = [(6, 10), (6, 10), (6, 1), (6, 1), (10,), (10,)]
    >>> layer_norm_backward(op("aten::native_layer_norm_backward", ins, [(6, 10), (10,), (10,)],
    ...                        normalized_shape=[10], output_mask=[True] * 3)).flops
    840
    """
    g, x = op.inputs[:2]
    width = prod(op.attr("normalized_shape", x.shape[-1:]))
    to_parameters = any(op.attr("output_mask", [True] * 3)[1:])
    partial = 2 * width * op.threads * x.itemsize if to_parameters else 0
    return _normalised_backward(op, "layer_norm_backward", width, copy_bytes(g) + copy_bytes(x) + partial)


def _normalised_backward(op: OpSpec, kind: str, width: int, workspace: int) -> Cost:
    g, x = op.inputs[:2]
    to_x, to_w, to_b = op.attr("output_mask", [True] * 3)
    each = 2 + (9 if to_x else 0) + (2 if to_w else 0) + (1 if to_b else 0)
    return Cost(each * g.numel, kind, terms=_row_terms(x, width), workspace=workspace)


def group_norm(op: OpSpec) -> Cost:
    """Statistics 3, scale and shift (folded with the normalisation into one pair a channel) 2 an element.

    >>> from .spec import op
    >>> group_norm(op("aten::native_group_norm", [(2, 8, 5, 5), (8,), (8,)], [(2, 8, 5, 5), (2, 4), (2, 4)],
    ...               N=2, C=8, HxW=25, group=4)).flops
    2000
    """
    x = op.inputs[0]
    groups = op.attr("N", x.shape[0]) * op.attr("group", op.attr("num_groups", 1))
    sums = _planes_bytes(x) if channels_last(x) else 0
    terms = _row_terms(x, x.numel // max(groups, 1))
    return Cost((STATISTICS + AFFINE) * x.numel, "group_norm", terms=terms, workspace=sums)


def _planes_bytes(x: TensorSpec) -> int:
    """Two values a channel of each image."""
    n, c, _ = _channels(x)
    return 2 * n * c * x.itemsize


def group_norm_backward(op: OpSpec) -> Cost:
    """As layer norm's.

    >>> from .spec import op
    >>> ins = [(2, 8, 5, 5), (2, 8, 5, 5), (2, 4), (2, 4), (8,)]
    >>> group_norm_backward(op("aten::native_group_norm_backward", ins, [(2, 8, 5, 5), (8,), (8,)],
    ...                        N=2, C=8, HxW=25, group=4, output_mask=[True] * 3)).flops
    5600
    """
    x = op.inputs[1]
    groups = op.attr("N", x.shape[0]) * op.attr("group", 1)
    return _normalised_backward(op, "group_norm_backward", x.numel // max(groups, 1), _planes_bytes(x))


def instance_norm(op: OpSpec) -> Cost:
    """A batch norm in training of every plane.

    >>> from .spec import op
    >>> instance_norm(op("aten::instance_norm", [(2, 4, 5, 5)], [(2, 4, 5, 5)])).flops
    1000
    """
    x = op.inputs[0]
    return Cost((STATISTICS + AFFINE) * x.numel, "batch_norm_train", terms=_channel_terms(x))


def rms_norm(op: OpSpec) -> Cost:
    """Square 2, normalise 1, scale 1 an element.

    >>> from .spec import op
    >>> rms_norm(op("aten::_fused_rms_norm", [(6, 10), (10,)], [(6, 10), (6, 1)], normalized_shape=[10])).flops
    240
    """
    x = op.inputs[0]
    width = prod(op.attr("normalized_shape", x.shape[-1:]))
    return Cost((3 + (1 if _has_affine(op, 1) else 0)) * x.numel, "layer_norm", terms=_row_terms(x, width))


def rms_norm_backward(op: OpSpec) -> Cost:
    """x̂ (1); Σ g·x̂ by column (2); by row g·γ (1), Σ ·x̂ (2), and the input's gradient (3).

    >>> from .spec import op
    >>> rms_norm_backward(op("aten::_fused_rms_norm_backward", [(6, 10), (6, 10), (6, 1), (10,)], [(6, 10), (10,)],
    ...                      normalized_shape=[10], output_mask=[True, True])).flops
    540
    """
    g, x = op.inputs[:2]
    to_x, to_w = op.attr("output_mask", [True, True])[:2]
    width = prod(op.attr("normalized_shape", x.shape[-1:]))
    each = 1 + (2 if to_w else 0) + (6 if to_x else 0)
    return Cost(each * g.numel, "layer_norm_backward", terms=_row_terms(x, width))


def weight_norm(op: OpSpec) -> Cost:
    """Square 2 and scale 1 an element of the weight; three times that in the backward.

    >>> from .spec import op
    >>> weight_norm(op("aten::_weight_norm_interface", [(8, 4), (8, 1)], [(8, 4), (8, 1)], dim=0)).flops
    96
    """
    v = op.inputs[1] if "backward" in op.name else op.inputs[0]
    each = 9 if "backward" in op.name else 3
    return Cost(each * v.numel, "layer_norm", terms=_row_terms(v, v.numel // max(op.inputs[-1].numel, 1)))


def local_response_norm(op: OpSpec) -> Cost:
    """Square, running sum over channels, power and product.

    >>> from .spec import op
    >>> local_response_norm(op("aten::local_response_norm", [(2, 4)], [(2, 4)])).flops
    160
    """
    x = op.inputs[0]
    return Cost(20 * x.numel, "layer_norm", terms=_row_terms(x, x.shape[-1]))


FORMULAS = {
    "aten::native_batch_norm": batch_norm,
    "aten::_native_batch_norm_legit": batch_norm,
    "aten::_native_batch_norm_legit_functional": batch_norm,
    "aten::_native_batch_norm_legit_no_training": batch_norm,
    "aten::batch_norm": batch_norm,
    "aten::_batch_norm_impl_index": batch_norm,
    "aten::_batch_norm_with_update": batch_norm,
    "aten::_batch_norm_no_update": batch_norm,
    "aten::native_batch_norm_backward": batch_norm_backward,
    "aten::_batch_norm_impl_index_backward": batch_norm_backward,
    "aten::batch_norm_backward": batch_norm_backward,
    "aten::native_layer_norm": layer_norm,
    "aten::layer_norm": layer_norm,
    "aten::native_layer_norm_backward": layer_norm_backward,
    "aten::native_group_norm": group_norm,
    "aten::group_norm": group_norm,
    "aten::native_group_norm_backward": group_norm_backward,
    "aten::instance_norm": instance_norm,
    "aten::rms_norm": rms_norm,
    "aten::_fused_rms_norm": rms_norm,
    "aten::_fused_rms_norm_backward": rms_norm_backward,
    "aten::_weight_norm_interface": weight_norm,
    "aten::_weight_norm": weight_norm,
    "aten::_weight_norm_interface_backward": weight_norm,
    "aten::local_response_norm": local_response_norm,
}
