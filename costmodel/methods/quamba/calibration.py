"""Static scales from the user's data: maxima and a percentile, independent of the order of the samples.

Maxima are maxima and the percentile is read off a histogram of counts over the bit patterns of |x| (2^-10 relative
resolution, any number of elements), so no order and no batching changes a scale. Sequences run one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...errors import CostmodelError
from ...kernels.hadamard import hadamard_matrix
from .floats import Block, FloatModel, rms_norm
from .quantizer import scale_of

__all__ = ["LayerStatistics", "Statistics", "calibrate", "point_scales", "token_rows"]

_SHIFT = 13  # of the 31 bits of |x| the upper 18 are kept: 8 of the exponent, 10 of the fraction
_BINS = 1 << (31 - _SHIFT)


@dataclass
class LayerStatistics:
    """What was seen at the quantization points of one block.

    Attributes:
        largest: max|.| of each point, over all but the last dimension (all but the last three for the state ``h``, the
            last two for ``Bc`` and ``Cc``, which have a group and a state dimension).
        counts: histogram of |u| over bit patterns.
        moments: sum of x xᵀ of the inputs of the linears, by name, fp64; for GPTQ.
        profiles: max|u| of each sequence and channel, for sort-and-cluster.
    """

    largest: dict[str, Tensor] = field(default_factory=dict)
    counts: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.int64))
    moments: dict[str, Tensor] = field(default_factory=dict)

    def watch(self, name: str, value: Tensor) -> None:
        """Take a value (1, L, …) in; for the state, (1, …)."""
        keep = value.dim() - 1 if name == "h" else {"Bc": 2, "Cc": 2}.get(name, 1)
        top = value.abs().flatten(0, value.dim() - keep - 1).amax(0)
        seen = self.largest.get(name)
        self.largest[name] = top if seen is None else torch.maximum(seen, top)
        if name == "u":
            bits = value.contiguous().view(torch.int32).flatten() & 0x7FFFFFFF
            self.counts += torch.bincount(bits >> _SHIFT, minlength=_BINS)

    def add_moment(self, name: str, x: Tensor) -> None:
        rows = x.flatten(0, -2).double()
        self.moments[name] = self.moments.get(name, 0.0) + rows.T @ rows

    def top(self, name: str) -> Tensor:
        """max|.| of a whole tensor."""
        return self.largest[name].max()

    def percentile(self, percent: float) -> Tensor:
        """The value that `percent` of all |u| do not exceed, rounded up to a bin, never above the maximum."""
        if percent >= 100.0:
            return self.top("u")
        wanted = percent / 100.0 * float(self.counts.sum())
        index = int(torch.searchsorted(self.counts.cumsum(0).double(), wanted))
        edge = torch.tensor(min((index + 1) << _SHIFT, 0x7F7FFFFF), dtype=torch.int32).view(torch.float32)
        return torch.minimum(edge, self.top("u"))


@dataclass
class Statistics:
    """All blocks, the input of the head, and how many tokens were seen."""

    layers: list[LayerStatistics]
    head: LayerStatistics
    tokens: int


def token_rows(inputs: Any, samples: int, seed: int) -> list[Tensor]:
    """Calibration sequences (1, L) from a tensor, a list or a dict of token ids; `samples` of them drawn by `seed`.

    Raises:
        CostmodelError: no token ids, or fewer than two tokens a sequence.
    """
    leaves = [t for t in pytree.tree_leaves(inputs) if isinstance(t, Tensor) and not t.is_floating_point()]
    rows = [row[None] for t in leaves for row in t.reshape(-1, t.shape[-1])]
    if not rows:
        raise CostmodelError("quantization calibrates on data: pass token ids (batch, length) as the inputs")
    short = min(row.shape[1] for row in rows)
    if short < 2:
        raise CostmodelError(f"a calibration sequence has {short} token: a static scale needs at least two")
    if len(rows) > samples:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:samples]
        rows = [rows[i] for i in sorted(chosen.tolist())]
    return rows


def calibrate(model: FloatModel, rows: Sequence[Tensor], moments: bool = False) -> Statistics:
    """Run every sequence through the float model and take statistics.

    Args:
        moments: also sum x xᵀ of the inputs of in_proj, out_proj and head.

    Raises:
        CostmodelError: an activation is not finite.
    """
    layers = [LayerStatistics() for _ in model.blocks]
    head = LayerStatistics()
    with torch.no_grad():
        for row in rows:
            hidden = model.embedding[row]
            for i, (block, seen) in enumerate(zip(model.blocks, layers)):
                hidden = block.forward(hidden, _watcher(seen, block, moments))
                if not bool(torch.isfinite(hidden).all()):
                    raise CostmodelError(
                        f"block {i} gives NaN or infinity on the calibration data: nothing was changed"
                    )
            last = rms_norm(hidden, model.norm, model.eps)
            head.watch("input", last)
            if moments:
                head.add_moment("input", last)
    return Statistics(layers, head, sum(row.numel() for row in rows))


def _watcher(seen: LayerStatistics, block: Block, moments: bool) -> Any:
    def watch(name: str, value: Tensor) -> None:
        seen.watch(name, value)
        if name == "y" and rotation is not None:
            rotated = value @ rotation.T
            seen.watch("y_rotated", rotated)
            if moments:
                seen.add_moment("y_rotated", rotated)
        if moments and name in ("input", "y"):
            seen.add_moment(name, value)

    rotation = _rotation(block.width)
    return watch


@cache
def _rotation(width: int) -> Tensor | None:
    """H of the block's inner width as fp32, or None where there is none."""
    try:
        return hadamard_matrix(width).float()
    except CostmodelError:
        return None


def point_scales(seen: LayerStatistics, *names: str) -> Tensor:
    """int8 scales of quantization points, from their maxima."""
    return torch.stack([scale_of(seen.top(name)) for name in names])
