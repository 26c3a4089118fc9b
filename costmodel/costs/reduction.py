"""Reductions, softmax, losses and scans along a dimension.

A sum is 1 FLOP an element, a mean one division a result more, a variance 3 an element. Softmax is 12 an element:
maximum, subtraction, exp (8), sum, division. Kinds: ``reduce_inner`` (the reduced elements lie side by side),
``reduce_outer`` (vectorises over what is kept), ``softmax``, ``softmax_safe``
(and looks for rows without any key), ``softmax_backward``, ``loss``, ``scan``, ``sort``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil, log2, prod

from .elementwise import EXP, POW, elementwise_cost
from .layout import copy_bytes, first, strides_of
from .spec import Cost, OpSpec

__all__ = ["FORMULAS", "SOFTMAX_FLOPS", "reduction_cost"]

SOFTMAX_FLOPS = EXP + 4
LOG_SOFTMAX_BACKWARD_FLOPS = EXP + 3


def reduction_cost(op: OpSpec, flops_each: int, flops_result: int = 0) -> Cost:
    """Cost of `flops_each` an element of the first input and `flops_result` an element of the first output.

    >>> from .spec import op
    >>> c = reduction_cost(op("aten::mean", [(2, 8, 4)], [(2, 8)], dim=[2]), 1, 1)
    >>> c.flops, c.kind
    (80, 'reduce_inner')
    """
    x, y = op.inputs[0], first(op)
    inner = _reduces_inner(op)
    return Cost(
        flops=flops_each * x.numel + flops_result * y.numel,
        kind="reduce_inner" if inner else "reduce_outer",
        terms={"n": float(x.numel), "results": float(y.numel)},
        workspace=_cast_bytes(op),
    )


def _cast_bytes(op: OpSpec) -> int:
    """A sum in a wider type starts from a copy in that type; a mean of 16-bit floats is summed in float32."""
    x, y = op.inputs[0], first(op)
    name = op.name.split("::")[-1]
    if name == "mean" and x.itemsize == 2:
        return 4 * (x.numel + y.numel)
    return x.numel * y.itemsize if name in ("sum", "prod", "nansum") and x.dtype != y.dtype and x.itemsize != 2 else 0


def logsumexp(op: OpSpec) -> Cost:
    """Softmax's sum and a logarithm a result; the exponentials and the maxima are kept.

    >>> from .spec import op
    >>> logsumexp(op("aten::logsumexp", [(4, 8)], [(4,)], dim=[1])).workspace
    144
    """
    x, y = op.inputs[0], first(op)
    cost = reduction_cost(op, EXP + 3, EXP)
    return replace(cost, workspace=(x.numel + y.numel) * x.itemsize)


def safe_softmax(op: OpSpec) -> Cost:
    """Softmax whose rows of −∞ alone give zeros: a mask of the elements and one of the rows.

    >>> from .spec import op
    >>> safe_softmax(op("aten::_safe_softmax", [(3, 10)], [(3, 10)], dim=-1)).workspace
    33
    """
    cost = softmax(op)
    masks = int(cost.terms["n"] + cost.terms["rows"])
    return replace(cost, kind=cost.kind.replace("softmax", "softmax_safe"), workspace=cost.workspace + masks)


def _reduces_inner(op: OpSpec) -> bool:
    x = op.inputs[0]
    dims = op.attr("dim", op.attr("dims"))
    if dims is None or dims == [] or not x.shape:
        return True
    dims = [d % len(x.shape) for d in ([dims] if isinstance(dims, int) else dims)]
    strides = strides_of(x)
    wide = [d for d, n in enumerate(x.shape) if n > 1]
    return not wide or min(wide, key=lambda d: strides[d]) in dims


def reducing(flops_each: int, flops_result: int = 0) -> Callable[[OpSpec], Cost]:
    def formula(op: OpSpec) -> Cost:
        return reduction_cost(op, flops_each, flops_result)

    return formula


def vector_norm(op: OpSpec) -> Cost:
    """A multiply-add an element and a root a result for order 2, a sum of absolute values for 1, powers otherwise.

    >>> from .spec import op
    >>> vector_norm(op("aten::linalg_vector_norm", [(4, 8)], [(4, 1)], ord=2.0, dim=[-1])).flops
    68
    """
    order = op.attr("ord", op.attr("p", 2))
    each = {2: 2, 1: 2, 0: 2, "inf": 2, "-inf": 2}.get(order, POW + 2)
    cost = reduction_cost(op, each, 1)
    return replace(cost, kind=f"{cost.kind}_norm")


def softmax(op: OpSpec) -> Cost:
    """Maximum, subtraction, exp, sum and division an element (log-softmax: subtraction of the logarithm).

    >>> from .spec import op
    >>> softmax(op("aten::_softmax", [(3, 10)], [(3, 10)], dim=1)).flops
    360
    """
    return _row_wise(op, SOFTMAX_FLOPS, "softmax")


def softmax_backward(op: OpSpec) -> Cost:
    """y·(g − Σ g·y): a multiply-add for the sum, a subtraction and a product.

    >>> from .spec import op
    >>> softmax_backward(op("aten::_softmax_backward_data", [(3, 10), (3, 10)], [(3, 10)], dim=1)).flops
    120
    """
    return _row_wise(op, 4, "softmax_backward")


def log_softmax_backward(op: OpSpec) -> Cost:
    """g − exp(y)·Σ g.

    >>> from .spec import op
    >>> log_softmax_backward(op("aten::_log_softmax_backward_data", [(3, 10), (3, 10)], [(3, 10)], dim=1)).flops
    330
    """
    return _row_wise(op, LOG_SOFTMAX_BACKWARD_FLOPS, "softmax_backward")


def _row_wise(op: OpSpec, flops_each: int, kind: str) -> Cost:
    x = op.inputs[0]
    dim = op.attr("dim", -1)
    length = x.shape[dim] if x.shape else 1
    rows = x.numel // max(length, 1)
    inner = not x.shape or dim % len(x.shape) == len(x.shape) - 1
    return Cost(
        flops_each * x.numel,
        kind if inner else f"{kind}_outer",
        terms={"n": float(x.numel), "rows": float(rows)},
        workspace=sum(map(copy_bytes, op.inputs[: 2 if "backward" in kind else 1])),
    )


def nll_loss(op: OpSpec) -> Cost:
    """One score a row is picked, weighed and added; nothing else is read.

    >>> from .spec import TensorSpec, op
    >>> c = nll_loss(op("aten::nll_loss_forward", [(8, 10), TensorSpec((8,), "int64")], [(), ()]))
    >>> c.flops, c.read
    (16, (32, 64))
    """
    scores, target = op.inputs[:2]
    n = target.numel
    rest = tuple(t.nbytes for t in op.inputs[2:])
    return Cost(2 * n, "loss", terms={"n": float(n)}, read=(n * scores.itemsize, target.nbytes, *rest))


def nll_loss_backward(op: OpSpec) -> Cost:
    """Zeros, and one value a row.

    >>> from .spec import TensorSpec, op
    >>> ins = [(), (8, 10), TensorSpec((8,), "int64"), ()]
    >>> nll_loss_backward(op("aten::nll_loss_backward", ins, [(8, 10)])).flops
    16
    """
    grad, _, target = op.inputs[:3]
    rest = tuple(t.nbytes for t in op.inputs[3:])
    terms = {"n": float(op.outputs[0].numel)}
    return Cost(2 * target.numel, "loss", terms=terms, read=(grad.nbytes, 0, target.nbytes, *rest))


def cross_entropy(op: OpSpec) -> Cost:
    """Log-softmax and the pick, as one op.

    >>> from .spec import TensorSpec, op
    >>> cross_entropy(op("aten::cross_entropy_loss", [(8, 10), TensorSpec((8,), "int64")], [()])).flops
    976
    """
    x, target = op.inputs[:2]
    rows = x.numel // max(x.shape[1 if len(x.shape) > 1 else 0], 1)
    terms = {"n": float(x.numel), "rows": float(rows)}
    return Cost(SOFTMAX_FLOPS * x.numel + 2 * target.numel, "softmax", terms=terms, workspace=x.numel * x.itemsize)


def pointwise_loss(flops_each: int, copies: int = 1) -> Callable[[OpSpec], Cost]:
    """A loss of two tensors of one shape, reduced or not."""

    def formula(op: OpSpec) -> Cost:
        """Per element of the larger operand; the reduction adds one.

        >>> from .spec import op
        >>> pointwise_loss(2)(op("aten::mse_loss", [(4, 5), (4, 5)], [()], reduction=1)).flops
        60
        """
        x, y = op.inputs[0], op.outputs[0]
        if y.numel == x.numel:
            return elementwise_cost(op, flops_each)
        size = copies * x.numel * x.itemsize
        terms = {"n": float(x.numel), "results": 1.0}
        return Cost((flops_each + 1) * x.numel, "reduce_inner", terms=terms, workspace=size)

    return formula


def scan(op: OpSpec) -> Cost:
    """A running sum, product or maximum: 1 an element.

    >>> from .spec import op
    >>> scan(op("aten::cumsum", [(4, 5)], [(4, 5)], dim=1)).flops
    20
    """
    x = op.inputs[0]
    length = x.shape[op.attr("dim", -1)] if x.shape else 1
    each = EXP * 2 + 3 if "logcumsumexp" in op.name else 1
    terms = {"n": float(x.numel), "rows": float(x.numel // max(length, 1))}
    widened = x.numel * first(op).itemsize if x.dtype != first(op).dtype else 0
    return Cost(each * x.numel, "scan", terms=terms, workspace=widened)


def sort(op: OpSpec) -> Cost:
    """n·log2(n) comparisons a row (rounded up), for sort, topk, median, mode, unique and their kin.

    >>> from .spec import TensorSpec, op
    >>> sort(op("aten::sort", [(3, 8)], [(3, 8), TensorSpec((3, 8), "int64")], dim=1)).flops
    72
    """
    x = op.inputs[0]
    length = x.shape[op.attr("dim", -1)] if x.shape and op.attr("dim", -1) < len(x.shape) else x.numel
    steps = max(1, ceil(log2(length))) if length > 1 else 1
    rows = x.numel // max(length, 1)
    terms = {"n": float(x.numel), "nlogn": float(x.numel * steps), "rows": float(rows)}
    base = op.name.split("::")[-1]
    workspace = (
        x.numel * (x.itemsize + 8) if base == "kthvalue" else 8 * length if base in ("sort", "argsort", "msort") else 0
    )
    return Cost(x.numel * steps, "sort", terms=terms, workspace=workspace)


def distance(op: OpSpec) -> Cost:
    """All pairs of rows: a subtraction and a multiply-add a coordinate, a root a pair.

    >>> from .spec import op
    >>> distance(op("aten::_cdist_forward", [(3, 4), (5, 4)], [(3, 5)], p=2.0)).flops
    195
    """
    width = op.inputs[0].shape[-1]
    pairs = op.outputs[0].numel if "backward" not in op.name else prod(op.inputs[-1].shape)
    return Cost(pairs * (3 * width + 1), "reduce_inner", terms={"n": float(pairs * width), "results": float(pairs)})


FORMULAS: dict[str, Callable[[OpSpec], Cost]] = {
    **{f"aten::{name}": reducing(1) for name in (
        "sum", "nansum", "prod", "amax", "amin", "max", "min", "any", "all", "argmax", "argmin", "count_nonzero",
        "aminmax", "trace", "_is_all_true", "_is_any_true", "equal", "nonzero", "nonzero_static", "allclose")},
    "aten::mean": reducing(1, 1),
    "aten::nanmean": reducing(2, 1),
    "aten::var": reducing(3, 1),
    "aten::var_mean": reducing(3, 2),
    "aten::std": reducing(3, 2),
    "aten::std_mean": reducing(3, 3),
    "aten::logsumexp": logsumexp,
    "aten::linalg_vector_norm": vector_norm,
    "aten::norm": vector_norm,
    "aten::_softmax": softmax,
    "aten::softmax": softmax,
    "aten::_safe_softmax": safe_softmax,
    "aten::_log_softmax": softmax,
    "aten::log_softmax": softmax,
    "aten::_softmax_backward_data": softmax_backward,
    "aten::_log_softmax_backward_data": log_softmax_backward,
    "aten::nll_loss_forward": nll_loss,
    "aten::nll_loss2d_forward": nll_loss,
    "aten::nll_loss": nll_loss,
    "aten::nll_loss_nd": nll_loss,
    "aten::nll_loss_backward": nll_loss_backward,
    "aten::nll_loss2d_backward": nll_loss_backward,
    "aten::cross_entropy_loss": cross_entropy,
    "aten::mse_loss": pointwise_loss(2),
    "aten::l1_loss": pointwise_loss(2),
    "aten::smooth_l1_loss": pointwise_loss(5),
    "aten::huber_loss": pointwise_loss(5),
    "aten::binary_cross_entropy": pointwise_loss(2 * EXP + 5, copies=0),
    "aten::binary_cross_entropy_with_logits": pointwise_loss(2 * EXP + 6, copies=2),
    "aten::soft_margin_loss": pointwise_loss(2 * EXP + 2),
    "aten::kl_div": pointwise_loss(EXP + 3),
    **{f"aten::{name}": scan for name in (
        "cumsum", "cumsum_", "cumprod", "cumprod_", "cummax", "cummin", "_cummax_helper", "_cummin_helper",
        "logcumsumexp", "_logcumsumexp", "diff")},
    **{f"aten::{name}": sort for name in (
        "sort", "argsort", "topk", "kthvalue", "median", "nanmedian", "mode", "msort", "unique_dim", "_unique2",
        "unique_consecutive", "histc", "bincount", "quantile")},
    "aten::_cdist_forward": distance,
    "aten::_cdist_backward": distance,
    "aten::_euclidean_dist": distance,
}  # fmt: skip
