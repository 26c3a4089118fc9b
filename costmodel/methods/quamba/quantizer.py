"""The uniform symmetric quantizers of Quamba and Quamba2 (arXiv 2410.13229 section 3; 2503.22879 section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import CostmodelError

__all__ = ["FLOOR", "dequantize_int4", "int4_groups", "int8", "int8_splits", "int8_weight", "scale_of"]

FLOOR = 1e-8  # a dead group keeps a scale that can be divided by


def scale_of(largest: Tensor | float, levels: float = 127.0) -> Tensor:
    """max|x| to a step, never 0."""
    return torch.as_tensor(largest, dtype=torch.float32).clamp_min(FLOOR) / levels


def int8(x: Tensor, scale: Tensor | float) -> Tensor:
    """clamp(round(x / scale), -128, 127), halves to even as in the kernels.

    >>> int8(torch.tensor([0.5, 1.5, 200.0, -200.0]), 1.0).tolist()
    [0, 2, 127, -128]
    """
    return torch.round(x / scale).clamp(-128, 127).to(torch.int8)


def int8_weight(w: Tensor) -> tuple[Tensor, Tensor]:
    """A weight with one scale: int8 and the scale, 0-dim fp32."""
    scale = scale_of(w.abs().max())
    return int8(w, scale), scale


def int8_splits(w: Tensor, splits: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows (N, K) in consecutive splits, a scale each: int8 (N, K) and fp32 (splits,)."""
    parts = [int8_weight(part) for part in w.split(list(splits))]
    return torch.cat([q for q, _ in parts]), torch.stack([s for _, s in parts])


def int4_groups(w: Tensor, group: int, channel: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows (N, K) in groups of `group` along K: q in 0 … 15 as uint8 (N, K) and fp16 scales (N, K/group).

    w ≈ channel · scale · (q - 8) with scale = 2·max/15, rounded to fp16 before it divides; `channel` fp32 (N,) is the
    second level of W4A8 (ones without). The clamp matters: a scale that fp16 rounded down lets q reach 16.
    """
    n, k = w.shape
    if k % group:
        raise CostmodelError(f"K = {k} is not divisible by the group of {group}: 4-bit weights need K to be")
    relative = w.float() if channel is None else w.float() / channel[:, None]
    grouped = relative.reshape(n, k // group, group)
    largest = grouped.abs().amax(-1)
    scale = (2.0 * largest / 15.0).clamp(6.2e-5, 65504.0).to(torch.float16)  # fp16 normals
    q = torch.round(grouped / scale.float()[..., None]) + 8
    return q.clamp(0, 15).to(torch.uint8).reshape(n, k), scale


def dequantize_int4(q: Tensor, scale: Tensor, channel: Tensor | None = None) -> Tensor:
    """channel · scale · (q - 8), fp32 (N, K)."""
    group = q.shape[1] // scale.shape[1]
    w = (q.float() - 8.0) * scale.float().repeat_interleave(group, 1)
    return w if channel is None else w * channel[:, None]
