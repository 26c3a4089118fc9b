"""MobileTL's ops (arXiv 2212.03246): one-bit activations, shift-only norms, a trained norm that keeps its input.

FLOPs an element, as in `norm.py` and `elementwise.py`: a frozen norm 2, batch statistics 3 more, Σ g 1; Hard-Swish 5
(add, two comparisons, two products), a clamp 1 a bound; comparing for a mask 1, applying it 1. What a kernel computes
once a channel is not counted.
"""

from __future__ import annotations

from .layout import ceil_to
from .matmul import LANES
from .norm import AFFINE, STATISTICS
from .spec import Cost, OpSpec

__all__ = ["ACTIVATION_FLOPS", "FORMULAS"]

ACTIVATION_FLOPS = {"hardswish": 5, "relu6": 2, "relu": 1}
MASK = 1


def _terms(op: OpSpec) -> dict[str, float]:
    """Elements, elements of whole vectors, planes and channels of the first input, (B, C, …)."""
    x = op.inputs[0]
    channels = x.shape[1] if len(x.shape) > 1 else 1
    planes = x.shape[0] * channels if x.shape else 1
    return {
        "n": float(x.numel),
        "n_lanes": float(planes * ceil_to(x.numel // max(planes, 1), LANES)),
        "channels": float(channels),
        "planes": float(planes),
    }


def _flat_terms(op: OpSpec) -> dict[str, float]:
    """Elements of the first input, which is walked as one row."""
    return {"n": float(op.inputs[0].numel)}


def _keeps(op: OpSpec) -> bool:
    return bool(op.attr("keep", True))


def signed_act(op: OpSpec) -> Cost:
    """The activation, and a comparison an element where the mask is kept.

    >>> from .spec import op
    >>> signed_act(op("costmodel::signed_act", [(2, 8)], [(2, 8), (2,)], act="hardswish", keep=True)).flops  # 6·16
    96
    """
    n = op.inputs[0].numel
    flops = (ACTIVATION_FLOPS[op.attr("act", "hardswish")] + MASK * _keeps(op)) * n
    return Cost(flops, "signed_act", terms=_flat_terms(op))


def signed_act_backward(op: OpSpec) -> Cost:
    """g where the mask is set.

    >>> from .spec import op
    >>> signed_act_backward(op("costmodel::signed_act_backward", [(2, 8), (2,)], [(2, 8)])).flops
    16
    """
    return Cost(MASK * op.inputs[0].numel, "signed_act_backward", terms=_flat_terms(op))


def shift_norm(op: OpSpec) -> Cost:
    """ATen's norm with frozen statistics.

    >>> from .spec import op
    >>> shift_norm(op("costmodel::shift_norm", [(2, 4, 5, 5), (4,), (4,), (4,), (4,)], [(2, 4, 5, 5)])).flops
    400
    """
    return Cost(AFFINE * op.inputs[0].numel, "batch_norm_eval", terms=_terms(op))


def shift_norm_backward(op: OpSpec) -> Cost:
    """γ/σ·g, and Σ g where β trains.

    >>> from .spec import op
    >>> ins, outs = [(2, 4, 5, 5), (4,), (4,)], [(2, 4, 5, 5), (4,)]
    >>> shift_norm_backward(op("costmodel::shift_norm_backward", ins, outs, need=[True, True])).flops
    400
    """
    return Cost(sum(op.attr("need", [True, True])) * op.inputs[0].numel, "shift_norm_backward", terms=_terms(op))


def shift_norm_act(op: OpSpec) -> Cost:
    """Norm, activation and mask in one pass; the exact mode runs ATen's norm first, into a map of its own.

    >>> from .spec import op
    >>> ins, outs = [(2, 4, 5, 5), (4,), (4,), (4,), (4,)], [(2, 4, 5, 5), (25,)]
    >>> cost = shift_norm_act(op("costmodel::shift_norm_act", ins, outs, act="relu6", keep=True, exact=True))
    >>> cost.flops, cost.workspace  # (2 + 2 + 1)·200
    (1000, 800)
    """
    x, exact = op.inputs[0], bool(op.attr("exact", False))
    flops = (AFFINE + ACTIVATION_FLOPS[op.attr("act", "hardswish")] + MASK * _keeps(op)) * x.numel
    kind = "shift_norm_act_exact" if exact else "shift_norm_act"
    return Cost(flops, kind, terms=_terms(op), workspace=x.numel * x.itemsize if exact else 0, calls=1 + exact)


def shift_norm_act_backward(op: OpSpec) -> Cost:
    """The mask, γ/σ, and Σ g in one pass: the sum comes with it whether or not it is asked for.

    >>> from .spec import op
    >>> ins, outs = [(2, 4, 5, 5), (25,), (4,), (4,)], [(2, 4, 5, 5), (4,)]
    >>> shift_norm_act_backward(op("costmodel::shift_norm_act_backward", ins, outs, need=[True, True])).flops
    600
    """
    return Cost((MASK + 2) * op.inputs[0].numel, "shift_norm_act_backward", terms=_terms(op))


def train_norm(op: OpSpec) -> Cost:
    """ATen's norm with the statistics of the batch.

    >>> from .spec import op
    >>> train_norm(op("costmodel::train_norm", [(2, 4, 5, 5), (4,), (4,)], [(2, 4, 5, 5), (4,), (4,)])).flops
    1000
    """
    x = op.inputs[0]
    # ATen's saved mean and 1/σ live until the op returns
    return Cost((AFFINE + STATISTICS) * x.numel, "batch_norm_train", terms=_terms(op), workspace=2 * 4 * x.shape[1])


def train_norm_backward(op: OpSpec) -> Cost:
    """Σ x, Σ x² and Σ g, Σ g·x in one pass (6), then a·g + b·x + c (4) where the input needs it.

    >>> from .spec import op
    >>> ins, outs = [(2, 4, 5, 5), (2, 4, 5, 5), (4,)], [(2, 4, 5, 5), (4,), (4,)]
    >>> train_norm_backward(op("costmodel::train_norm_backward", ins, outs, need=[True, True, True])).flops
    2000
    """
    to_x = bool(op.attr("need", [True] * 3)[0])
    return Cost((6 + 4 * to_x) * op.inputs[0].numel, "train_norm_backward", terms=_terms(op))


def se_scale(op: OpSpec) -> Cost:
    """One product an element; the gate is a vector.

    >>> from .spec import op
    >>> se_scale(op("costmodel::se_scale", [(2, 4, 5, 5), (2, 4, 1, 1)], [(2, 4, 5, 5)])).flops
    200
    """
    x, z = op.inputs
    return Cost(x.numel, "se_scale", terms=_terms(op), workspace=z.numel * z.itemsize, calls=2)


def se_scale_backward(op: OpSpec) -> Cost:
    """The gate times g (1), and Σ g·x (2).

    >>> from .spec import op
    >>> ins, outs = [(2, 4, 5, 5), (2, 4, 5, 5), (2, 4, 1, 1)], [(2, 4, 5, 5), (2, 4, 1, 1)]
    >>> se_scale_backward(op("costmodel::se_scale_backward", ins, outs)).flops
    600
    """
    z = op.inputs[2]
    return Cost(
        3 * op.inputs[0].numel, "se_scale_backward", terms=_terms(op), workspace=2 * z.numel * z.itemsize, calls=3
    )


FORMULAS = {
    "costmodel::signed_act": signed_act,
    "costmodel::signed_act_backward": signed_act_backward,
    "costmodel::shift_norm": shift_norm,
    "costmodel::shift_norm_backward": shift_norm_backward,
    "costmodel::shift_norm_act": shift_norm_act,
    "costmodel::shift_norm_act_backward": shift_norm_act_backward,
    "costmodel::train_norm": train_norm,
    "costmodel::train_norm_backward": train_norm_backward,
    "costmodel::se_scale": se_scale,
    "costmodel::se_scale_backward": se_scale_backward,
}
