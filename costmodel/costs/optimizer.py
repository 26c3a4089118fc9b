"""Fused optimizer steps; what torch's CPU optimizers run by default is elementwise ops, priced as such.

FLOPs an element, root and division 1 each: SGD 2 (a scaled subtraction), +2 for momentum, +2 for weight decay.
Adam: first moment 3 (lerp), second 4 (two scales, a square, an add), root, division and add 3, update 3.
"""

from __future__ import annotations

from collections.abc import Callable

from .spec import Cost, OpSpec

__all__ = ["FORMULAS"]

ADAM_FLOPS = 3 + 4 + 3 + 3


def _fused(op: OpSpec, lists: int, flops_each: int) -> Cost:
    """Cost over a flat sequence of `lists` lists of equally many tensors (step counters follow)."""
    tensors = max(len(op.inputs) // lists, 1)
    n = sum(t.numel for t in op.inputs[:tensors])
    return Cost(
        flops_each * n,
        "fused_optimizer",
        terms={"n": float(n), "tensors": float(tensors)},
        calls=tensors,
    )


def fused_sgd(op: OpSpec) -> Cost:
    """Parameters, gradients and, with momentum, buffers.

    >>> from .spec import op
    >>> fused_sgd(op("aten::_fused_sgd_", [(10,), (10,)], [(10,), (10,)], momentum=0.0, weight_decay=0.0)).flops
    20
    >>> fused_sgd(op("aten::_fused_sgd_", [(10,)] * 3, [(10,)] * 3, momentum=0.9, weight_decay=0.1)).flops
    60
    """
    momentum = op.attr("momentum", 0.0) != 0
    decay = op.attr("weight_decay", 0.0) != 0
    return _fused(op, 3 if momentum else 2, 2 + 2 * momentum + 2 * decay)


def fused_adam(op: OpSpec) -> Cost:
    """Parameters, gradients, two moments and step counters; decay is one product (AdamW) or a multiply-add (Adam).

    >>> from .spec import op
    >>> fused_adam(op("aten::_fused_adamw_", [(10,)] * 4 + [()], [(10,)] * 4, weight_decay=0.01, amsgrad=False)).flops
    140
    """
    decay = op.attr("weight_decay", 0.0) != 0
    amsgrad = bool(op.attr("amsgrad", False))
    each = ADAM_FLOPS + (decay * (1 if "adamw" in op.name else 2)) + amsgrad
    return _fused(op, 6 if amsgrad else 5, each)


def fused_adagrad(op: OpSpec) -> Cost:
    """Parameters, gradients, sums of squares and step counters: 2 for the sum, 5 for the update.

    >>> from .spec import op
    >>> fused_adagrad(op("aten::_fused_adagrad_", [(10,)] * 3 + [()], [(10,)] * 3, weight_decay=0.0)).flops
    70
    """
    return _fused(op, 4, 7 + 2 * (op.attr("weight_decay", 0.0) != 0))


def unscale(op: OpSpec) -> Cost:
    """Gradients times a scale, each checked for infinity.

    >>> from .spec import op
    >>> unscale(op("aten::_amp_foreach_non_finite_check_and_unscale_", [(10,), (1,), (1,)], [(10,)])).flops
    20
    """
    n = sum(t.numel for t in op.inputs[:-2])
    terms = {"n": float(n), "tensors": float(len(op.inputs) - 2)}
    return Cost(2 * n, "elementwise_list", terms=terms, calls=len(op.inputs) - 2)


FORMULAS: dict[str, Callable[[OpSpec], Cost]] = {
    "aten::_fused_sgd_": fused_sgd,
    "aten::_fused_adam_": fused_adam,
    "aten::_fused_adamw_": fused_adam,
    "aten::_fused_adagrad_": fused_adagrad,
    "aten::_amp_foreach_non_finite_check_and_unscale_": unscale,
}
