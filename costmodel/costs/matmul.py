"""Matrix products: `mm`, `addmm`, `bmm`, `linear`, forward and backward alike (a backward matmul is a matmul)."""

from __future__ import annotations

from math import prod

from .spec import Cost, OpSpec

__all__ = ["FORMULAS", "gemm_terms", "matmul_cost"]

# Micro-kernel of the fp32 GEMMs of MKL and oneDNN on 512-bit and 256-bit units: 16 lanes in N (fits OpenBLAS and
# Arm kernels, 4 to 16 lanes, to first order).
LANES = 16


def ceil_to(n: int, block: int) -> int:
    """Round up to a multiple.

    >>> ceil_to(17, 16), ceil_to(16, 16)
    (32, 16)
    """
    return -(-n // block) * block


def gemm_terms(m: int, n: int, k: int, batch: int = 1) -> dict[str, float]:
    """Features of a GEMM whose sum is an efficiency that saturates in M, N and K (LATENCY.md, model form).

    t = a·MNK + b·MK + c·NK + d·MN is eff = 1 / (1 + b'/N + c'/M + d'/K).

    >>> gemm_terms(2, 3, 4)["mnk"]
    24.0
    """
    return {
        "mnk": float(batch * m * n * k),
        "mnk_panels": float(batch * ceil_to(m, 12) * ceil_to(n, 32) * k),
        "mnk_lanes": float(batch * m * ceil_to(n, LANES) * k),
        "mn": float(batch * m * n),
        "mk": float(batch * m * k),
        "nk": float(batch * n * k),
        "batch": float(batch),
    }
