"""Reuse distances by address: what takes memory just freed finds it near, what nothing freed is as far as by tensor."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from costmodel.capture import capture
from costmodel.lower import Lowered, lower
from costmodel.placement import placed_distances

WIDTH = 1 << 20  # elements of each activation: 4 MiB, many lines of the stack


class Chain(nn.Module):
    """Out-of-place ops one after the other: the input of each is freed when the next is done."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(6):
            x = x + 1.0
        return x


def chain() -> Lowered:
    return lower(capture(Chain(), torch.zeros(WIDTH)))


def test_an_output_in_freed_memory_is_nearer_than_a_new_tensor() -> None:
    low = chain()
    distance, code = placed_distances(low)
    written = np.flatnonzero(low.table.use_write)
    assert len(written) == 6
    # by tensor an output was last touched in the step before; by address, two ops ago by what lay there
    later = written[3:]
    assert (low.distance[later] > 5 * 4 * WIDTH).all()
    assert (distance[later] < 4 * 4 * WIDTH).all()
    assert distance.shape == low.table.use_bytes.shape
    assert code.shape == low.table.kind.shape


def test_what_was_just_written_is_read_from_near_either_way() -> None:
    low = chain()
    distance, _ = placed_distances(low)
    read = np.flatnonzero(~low.table.use_write)[1:]
    np.testing.assert_allclose(low.distance[read], 4 * WIDTH, rtol=0.02)  # its own bytes, and the code of an op
    np.testing.assert_allclose(distance[read], 4 * WIDTH, rtol=0.05)


def test_a_step_without_operands_has_distances_too() -> None:
    low = lower(capture(nn.Identity(), torch.zeros(3)))
    distance, code = placed_distances(low)
    assert len(distance) == len(low.table.use_bytes)
    assert len(code) == len(low.graph)
