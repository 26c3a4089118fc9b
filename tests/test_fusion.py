"""Fusion: what joins what, that bytes and calls only fall, and that arithmetic stays."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from costmodel.capture import capture  # noqa: E402
from costmodel.fusion import fuse  # noqa: E402
from costmodel.lower import Lowered, lower  # noqa: E402

RULES = (("norm",), ("norm", "activation"), ("norm", "activation", "add"), ("elementwise",))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.conv2, self.norm2 = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


@pytest.fixture(scope="module")
def block() -> Lowered:
    return lower(capture(Residual().eval(), torch.randn(1, 32, 28, 28), mode="infer"))


def left(lowered: Lowered, rules: tuple[str, ...]) -> list[str]:
    fused = fuse(lowered, rules)
    return [cost.kind.split("_")[0] for cost, joined in zip(lowered.costs, fused.joined) if not joined]


def test_without_rules_it_is_the_graph_itself(block: Lowered) -> None:
    fused = fuse(block, ())
    assert fused.lowered is block
    assert not fused.joined.any()


def test_each_rule_takes_what_it_says(block: Lowered) -> None:
    map_bytes = 4 * 32 * 28 * 28
    assert left(block, ("norm",)) == ["conv", "elementwise", "conv", "elementwise", "elementwise"]
    assert left(block, ("norm", "activation")) == ["conv", "conv", "elementwise", "elementwise"]
    assert left(block, ("norm", "activation", "add")) == ["conv", "conv"]
    fused = fuse(block, ("norm", "activation", "add")).lowered.table
    storages = fused.use_storage < len(block.graph.storage_bytes)  # without workspaces
    assert fused.use_bytes[fused.use_write & storages].sum() == 2 * map_bytes  # the two maps that leave a kernel
    weights = 2 * 4 * (32 * 32 * 9 + 32)
    read = fused.use_bytes[~fused.use_write & storages].sum()
    assert read == pytest.approx(3 * map_bytes + weights)  # x, y, and x again


def test_a_compiler_joins_loops_and_no_convolution(block: Lowered) -> None:
    kinds = left(block, ("elementwise",))
    assert kinds == ["conv", "batch", "conv", "batch"]  # norm and relu; norm, add and relu


def test_what_two_ops_read_is_still_written() -> None:
    class Fork(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.exp(x)
            return torch.relu(y) @ y

    lowered = lower(capture(Fork(), torch.randn(64, 64), mode="infer"))
    fused = fuse(lowered, ("elementwise",))
    table = fused.lowered.table
    assert list(fused.joined) == [False, True, False]
    exp_writes = [u for u in range(table.use_ptr[0], table.use_ptr[1]) if table.use_write[u]]
    assert table.use_bytes[exp_writes].tolist() == [4 * 64 * 64]


@pytest.mark.parametrize("rules", RULES)
def test_bytes_and_calls_fall_and_flops_stay(block: Lowered, rules: tuple[str, ...]) -> None:
    fused = fuse(block, rules)
    assert (fused.lowered.table.use_bytes <= block.table.use_bytes).all()
    assert fused.lowered.table.use_bytes.sum() < block.table.use_bytes.sum()
    assert np.array_equal(fused.lowered.table.flops, block.table.flops)
    assert fused.joined.sum() > 0


def test_results_and_states_are_written(block: Lowered) -> None:
    table = fuse(block, ("norm", "activation", "add", "elementwise")).lowered.table
    last = slice(table.use_ptr[-2], table.use_ptr[-1])
    assert table.use_bytes[last][table.use_write[last]].tolist() == [4 * 32 * 28 * 28]

    class State(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(64, 64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.mul_(0.5)
            return torch.relu(self.seen) + x

    lowered = lower(capture(State(), torch.randn(64, 64), mode="infer"))
    table = fuse(lowered, ("elementwise",)).lowered.table
    state = lowered.graph.storage_name.index("seen")
    assert table.use_bytes[(table.use_storage == state) & table.use_write].tolist() == [4 * 64 * 64]
