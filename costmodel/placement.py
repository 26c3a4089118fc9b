"""Where a step's data lie in memory, and so how long ago what lies there was touched.

An output takes memory that something else has just given back, and finds it in a near cache: a reuse distance by
tensors would call every output cold. Here storages get the addresses that glibc malloc gives them, and the LRU stack is
one of lines of the address range (LATENCY.md, V6 against V5).
"""

from __future__ import annotations

import numpy as np

from .core.malloc import PINNED_MALLOC
from .core.table import F8
from .core.traffic import step_distances
from .footprint import addresses
from .lower import Lowered

__all__ = ["placed_distances"]

# Bytes of a line of the stack, and touches of lines that a step may have: lines grow with steps that have more.
_LINE, _MOST_TOUCHES = 32 << 10, 400_000


def placed_distances(lowered: Lowered) -> tuple[F8, F8]:
    """Reuse distances in steady state, by address.

    Args:
        lowered: n ops with u operands.

    Returns:
        (u,) of each operand (the geometric mean over its lines) and (n,) of each op's code over `CODE_SHARE`, in bytes.
    """
    table = lowered.table
    if not len(table.use_bytes):
        return lowered.distance, lowered.code_distance
    where = addresses(lowered, PINNED_MALLOC)
    sizes = lowered.memory.bytes
    top = int((where + sizes).max(initial=0)) + _LINE
    start = np.append(np.maximum(where, 0), top)[table.use_storage]  # the ops' workspace lies behind the rest
    size = np.maximum(table.use_bytes, 1.0).astype(np.int64)
    line = _LINE
    while (lines := (start + size - 1) // line - start // line + 1).sum() > _MOST_TOUCHES:
        line *= 2
    ends = np.cumsum(lines)
    use = np.repeat(np.arange(len(lines)), lines)
    touched = start[use] // line + np.arange(ends[-1]) - (ends - lines)[use]
    _, number = np.unique(touched, return_inverse=True)
    before = np.append(0, ends)[table.use_ptr[:-1]]
    of_lines, of_code = step_distances(before, number.astype(np.int32), (table.use_bytes / lines)[use], table.code)
    logs = np.log(np.maximum(of_lines, 1.0))
    return np.exp(np.add.reduceat(logs, ends - lines) / lines), of_code
