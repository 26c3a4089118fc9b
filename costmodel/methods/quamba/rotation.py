"""The Hadamard rotation of y, folded into out_proj."""

from __future__ import annotations

from torch import Tensor

from ...kernels.hadamard import hadamard_matrix

__all__ = ["fold_rotation"]


def fold_rotation(out_proj: Tensor) -> Tensor:
    """W_out Hᵀ / n (d, D): takes H y and gives what W_out gives for y; computed in float64."""
    h = hadamard_matrix(out_proj.shape[1])
    return (out_proj.double() @ h.T / h.shape[0]).float()
