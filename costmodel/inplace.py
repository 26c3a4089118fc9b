"""What a trace on fake tensors shows out of place and a real run does in place."""

from __future__ import annotations

from collections.abc import Iterable

from .graph import OpGraph

__all__ = ["accumulate_in_place"]

# Share memory with their input but leave no view of it behind.
_NO_VIEW = frozenset({"aten::_unsafe_view"})


def accumulate_in_place(graph: OpGraph, accumulated: Iterable[int]) -> int:
    """Make the additions of autograd's engine what they are in a real run; returns how many were.

    Where several gradients meet, the engine adds each into the first if it may; of fake tensors, which are a subclass,
    it makes a new sum each time. The first dies there, so its memory takes the place of the sum's. The engine may
    (torch 2.13, autograd/input_buffer.cpp, ``can_accumulate_inplace``) if the first gradient

    * has elements that fill their memory without gaps or overlaps,
    * is nobody else's: no other node of the graph still needs it, and the second gradient is not the same tensor,
    * is no view: a view holds the tensor that it is of, so that two tensors share the storage. (The gradient of a
      `Linear`'s weight is a transpose, that of its bias a reshaped sum: of weights that are used twice, the first sum
      is new, later ones are in place.)

    Gradients that a later micro-batch adds to ``parameter.grad`` need nothing here: a trace sees these in place too.

    Args:
        graph: a whole trace; changed.
        accumulated: positions of additions that no backward of Python's asked for, ascending.
    """
    tensors_of: dict[int, list[int]] = {}
    for tensor, storage in enumerate(graph.tensor_storage):
        tensors_of.setdefault(storage, []).append(tensor)
    is_view = [False] * len(graph.tensor_storage)
    changed, seen = 0, 0
    for k in accumulated:
        for op in range(seen, k):
            _note_views(graph, op, is_view)
        seen = k
        into, made = graph.op_inputs[k][0], graph.op_outputs[k][0]
        kept, dropped = graph.tensor_storage[into], graph.tensor_storage[made]
        same = graph.tensor_shape[into] == graph.tensor_shape[made]
        last = graph.storage_birth[kept] >= 0 and graph.storage_death[kept] == k + 1
        alone = not any(graph.tensor_storage[t] == kept for t in graph.op_inputs[k][1:])
        dense = _dense(graph.tensor_shape[into], graph.tensor_stride[into])
        if not (same and last and alone and dense) or is_view[into]:
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


def _note_views(graph: OpGraph, op: int, is_view: list[bool]) -> None:
    """Which of an op's outputs are views, until an op that makes memory makes them again."""
    name = graph.op_name[op].partition(".")[0]
    if name.endswith("_"):
        return
    for tensor in graph.op_outputs[op]:
        is_view[tensor] = graph.storage_birth[graph.tensor_storage[tensor]] < op and name not in _NO_VIEW


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in any order of dimensions."""
    expected = 1
    for step, n in sorted((s, n) for s, n in zip(stride, shape) if n != 1):
        if step != expected:
            return False
        expected *= n
    return True
