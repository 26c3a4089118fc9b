"""How operands lie in memory: the loop that an elementwise kernel really runs, from shapes and strides."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from .spec import OpSpec, TensorSpec

__all__ = ["Loop", "broadcast_strides", "ceil_to", "channels_last", "copy_bytes", "first", "loop", "strides_of"]


class Loop(NamedTuple):
    """The innermost loop after dimensions that lie side by side in every operand are merged.

    Attributes:
        inner: elements of one innermost run.
        runs: how often it runs.
        unit: whether every operand steps by 1 or 0 elements in it, so that it vectorises.
    """

    inner: int
    runs: int
    unit: bool

    @property
    def elements(self) -> int:
        return self.inner * self.runs


def ceil_to(n: int, block: int) -> int:
    """Round up to a multiple.

    >>> ceil_to(17, 16), ceil_to(16, 16)
    (32, 16)
    """
    return -(-n // block) * block


def strides_of(t: TensorSpec) -> tuple[int, ...]:
    """Strides in elements, spelled out.

    >>> strides_of(TensorSpec((2, 3, 4)))
    (12, 4, 1)
    """
    if t.stride or not t.shape:
        return t.stride
    strides = [1]
    for n in reversed(t.shape[1:]):
        strides.append(strides[-1] * max(n, 1))
    return tuple(reversed(strides))


def broadcast_strides(t: TensorSpec, shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of `t` seen at `shape`: 0 where it is broadcast.

    >>> broadcast_strides(TensorSpec((3, 1)), (2, 3, 4))
    (0, 1, 0)
    """
    strides = strides_of(t)
    lead = len(shape) - len(t.shape)
    return (0,) * lead + tuple(
        0 if have == 1 and want != 1 else s for have, want, s in zip(t.shape, shape[lead:], strides)
    )


def loop(output: TensorSpec, inputs: Sequence[TensorSpec]) -> Loop:
    """The loop over `output` and the inputs broadcast to it, in the memory order of the output.

    >>> loop(TensorSpec((8, 16)), [TensorSpec((8, 16))])
    Loop(inner=128, runs=1, unit=True)
    >>> loop(TensorSpec((8, 16)), [TensorSpec((8, 16)), TensorSpec((16,))])  # a row is added to each row
    Loop(inner=16, runs=8, unit=True)
    >>> loop(TensorSpec((8, 16)), [TensorSpec((8, 16), stride=(1, 8))])  # transposed
    Loop(inner=16, runs=8, unit=False)
    """
    numel = output.numel
    if all(t.shape == output.shape and t.stride == output.stride for t in inputs) and output.contiguous:
        return Loop(numel, 1, True)
    shape = output.shape
    steps = [broadcast_strides(t, shape) for t in (output, *inputs) if len(t.shape) <= len(shape)]
    dims = [(n, *(s[d] for s in steps)) for d, n in enumerate(shape) if n != 1]
    if not dims or numel == 0:
        return Loop(numel, 1, True)
    dims.sort(key=lambda dim: -dim[1])
    inner = list(dims.pop())
    while dims and all(outer == step * inner[0] for outer, step in zip(dims[-1][1:], inner[1:])):
        inner[0] *= dims.pop()[0]
    return Loop(inner[0], prod(d[0] for d in dims), all(step in (0, 1) for step in inner[1:]))


def copy_bytes(t: TensorSpec) -> int:
    """Bytes of ``t.contiguous()``: none if it is already.

    >>> copy_bytes(TensorSpec((4, 8))), copy_bytes(TensorSpec((4, 8), stride=(1, 4)))
    (0, 128)
    """
    return 0 if t.contiguous else t.numel * t.itemsize


def channels_last(t: TensorSpec) -> bool:
    """Whether (N, C, H, W) lies as (N, H, W, C).

    >>> channels_last(TensorSpec((2, 3, 4, 5), stride=(60, 1, 15, 3))), channels_last(TensorSpec((2, 3, 4, 5)))
    (True, False)
    """
    if len(t.shape) not in (4, 5) or not t.stride:
        return False
    order = (0, *range(2, len(t.shape)), 1)
    moved = TensorSpec(tuple(t.shape[d] for d in order), t.dtype, tuple(t.stride[d] for d in order))
    return moved.contiguous


def first(op: OpSpec) -> TensorSpec:
    """The first output, or the first input of an op that only writes into what it was given."""
    return op.outputs[0] if op.outputs else op.inputs[0]
