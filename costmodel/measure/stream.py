"""A model that only reads memory: timed in turn with others, it says which state DRAM was in meanwhile.

``costmodel/measure/stream.py:reader`` is a model spec like any other (`Job`), run and not traced.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from costmodel.peaks import _read

__all__ = ["STREAM_BYTES", "reader"]

# The working set of the profile's DRAM bandwidth as well (`host.quick_peaks`): beyond any last-level cache here.
STREAM_BYTES = 128 << 20


class _Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.data = np.ones(STREAM_BYTES // 8, np.int64)

    def forward(self, x: Tensor) -> Tensor:
        _read(self.data, 1)
        return x


def reader(device: str = "cpu") -> tuple[nn.Module, tuple[Any, ...]]:
    """Module and inputs."""
    import torch

    return _Reader(), (torch.zeros(1, device=device),)
