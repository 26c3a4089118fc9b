"""Structs of arrays that enter numba as they are. Ragged columns are a pointer array and a flat array."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["F8", "I4", "I8", "UNITS", "CpuRates", "GpuRates", "MemoryTable", "OpTable"]

F8 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int64]
I4 = npt.NDArray[np.int32]

UNITS = ("fp32", "fp64", "bf16", "fp16", "int8", "int4")


class OpTable(NamedTuple):
    """n ops in the order in which they run.

    Attributes:
        kind: (n,) number of the op's algorithm class.
        unit: (n,) number of the execution unit in `UNITS`.
        flops: (n,) operations of the result.
        work: (n,) operations that the hardware issues, padded to the micro-kernel.
        calls: (n,) kernels launched on a GPU.
        outputs: (n,) elements of the largest result, at least 1, which a GPU cuts into tiles.
        code: (n,) number of the code that runs the op; ops with the same find it where the last one left it.
        term_ptr, term, amount: features of the time model; op i has ``term[term_ptr[i]:term_ptr[i + 1]]``.
        use_ptr, use_storage, use_bytes, use_write: operands; bytes read from or written to each storage.
    """

    kind: I4
    unit: I4
    flops: F8
    work: F8
    calls: F8
    outputs: F8
    code: I4
    term_ptr: I8
    term: I4
    amount: F8
    use_ptr: I8
    use_storage: I4
    use_bytes: F8
    use_write: npt.NDArray[np.bool_]


class MemoryTable(NamedTuple):
    """s storages and the transient bytes of n ops.

    Attributes:
        bytes: (s,) size of each storage.
        birth, death: (s,) live during op k when ``birth <= k < death``; -1 is before the step.
        workspace: (n,) bytes that an op takes from the framework's allocator and gives back.
        scratch: (n,) bytes that an op's library takes outside it.
    """

    bytes: I8
    birth: I8
    death: I8
    workspace: I8
    scratch: I8


class CpuRates(NamedTuple):
    """What a CPU, a runtime and a thread count make of K kinds, T terms, U units and L memory levels.

    Attributes:
        overhead_s: (K,) seconds of every op, whatever its size (dispatch, library call).
        cold_s: (K, L) seconds more where the op's code comes from that level (0 of the nearest).
        work_s: (K, U) seconds an operation of `work` (0 where a kind has fitted terms).
        term_s: (T,) seconds a unit of each fitted term.
        read_s, write_s: (K, L) seconds a byte from and to each level, the nearest first, DRAM last.
        capacity: (L - 1,) bytes of each cache.
        overlap: (K,) share of the smaller of compute and traffic that hides behind the larger (1 is a roofline,
            0 a sum).
    """

    overhead_s: F8
    cold_s: F8
    work_s: F8
    term_s: F8
    read_s: F8
    write_s: F8
    capacity: F8
    overlap: F8


class GpuRates(NamedTuple):
    """What a GPU and a runtime make of K kinds and U units.

    Attributes:
        floor_s: (K,) shortest duration of a kernel.
        work_s: (K, U) seconds an operation with every SM busy.
        byte_s: (2,) seconds a byte from L2 and from DRAM.
        l2_bytes: capacity of the last-level cache.
        sms: streaming multiprocessors.
        tile: elements of a result that one block computes.
        least_tile, depth: elements and products a sum that a block has at least, where a kernel cuts finer to fill the
            SMs.
        loss: (K,) share of the SMs that one wave of blocks leaves idle, at most 0.5.
        issue_s: seconds that the host needs to issue one kernel (0 under a CUDA graph).
    """

    floor_s: F8
    work_s: F8
    byte_s: F8
    l2_bytes: float
    sms: float
    tile: float
    least_tile: float
    depth: float
    loss: F8
    issue_s: float
