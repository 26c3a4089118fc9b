"""Fusion by rules: what a runtime computes in one pass costs one call, and what stays inside it costs no bytes.

The graph is left as it was traced (eager). A fused op keeps its arithmetic; the call and the traffic between it and the
op that it joined go. Rules, by name in a profile's runtime:

* ``norm``: batch norm in evaluation mode folds into the weights of the convolution or matmul before it, and is gone.
* ``activation``: an elementwise op of one operand joins the convolution, matmul or folded norm that makes it.
* ``add``: an elementwise op of two operands joins the one that makes either.
* ``elementwise``: elementwise ops, copies and norms join each other (a compiler's generated loops), not a matmul.

With any rule the graph is compiled: views and allocations are no calls.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .lower import Lowered

__all__ = ["Fused", "fuse"]

_MATMUL = ("conv", "gemm", "gemv", "bmm", "linear")
_LOOPS = ("elementwise", "copy", "batch_norm_eval", "layer_norm", "group_norm", "softmax", "reduce", "fill", "cat")
_FREE = ("view", "allocate")
_POINTWISE = ("elementwise", "copy", "batch_norm_eval", "fill")


@dataclass(frozen=True, eq=False)
class Fused:
    """A lowered graph after fusion.

    Attributes:
        lowered: with the operands that stay inside a fused kernel at 0 bytes.
        joined: (n,) whether an op runs inside the kernel of an earlier one.
    """

    lowered: Lowered
    joined: npt.NDArray[np.bool_]


@dataclass
class _Version:
    """What a storage holds between two writes: who wrote it through which operand, who reads it through which."""

    writer: int
    operand: int
    readers: list[tuple[int, int]]


def fuse(lowered: Lowered, rules: Collection[str], workspaces: bool = True) -> Fused:
    """Apply `rules` to a lowered graph; without rules it is the graph itself.

    Args:
        lowered: from `lower`.
        rules: names of rules.
        workspaces: whether kernels copy through the workspaces that torch's CPU kernels take; others have their own.
    """
    n = len(lowered.costs)
    joined = np.zeros(n, np.bool_)
    table = lowered.table
    size, work = table.use_bytes.copy(), table.work.copy()
    if not workspaces:
        size[table.use_storage >= len(lowered.graph.storage_bytes)] = 0.0
        lowered = replace(lowered, table=table._replace(use_bytes=size))
    if not rules:
        return Fused(lowered, joined)
    kinds = [cost.kind for cost in lowered.costs]
    joined[[kind in _FREE for kind in kinds]] = True
    root = list(range(n))  # the op whose kernel an op runs in
    operands = _operands(lowered)
    for version in sorted(_versions(lowered), key=lambda v: v.readers[0][0]):
        producer, (consumer, operand) = version.writer, version.readers[0]
        single = len(version.readers) == 1
        rule = _rule(kinds[producer], kinds[root[producer]], kinds[consumer], operands[consumer], single)
        if rule not in rules or rule == "":
            continue
        size[operand] = 0.0
        if single:
            size[version.operand] = 0.0
        if not joined[consumer]:
            joined[consumer] = True
            root[consumer] = root[producer]
        if rule == "norm":  # its statistics are in the weights
            own = slice(table.use_ptr[consumer], table.use_ptr[consumer + 1])
            size[own] *= table.use_write[own]
            work[consumer] = 0.0
    amount = table.amount.copy()
    for k in np.flatnonzero(work == 0.0):
        amount[table.term_ptr[k] : table.term_ptr[k + 1]] = 0.0
    return Fused(replace(lowered, table=table._replace(use_bytes=size, work=work, amount=amount)), joined)


def _rule(producer: str, kernel: str, consumer: str, operands: int, single: bool) -> str:
    """Which rule lets `consumer` run in the kernel that `producer` runs in; empty if none does.

    Args:
        producer, consumer: their algorithm classes; kernel: the class of the op that the producer's kernel began as.
        operands: activations that the consumer reads.
        single: whether nothing else reads what is between them.
    """
    if kernel.startswith(_MATMUL):
        if not single:
            return ""
        if consumer.startswith("batch_norm_eval"):
            return "norm" if producer.startswith(_MATMUL) else ""
        if consumer.startswith("elementwise"):
            return "activation" if operands == 1 else "add"
        return ""
    # a loop goes on with what it has in registers; a reduction ends it
    if producer.startswith(_POINTWISE) and consumer.startswith(_LOOPS):
        return "elementwise"
    return "elementwise" if producer.startswith(_LOOPS) and consumer.startswith(_POINTWISE) else ""


def _versions(lowered: Lowered) -> list[_Version]:
    """Everything that an op makes and a later op reads. What nobody reads (a result), or what was there before the step
    (a state that is updated in place), is not here."""
    table, birth = lowered.table, lowered.graph.storage_birth
    n = len(lowered.costs)
    current: dict[int, _Version] = {}
    found: list[_Version] = []
    for k in range(n):
        span = [u for u in range(table.use_ptr[k], table.use_ptr[k + 1]) if table.use_storage[u] < len(birth)]
        for u in span:
            version = current.get(int(table.use_storage[u]))
            if not table.use_write[u] and version is not None:
                version.readers.append((k, u))
        for u in span:
            if table.use_write[u]:
                storage = int(table.use_storage[u])
                current[storage] = _Version(k, u, [])
                found.append(current[storage])
    return [v for v in found if v.readers and birth[table.use_storage[v.operand]] >= 0]


def _operands(lowered: Lowered) -> npt.NDArray[np.int64]:
    """(n,) activations that each op reads: not parameters, nor scalars."""
    graph, table = lowered.graph, lowered.table
    # the storage after the last is the ops' workspace
    fixed = np.array([role in ("parameter", "buffer") for role in graph.storage_role] + [True], np.bool_)
    counts = ~table.use_write & ~fixed[table.use_storage] & (table.use_bytes > 64)
    return np.add.reduceat(np.append(counts, False), table.use_ptr[:-1]) * (np.diff(table.use_ptr) > 0)
