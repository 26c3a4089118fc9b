"""Products of groups of rows, each with a matrix of its own: mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from .matmul import gemm_kind, gemm_terms, padded_flops
from .spec import Cost, OpSpec, TensorSpec

__all__ = ["FORMULAS"]


def grouped_mm(op: OpSpec) -> Cost:
    """A product a group; how many rows each group has depends on data and changes neither FLOPs nor bytes.

    Rows (S×K) by matrices (G×K×N): each row meets one matrix, 2·S·K·N. Columns (K×S) by rows (S×N), the gradient of
    the matrices: each row is in one of G products, 2·S·K·N too. Time is that of G equal groups.

    >>> from .spec import TensorSpec, op
    >>> offsets = TensorSpec((3,), "int32")
    >>> grouped_mm(op("aten::_grouped_mm", [(6, 16), (3, 16, 8), offsets], [(6, 8)])).flops  # 2·6·16·8
    1536
    >>> grouped_mm(op("aten::_grouped_mm", [(16, 6), (6, 8), offsets], [(3, 16, 8)])).flops
    1536
    >>> grouped_mm(op("aten::_grouped_mm", [(3, 2, 16), (3, 16, 8)], [(3, 2, 8)])).flops
    1536
    """
    a, b, out = op.inputs[0], op.inputs[1], op.outputs[0]
    if len(a.shape) == len(b.shape) == 2:
        groups, (m, n), k = out.shape[0], out.shape[1:], ceil(a.shape[1] / max(out.shape[0], 1))
        flops = 2 * a.shape[0] * a.shape[1] * b.shape[1]
    else:
        groups = max(t.shape[0] for t in (a, b) if len(t.shape) == 3)
        m = a.shape[1] if len(a.shape) == 3 else ceil(a.shape[0] / max(groups, 1))
        n, k = (b.shape[-1], a.shape[-1]) if len(b.shape) == 3 else (ceil(b.shape[1] / max(groups, 1)), a.shape[-1])
        flops = 2 * out.numel * k
    kind = gemm_kind(m, n, _matrix(a), _matrix(b))
    kind = "gemm_skinny" if kind == "gemv" else kind
    return Cost(flops, kind, work=padded_flops(m, n, k, groups), terms=gemm_terms(m, n, k, groups), calls=groups)


def _matrix(t: TensorSpec) -> TensorSpec:
    """The last two dimensions."""
    return TensorSpec(t.shape[-2:], t.dtype, t.stride[-2:])


FORMULAS: dict[str, Callable[[OpSpec], Cost]] = {
    "aten::_grouped_mm": grouped_mm,
    "transformers::grouped_mm_fallback": grouped_mm,
}
