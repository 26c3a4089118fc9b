"""GPTQ for 4-bit groups: each column's rounding error is pushed into the columns that are not rounded yet.

Frantar et al., arXiv 2210.17323, with the settings of Quamba2: damping 0.01 of the mean diagonal, groups of 128.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import CostmodelError
from ..quamba.quantizer import int4_groups

__all__ = ["gptq_int4"]

DAMPING = 0.01


def gptq_int4(w: Tensor, moment: Tensor, group: int, channel: Tensor | None) -> tuple[Tensor, Tensor]:
    """4-bit values (N, K) uint8 and group scales (N, K/group) fp16 that keep w x for inputs with this second moment.

    Args:
        w: fp32 (N, K).
        moment: sum of x xᵀ over the calibration tokens, (K, K).
        group: inputs that share a scale.
        channel: scale of each output, the first level of W4A8, or None.
    """
    n, k = w.shape
    if k % group:
        raise CostmodelError(f"K = {k} is not divisible by the group of {group}: 4-bit weights need K to be")
    left = w.double() if channel is None else w.double() / channel.double()[:, None]
    factor = _inverse_factor(moment)
    q = torch.empty(n, k, dtype=torch.uint8)
    scales = torch.empty(n, k // group, dtype=torch.float16)
    for first in range(0, k, group):
        last = first + group
        _, scale = int4_groups(left[:, first:last].float(), group)
        scales[:, first // group] = scale[:, 0]
        step = scale.double()
        errors = torch.empty(n, group, dtype=torch.float64)
        for j in range(first, last):
            column = left[:, j]
            rounded = (torch.round(column / step[:, 0]) + 8).clamp(0, 15)
            q[:, j] = rounded.to(torch.uint8)
            error = (column - (rounded - 8) * step[:, 0]) / factor[j, j]
            errors[:, j - first] = error
            left[:, j:last] -= error[:, None] * factor[j, j:last]
        left[:, last:] -= errors @ factor[first:last, last:]
    return q, scales


def _inverse_factor(moment: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped moment; inputs that never move count as one."""
    h = moment.double().clone()
    diagonal = h.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += DAMPING * diagonal.mean()
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
