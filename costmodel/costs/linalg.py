"""Factorisations, solvers and Fourier transforms, by the leading terms of the textbook counts (Golub and Van Loan,
"Matrix Computations", 4th ed.; 5·N·log2 N for a complex FFT, Cooley and Tukey), rounded to whole FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2, prod

from .matmul import gemm_terms
from .spec import Cost, OpSpec

__all__ = ["FORMULAS"]


def dense(thirds: int, *, square_of: str = "columns") -> Callable[[OpSpec], Cost]:
    """A factorisation of ``thirds/3 · n³`` FLOPs a matrix."""

    def formula(op: OpSpec) -> Cost:
        """Leading term of each matrix of the batch.

        >>> from .spec import op
        >>> dense(1)(op("aten::linalg_cholesky_ex", [(2, 6, 6)], [(2, 6, 6)])).flops  # n³/3
        144
        """
        matrix = op.inputs[0]
        m, n = matrix.shape[-2:]
        batch = prod(matrix.shape[:-2])
        small, large = min(m, n), max(m, n)
        size = small * small * large if square_of == "smaller" else n**3
        terms = gemm_terms(small, small, large, batch)
        copied = matrix.numel * matrix.itemsize if "inv" in op.name or "svd" in op.name else 0
        return Cost(batch * thirds * size // 3, "factorisation", terms=terms, workspace=copied)

    return formula


def triangular_solve(op: OpSpec) -> Cost:
    """n² FLOPs a right-hand side: n(n − 1)/2 multiply-adds and n divisions.

    >>> from .spec import op
    >>> triangular_solve(op("aten::linalg_solve_triangular", [(4, 4), (4, 3)], [(4, 3)])).flops
    48
    """
    n, sides = op.outputs[0].shape[-2:]
    batch = prod(op.outputs[0].shape[:-2])
    return Cost(batch * n * n * sides, "factorisation", terms=gemm_terms(n, sides, n, batch))


def solve(op: OpSpec) -> Cost:
    """LU (2/3 n³) and two triangular solves a right-hand side.

    >>> from .spec import op
    >>> solve(op("aten::_linalg_solve_ex", [(6, 6), (6, 2)], [(6, 2)])).flops
    288
    """
    n = op.inputs[0].shape[-1]
    batch = prod(op.inputs[0].shape[:-2])
    sides = op.inputs[-1].numel // max(batch * n, 1)
    return Cost(batch * (2 * n**3 // 3 + 2 * n * n * sides), "factorisation", terms=gemm_terms(n, n, n, batch))


def matrix_exp(op: OpSpec) -> Cost:
    """About 8 products of n×n matrices (degree-18 Taylor polynomial and a few squarings).

    >>> from .spec import op
    >>> matrix_exp(op("aten::linalg_matrix_exp", [(4, 4)], [(4, 4)])).flops
    1024
    """
    n = op.inputs[0].shape[-1]
    batch = prod(op.inputs[0].shape[:-2])
    return Cost(16 * batch * n**3, "bmm", terms=gemm_terms(n, n, n, 8 * batch))


def cross(op: OpSpec) -> Cost:
    """Two products and a subtraction an element.

    >>> from .spec import op
    >>> cross(op("aten::linalg_cross", [(4, 3), (4, 3)], [(4, 3)])).flops
    36
    """
    n = op.outputs[0].numel
    return Cost(3 * n, "elementwise", terms={"n": float(n), "runs": 1.0})


def fft(op: OpSpec) -> Cost:
    """5·N·log2 N a complex transform of N points along the given dimensions, half of it where one side is real.

    >>> from .spec import TensorSpec, op
    >>> x = TensorSpec((2, 8), "complex64")
    >>> fft(op("aten::_fft_c2c", [x], [x], dim=[1])).flops  # 2 · 5·8·3
    240
    """
    x, y = op.inputs[0], op.outputs[0]
    full = max(x, y, key=lambda t: t.numel)
    dims = [d % len(full.shape) for d in op.attr("dim", [-1])]
    points = prod(full.shape[d] for d in dims)
    flops = 5 * full.numel * log2(points) if points > 1 else 0
    real = "c2c" not in op.name
    terms = {"n": float(full.numel), "nlogn": flops / 5}
    return Cost(round(flops / (2 if real else 1)), "fft", terms=terms)


FORMULAS: dict[str, Callable[[OpSpec], Cost]] = {
    "aten::linalg_cholesky_ex": dense(1),
    "aten::linalg_cholesky": dense(1),
    "aten::cholesky": dense(1),
    "aten::linalg_lu_factor_ex": dense(2),
    "aten::linalg_lu": dense(2),
    "aten::_linalg_det": dense(2),
    "aten::linalg_det": dense(2),
    "aten::_linalg_slogdet": dense(2),
    "aten::linalg_inv_ex": dense(6),
    "aten::linalg_inv": dense(6),
    "aten::inverse": dense(6),
    "aten::cholesky_inverse": dense(4),
    "aten::linalg_qr": dense(12, square_of="smaller"),  # Householder 2mn² and as much to form Q
    "aten::geqrf": dense(6, square_of="smaller"),
    "aten::_linalg_svd": dense(66, square_of="smaller"),  # 22 n³: R-SVD with both sets of vectors
    "aten::linalg_svd": dense(66, square_of="smaller"),
    "aten::linalg_svdvals": dense(12, square_of="smaller"),
    "aten::_linalg_eigh": dense(27),  # 9 n³: tridiagonalisation, QL and vectors
    "aten::linalg_eigh": dense(27),
    "aten::linalg_eigvalsh": dense(4),
    "aten::linalg_eig": dense(75),  # 25 n³: Hessenberg, QR and vectors
    "aten::linalg_pinv": dense(66, square_of="smaller"),
    "aten::linalg_lstsq": dense(12, square_of="smaller"),
    "aten::linalg_solve_triangular": triangular_solve,
    "aten::triangular_solve": triangular_solve,
    "aten::cholesky_solve": triangular_solve,
    "aten::_linalg_solve_ex": solve,
    "aten::linalg_solve": solve,
    "aten::linalg_matrix_exp": matrix_exp,
    "aten::matrix_exp": matrix_exp,
    "aten::linalg_cross": cross,
    "aten::cross": cross,
    **{f"aten::{name}": fft for name in ("_fft_c2c", "_fft_r2c", "_fft_c2r", "fft_fft", "fft_ifft", "fft_rfft",
                                         "fft_irfft", "fft_fft2", "fft_ifft2", "fft_fftn", "fft_rfft2")},
}  # fmt: skip
