"""What a trace on fake tensors shows out of place and a real run does in place."""

from __future__ import annotations

from collections.abc import Iterable

from .graph import OpGraph

__all__ = ["accumulate_in_place"]


def accumulate_in_place(graph: OpGraph, accumulated: Iterable[int]) -> int:
    """Make the additions of autograd's engine what they are in a real run; returns how many were.

    Where several gradients meet, the engine adds each into the first if nothing else holds it; of fake tensors, which
    are a subclass, it makes a new sum each time. The first dies there, so its memory takes the place of the sum's.

    Args:
        graph: a whole trace; changed.
        accumulated: positions of additions that no backward of Python's asked for, ascending.
    """
    tensors_of: dict[int, list[int]] = {}
    for tensor, storage in enumerate(graph.tensor_storage):
        tensors_of.setdefault(storage, []).append(tensor)
    changed = 0
    for k in accumulated:
        into, made = graph.op_inputs[k][0], graph.op_outputs[k][0]
        kept, dropped = graph.tensor_storage[into], graph.tensor_storage[made]
        same = graph.tensor_shape[into] == graph.tensor_shape[made]
        last = graph.storage_birth[kept] >= 0 and graph.storage_death[kept] == k + 1
        if not (same and last and _dense(graph.tensor_shape[into], graph.tensor_stride[into])):
            continue
        graph.op_name[k], graph.op_outputs[k] = "aten::add_.Tensor", (into,)
        moved = tensors_of.pop(dropped, [])
        for tensor in moved:
            graph.tensor_storage[tensor] = kept
        tensors_of.setdefault(kept, []).extend(moved)
        graph.storage_death[kept] = graph.storage_death[dropped]
        if graph.storage_role[dropped] == "gradient":
            graph.storage_role[kept] = "gradient"
        graph.storage_bytes[dropped], graph.storage_birth[dropped], graph.storage_death[dropped] = 0, k, k
        changed += 1
    return changed


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in any order of dimensions."""
    expected = 1
    for step, n in sorted((s, n) for s, n in zip(stride, shape) if n != 1):
        if step != expected:
            return False
        expected *= n
    return True
