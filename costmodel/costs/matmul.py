"""Matrix products: `mm`, `addmm`, `bmm`, `linear` and their kin (a backward matmul is a matmul).

Two FLOPs a multiply-add; a bias is not counted. Kinds: ``gemm_nn``, ``gemm_nt``, ``gemm_tn``, ``gemm_tt`` (how the two
operands lie, read off their strides; ``_wide`` with the columns of a vocabulary), ``gemm_skinny`` (at most 16 rows, or
columns of a product that is computed transposed), ``gemv`` (one row), ``bmm`` and ``dot``.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from .layout import ceil_to, strides_of
from .spec import Cost, OpSpec, TensorSpec

__all__ = ["FORMULAS", "blas_copy_bytes", "gemm_kind", "gemm_terms", "matmul_cost"]

# Micro-kernel of the fp32 GEMMs of MKL and oneDNN on 512-bit and 256-bit units: panels of 12 rows by 32 columns, 16
# lanes in N (fits OpenBLAS and Arm kernels, 4 to 16 lanes, to first order).
LANES = 16
PANEL_M, PANEL_N = 12, 32
SKINNY_ROWS = 16
WIDE = 8192  # columns beyond which a product is one of a vocabulary: its weights and results fit no cache


def gemm_terms(m: int, n: int, k: int, batch: int = 1) -> dict[str, float]:
    """Features of a GEMM whose sum is an efficiency that saturates in M, N and K (LATENCY.md, model form).

    t = a·MNK + b·MK + c·NK + d·MN is eff = 1 / (1 + b'/N + c'/M + d'/K).

    >>> terms = gemm_terms(2, 3, 4)
    >>> terms["mnk"], terms["mnk_lanes"], terms["mnk_panels"]  # 2·3·4, 2·16·4, 12·32·4
    (24.0, 128.0, 1536.0)
    """
    return {
        "mnk": float(batch * m * n * k),
        "mnk_panels": float(batch * ceil_to(m, PANEL_M) * ceil_to(n, PANEL_N) * k),
        "mnk_lanes": float(batch * m * ceil_to(n, LANES) * k),
        "mnk_odd": float(batch * m * n * k) if _odd_rows(m, n) else 0.0,
        "mn": float(batch * m * n),
        "mk": float(batch * m * k),
        "nk": float(batch * n * k),
        "batch": float(batch),
    }


def _odd_rows(m: int, n: int) -> bool:
    """Whether long rows of the result start across vectors: a third slower in MKL (a vocabulary of 50,257 words).

    >>> _odd_rows(320, 50257), _odd_rows(320, 50256), _odd_rows(320, 1001)
    (True, False, False)
    """
    return n % 8 != 0 and n > 2048 and m >= 32


def gemv_terms(n: int, k: int) -> dict[str, float]:
    """Features of a matrix times a vector: the matrix is read once, and results and vector are short.

    >>> gemv_terms(1000, 64)
    {'nk': 64000.0, 'n': 1000.0, 'k': 64.0}
    """
    return {"nk": float(n * k), "n": float(n), "k": float(k)}


def padded_flops(m: int, n: int, k: int, batch: int = 1) -> float:
    """FLOPs that whole panels issue; a gemv has no panels of rows.

    >>> padded_flops(20, 32, 10), padded_flops(1, 30, 10)
    (15360.0, 640.0)
    """
    rows = ceil_to(m, PANEL_M) if m > SKINNY_ROWS else m
    return 2.0 * batch * rows * ceil_to(n, PANEL_N if m > SKINNY_ROWS else LANES) * k


def transposed(t: TensorSpec) -> bool:
    """Whether the last two dimensions lie column by column.

    >>> transposed(TensorSpec((4, 5))), transposed(TensorSpec((4, 5), stride=(1, 4)))
    (False, True)
    """
    rows, columns = strides_of(t)[-2:]
    return columns != 1 and rows == 1 and t.shape[-1] != 1


def gemm_kind(m: int, n: int, a: TensorSpec, b: TensorSpec, batch: int = 1) -> str:
    """The class of a product of `a` (M×K) and `b` (K×N).

    >>> gemm_kind(197, 384, TensorSpec((197, 64)), TensorSpec((64, 384), stride=(1, 64)))
    'gemm_nt'
    """
    if batch > 1:
        return "bmm"
    if m == 1 or n == 1:
        return "gemv"
    if m <= SKINNY_ROWS:
        return "gemm_skinny"
    wide = "_wide" if n >= WIDE else ""
    return f"gemm_{'t' if transposed(a) else 'n'}{'t' if transposed(b) else 'n'}{wide}"


def blas_copy_bytes(t: TensorSpec) -> int:
    """Bytes of the copy that ATen makes of an operand that BLAS cannot read as it lies, a matrix of a batch at a time.

    BLAS wants one of the two strides to be 1 and the other to be no smaller than the run.

    >>> blas_copy_bytes(TensorSpec((8, 4))), blas_copy_bytes(TensorSpec((8, 4), stride=(1, 8)))
    (0, 0)
    >>> blas_copy_bytes(TensorSpec((8, 4), stride=(8, 2)))  # every second column
    128
    """
    (rows, columns), (row, column) = t.shape[-2:], strides_of(t)[-2:]
    if (column == 1 and row >= max(1, columns)) or (row == 1 and column >= max(1, rows)):
        return 0
    return rows * columns * t.itemsize


def matmul_cost(a: TensorSpec, b: TensorSpec, m: int, n: int, k: int, batch: int = 1) -> Cost:
    """Cost of `batch` products of `a` (M×K) and `b` (K×N); a complex multiply-add is four real ones.

    >>> a, b = TensorSpec((2, 3)), TensorSpec((3, 4))
    >>> matmul_cost(a, b, 2, 4, 3).flops
    48
    >>> matmul_cost(TensorSpec((2, 3), "complex64"), b, 2, 4, 3).flops
    192
    """
    kind = gemm_kind(m, n, a, b, batch)
    each = 4 if a.dtype.startswith("complex") else 1
    batch *= each
    return Cost(
        flops=2 * batch * m * n * k,
        kind=kind,
        work=padded_flops(m, n, k, batch),
        terms=gemv_terms(m * n, k) if kind == "gemv" else gemm_terms(m, n, k, batch),
        workspace=blas_copy_bytes(a) + blas_copy_bytes(b),
    )


def mm(op: OpSpec) -> Cost:
    """``(M×K)·(K×N)``.

    >>> from .spec import op
    >>> mm(op("aten::mm", [(2, 5), (5, 3)], [(2, 3)])).flops
    60
    """
    a, b = op.inputs[-2:]
    return matmul_cost(a, b, a.shape[0], b.shape[1], a.shape[1])


def addmm(op: OpSpec) -> Cost:
    """``bias + a·b``: the bias is not counted.

    >>> from .spec import op
    >>> addmm(op("aten::addmm", [(5,), (1, 2), (2, 5)], [(1, 5)])).flops  # Linear(2, 5) on one row
    20
    """
    cost = mm(op)
    # ATen writes the bias to every row first and lets the product add to it
    terms = {**cost.terms, "bias": float(op.outputs[0].numel)}
    return replace(cost, terms=terms)


def bmm(op: OpSpec) -> Cost:
    """A product a batch entry.

    >>> from .spec import op
    >>> bmm(op("aten::bmm", [(6, 2, 5), (6, 5, 3)], [(6, 2, 3)])).flops
    360
    """
    a, b = op.inputs[-2:]
    return matmul_cost(a, b, a.shape[1], b.shape[2], a.shape[2], batch=a.shape[0])


def mv(op: OpSpec) -> Cost:
    """Matrix times vector.

    >>> from .spec import op
    >>> mv(op("aten::mv", [(3, 4), (4,)], [(3,)])).flops
    24
    """
    matrix, vector = op.inputs[-2:]
    row = TensorSpec((1, *vector.shape), vector.dtype)
    return matmul_cost(row, matrix, 1, matrix.shape[0], matrix.shape[1])


def dot(op: OpSpec) -> Cost:
    """A multiply-add an element.

    >>> from .spec import op
    >>> dot(op("aten::dot", [(7,), (7,)], [()])).flops
    14
    """
    n = op.inputs[0].numel
    return Cost(2 * n, "dot", terms={"n": float(n)})


def outer(op: OpSpec) -> Cost:
    """Column times row, added to a matrix in ``addr``.

    >>> from .spec import op
    >>> outer(op("aten::addr", [(3, 4), (3,), (4,)], [(3, 4)])).flops
    24
    """
    n = op.outputs[0].numel
    return Cost(n * (2 if len(op.inputs) == 3 else 1), "elementwise", terms={"n": float(n), "runs": 1.0})


def linear(op: OpSpec) -> Cost:
    """``x·Wᵀ + b`` as one op, as inference mode records it.

    >>> from .spec import op
    >>> linear(op("aten::linear", [(3, 1, 2), (5, 2), (5,)], [(3, 1, 5)])).flops
    60
    """
    x, w = op.inputs[:2]
    outputs = w.shape[0] if len(w.shape) == 2 else 1
    rows = x.numel // max(w.shape[-1], 1)
    weight = TensorSpec((w.shape[-1], outputs), w.dtype, (1, w.shape[-1]))
    cost = matmul_cost(TensorSpec((rows, w.shape[-1]), x.dtype), weight, rows, outputs, w.shape[-1])
    return replace(cost, terms={**cost.terms, "bias": float(rows * outputs)}) if len(op.inputs) > 2 else cost


def matmul(op: OpSpec) -> Cost:
    """``torch.matmul`` as one op, broadcast over leading dimensions, as inference mode records it.

    >>> from .spec import op
    >>> matmul(op("aten::matmul", [(2, 6, 4, 8), (2, 6, 8, 3)], [(2, 6, 4, 3)])).flops
    2304
    """
    a, b = op.inputs[:2]
    if len(a.shape) == 1 and len(b.shape) == 1:
        return dot(op)
    k = a.shape[-1]
    m = a.shape[-2] if len(a.shape) > 1 else 1
    n = b.shape[-1] if len(b.shape) > 1 else 1
    batch = op.outputs[0].numel // max(m * n, 1)
    if len(b.shape) <= 2:  # leading dimensions of `a` fold into its rows
        m, batch = m * batch, 1
    as_matrix = [t if len(t.shape) > 1 else TensorSpec((1, *t.shape), t.dtype) for t in (a, b)]
    return matmul_cost(as_matrix[0], as_matrix[1], m, n, k, batch)


def linear_backward(op: OpSpec) -> Cost:
    """Gradients of a linear layer as one op: a product for the input's, one for the weight's.

    >>> from .spec import op
    >>> linear_backward(op("aten::linear_backward", [(3, 2), (3, 5), (5, 2)], [(3, 2), (5, 2), (5,)],
    ...                    output_mask=[True, True, True])).flops
    120
    """
    x, _, w = op.inputs[:3]
    rows = x.numel // w.shape[-1]
    products = sum(map(bool, op.attr("output_mask", [True, True])[:2]))
    one = gemm_terms(rows, w.shape[-1], w.shape[0])
    return Cost(
        2 * products * rows * prod(w.shape),
        "gemm_nn",
        work=products * padded_flops(rows, w.shape[-1], w.shape[0]),
        terms={key: products * value for key, value in one.items()},
        calls=products,
    )


def trilinear(op: OpSpec) -> Cost:
    """The products under ``torch.nn.Bilinear``: two multiplies and an add for each combination that is summed.

    >>> from .spec import op
    >>> trilinear(op("aten::_trilinear", [(4, 1, 3, 1), (1, 5, 3, 2), (4, 1, 1, 2)], [(4, 5)])).flops  # 3·4·5·3·2
    360
    """
    shape = [max(sizes) for sizes in zip(*(t.shape for t in op.inputs[:3]))]
    n = prod(shape)
    return Cost(3 * n, "bmm", terms=gemm_terms(shape[0], *shape[1:3]) if len(shape) > 2 else {"mnk": float(n)})


FORMULAS = {
    "aten::mm": mm,
    "aten::addmm": addmm,
    "aten::addmm_": addmm,
    "aten::_addmm_activation": addmm,
    "aten::bmm": bmm,
    "aten::baddbmm": bmm,
    "aten::baddbmm_": bmm,
    "aten::addbmm": bmm,
    "aten::mv": mv,
    "aten::addmv": mv,
    "aten::addmv_": mv,
    "aten::dot": dot,
    "aten::vdot": dot,
    "aten::inner": matmul,
    "aten::outer": outer,
    "aten::ger": outer,
    "aten::addr": outer,
    "aten::linear": linear,
    "aten::matmul": matmul,
    "aten::linear_backward": linear_backward,
    "aten::_trilinear": trilinear,
}
