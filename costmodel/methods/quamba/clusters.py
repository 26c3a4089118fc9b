"""Sort-and-cluster (Quamba2, arXiv 2503.22879 section 3.2): heads and channels reordered offline, scales by run.

In each group of heads, the channels of a head are sorted by their calibrated maxima, heads are clustered by their
sorted profiles, and the sorted channels of a cluster of heads are cut into contiguous runs. Everything that carries a
head or channel is reordered once (in_proj rows, convolution, A_log, D, dt_bias, gated norm, out_proj columns): the
block's output is unchanged and nothing is gathered at run time. Runs end at multiples of the kernels' vectors (four
channels in Mamba-2, sixteen in Mamba-1, which has no heads: one cluster of all channels).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

from .floats import FloatMamba1, FloatMamba2
from .recipe import Sizes

__all__ = ["Clusters", "cluster_mamba2", "cut_sorted", "sort_mamba1"]


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


def cut_sorted(values: Tensor, runs: int, step: int) -> list[int]:
    """Ends of `runs` contiguous runs of sorted values with the least squared deviation from the means of the runs.

    Exact k-means of sorted numbers by dynamic programming; ends are multiples of `step`. Fewer runs than asked for,
    where there are fewer steps, are filled up with empty ones.

    >>> cut_sorted(torch.tensor([9.0, 8.0, 3.0, 3.0, 1.0, 1.0]), 3, 2)
    [2, 4, 6]
    """
    x = values.double().cpu().numpy()
    blocks = len(x) // step
    sums = np.concatenate([[0.0], np.cumsum(x)])[::step]
    squares = np.concatenate([[0.0], np.cumsum(x * x)])[::step]

    def deviation(i: int, j: int) -> float:
        return float(squares[j] - squares[i] - (sums[j] - sums[i]) ** 2 / ((j - i) * step))

    best = [deviation(0, j) if j else 0.0 for j in range(blocks + 1)]
    cuts: list[list[int]] = [[0] * (blocks + 1)]
    for _ in range(1, min(runs, blocks)):
        costs, cut = [0.0] * (blocks + 1), [0] * (blocks + 1)
        for j in range(1, blocks + 1):
            options = [(best[i] + deviation(i, j), i) for i in range(j)]
            costs[j], cut[j] = min(options)
        best = costs
        cuts.append(cut)
    ends, j = [], blocks
    for cut in reversed(cuts):
        ends.append(j * step)
        j = cut[j]
    return sorted(ends) + [len(x)] * (runs - len(ends))


def cluster_mamba2(block: FloatMamba2, largest: Tensor, m: int, n: int) -> Clusters:
    """Reorder heads and channels of a block in place, by max|x| of each channel (D,), and return the runs."""
    p = block.width // block.heads
    per_group = block.heads // block.groups
    profiles = largest.reshape(block.groups, per_group, p)
    head_order, channel_order, head_ends, channel_ends = [], [], [], []
    for g in range(block.groups):
        order = torch.argsort(profiles[g], dim=1, descending=True, stable=True)
        ranked = torch.gather(profiles[g], 1, order)
        labels = _cluster_heads(ranked, m)
        heads = torch.argsort(torch.from_numpy(labels), stable=True)
        head_order.append(heads + g * per_group)
        channel_order += [(g * per_group + int(h)) * p + order[h] for h in heads]
        counts = np.bincount(labels, minlength=m)
        head_ends.append(np.cumsum(counts))
        ends = [cut_sorted(ranked[labels == c].amax(0), n, 4) if (labels == c).any() else [p] * n for c in range(m)]
        channel_ends.append(ends)
    _reorder_mamba2(block, torch.cat(head_order), torch.cat(channel_order))
    return Clusters(
        torch.tensor(np.array(head_ends), dtype=torch.int32), torch.tensor(np.array(channel_ends), dtype=torch.int32)
    )


def _cluster_heads(ranked: Tensor, m: int) -> np.ndarray:
    """Labels 0 … of heads by their normalised sorted profiles, Ward's linkage, the strongest cluster first."""
    heads = len(ranked)
    if heads <= m:
        return np.arange(heads)
    shape = (ranked / ranked.amax(1, keepdim=True).clamp_min(1e-12)).double().numpy()
    raw = fcluster(linkage(shape, "ward"), m, "maxclust")
    strength = {c: -float(ranked[torch.from_numpy(raw == c)].max()) for c in np.unique(raw)}
    rank = {c: i for i, c in enumerate(sorted(strength, key=lambda c: (strength[c], c)))}
    return np.array([rank[c] for c in raw])


def _reorder_mamba2(block: FloatMamba2, heads: Tensor, channels: Tensor) -> None:
    z, x, b, c, dt = block.in_proj.split(block.splits)
    block.in_proj = torch.cat([z[channels], x[channels], b, c, dt[heads]])
    width = block.width
    for name in ("conv_w", "conv_b"):
        value = getattr(block, name)
        setattr(block, name, torch.cat([value[:width][channels], value[width:]]))
    for name in ("A_log", "D", "dt_bias"):
        setattr(block, name, getattr(block, name)[heads])
    block.gate_norm = block.gate_norm[channels]
    block.out_proj = block.out_proj[:, channels].contiguous()


def sort_mamba1(block: FloatMamba1, largest: Tensor, runs: int) -> Tensor:
    """Sort the channels of a block in place, by max|u| of each (D,), and return the ends of the runs."""
    order = torch.argsort(largest, descending=True, stable=True)
    x, z = block.in_proj.chunk(2)
    block.in_proj = torch.cat([x[order], z[order]])
    for name in ("conv_w", "conv_b", "dt_proj", "dt_bias", "A_log", "D"):
        setattr(block, name, getattr(block, name)[order].contiguous())
    block.x_proj, block.out_proj = block.x_proj[:, order].contiguous(), block.out_proj[:, order].contiguous()
    return torch.tensor(cut_sorted(largest[order], runs, 16), dtype=torch.int32)
