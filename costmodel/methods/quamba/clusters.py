"""Sort-and-cluster (Quamba2, arXiv 2503.22879 section 3.2): heads and channels reordered offline, scales by run.

In each group of heads, the channels of a head are sorted by their calibrated maxima, heads are clustered by their
sorted profiles, and the sorted channels of a cluster of heads are cut into contiguous runs. Everything that
carries a head or channel is reordered once (in_proj rows, convolution, A_log, D, dt_bias, gated norm, out_proj
columns): the block's
output is unchanged and nothing is gathered at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .recipe import Sizes

__all__ = ["Clusters"]


@dataclass(frozen=True)
class Clusters:
    """Ends of runs after the reordering.

    Attributes:
        head_ends: (G, m) ends of the runs of heads in each group, counted from its first head.
        channel_ends: (G, m, n) ends of the runs of channels of the heads of a run, a multiple of four.
    """

    head_ends: Tensor
    channel_ends: Tensor

    @classmethod
    def single(cls, sizes: Sizes) -> Clusters:
        """One run of everything in each group."""
        heads, p = sizes.heads // sizes.groups, sizes.width // sizes.heads
        ends = torch.full((sizes.groups, 1), heads, dtype=torch.int32)
        return cls(ends, torch.full((sizes.groups, 1, 1), p, dtype=torch.int32))
