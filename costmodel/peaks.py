"""What this machine's cores can do, measured in seconds: multiply-adds in registers, bytes from each level, and how
long the system takes to give a page."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .core.malloc import PAGE

__all__ = ["fma_flops_per_s", "page_fault_s", "read_bytes_per_s", "write_bytes_per_s"]

_ACCUMULATORS = 12  # more than latency x pipes of any core (4 x 2), fewer than its vector registers
_QUANTILE = 0.2  # of seconds: shared machines have a slow state; the fast one is the machine's own


def _lanes() -> int:
    """fp32 lanes of the widest vector unit of this machine."""
    features = llvm.get_host_cpu_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx") else 4


LANES = _lanes()


def _fma_rounds_(_typing: Any, _rounds: Any) -> Any:
    """`rounds` times twelve independent vector multiply-adds in registers; returns one lane, so that none is dead."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.FloatType(), LANES)
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{LANES}f32"
        )
        before = builder.block
        loop, after = builder.append_basic_block("fma"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        i = builder.phi(ir.IntType(64))
        sums = [builder.phi(vector) for _ in range(_ACCUMULATORS)]
        factor = ir.Constant(vector, [0.5] * LANES)
        step = [builder.call(fma, [s, factor, factor]) for s in sums]
        following = builder.add(i, ir.Constant(ir.IntType(64), 1))
        i.add_incoming(ir.Constant(ir.IntType(64), 0), before)
        i.add_incoming(following, loop)
        for k, (s, new) in enumerate(zip(sums, step)):
            s.add_incoming(ir.Constant(vector, [float(k + lane) for lane in range(LANES)]), before)
            s.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", following, args[0]), loop, after)
        builder.position_at_end(after)
        total = step[0]
        for s in step[1:]:
            total = builder.fadd(total, s)
        return builder.extract_element(total, ir.Constant(ir.IntType(32), 0))

    return types.float32(types.int64), codegen


# the typing context that numba adds to the call is not in its static type
_fma_rounds: Any = intrinsic(_fma_rounds_)


@njit(nogil=True, cache=True)
def _multiply_add(rounds: int) -> float:
    return _fma_rounds(rounds)


@njit(nogil=True, cache=True)
def _read(data: npt.NDArray[np.int64], passes: int) -> int:
    total = 0
    for p in range(passes):
        for i in range(data.size):
            total += data[i] ^ p
    return total


@njit(nogil=True, cache=True)
def _write(data: npt.NDArray[np.int64], passes: int) -> int:
    for p in range(passes):
        for i in range(data.size):
            data[i] = i + p
    return data[0]


def fma_flops_per_s(threads: int = 1, seconds: float = 0.6) -> float:
    """fp32 FLOP/s of `threads` threads with operands in registers (one multiply-add is two)."""
    rounds = 200_000

    def job(n: int) -> Callable[[], Any]:
        return lambda: _multiply_add(n * rounds)

    n, best = _timed([job] * threads, seconds)
    return threads * n * rounds * _ACCUMULATORS * LANES * 2 / best


def read_bytes_per_s(working_set: int, threads: int = 1, seconds: float = 0.6) -> float:
    """Bytes a second that `threads` threads read from arrays of `working_set` bytes each."""
    return _traffic(_read, working_set, threads, seconds)


def write_bytes_per_s(working_set: int, threads: int = 1, seconds: float = 0.6) -> float:
    """Bytes a second that `threads` threads write to arrays of `working_set` bytes each."""
    return _traffic(_write, working_set, threads, seconds)


def _traffic(kernel: Any, working_set: int, threads: int, seconds: float) -> float:
    arrays = [_aligned(max(working_set // 8, 64)) for _ in range(threads)]

    def job_of(data: npt.NDArray[np.int64]) -> Callable[[int], Callable[[], Any]]:
        return lambda n: lambda: kernel(data, n)

    n, best = _timed([job_of(a) for a in arrays], seconds)
    return threads * n * arrays[0].nbytes / best


def _aligned(n: int) -> npt.NDArray[np.int64]:
    """n integers that start a cache line: elsewhere every vector load would touch two."""
    data = np.arange(n + 8, dtype=np.int64)
    start = -data.ctypes.data % 64 // 8
    return data[start : start + n]


def _timed(jobs: list[Callable[[int], Callable[[], Any]]], seconds: float) -> tuple[int, float]:
    """Repeats a job does in one timing (a millisecond's worth), and a low quantile of the seconds that takes.

    All threads start together; the slowest of them counts.
    """
    jobs[0](1)()  # compiles
    n = 1
    while True:
        start = time.perf_counter()
        jobs[0](n)()
        if time.perf_counter() - start > 1e-3 or n >= 1 << 24:
            break
        n *= 2
    barrier = Barrier(len(jobs))

    def one(job: Callable[[int], Callable[[], Any]]) -> list[float]:
        work, taken = job(n), []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
        return taken

    def started(job: Callable[[int], Callable[[], Any]]) -> float:
        barrier.wait()
        return float(np.quantile(one(job), _QUANTILE))

    with ThreadPoolExecutor(len(jobs)) as pool:
        return n, max(pool.map(started, jobs))


def page_fault_s(seconds: float = 0.6, size: int = 64 << 20) -> float:
    """Seconds to be given a page of 4 KiB, cleared, and to give it back, beyond writing to one that is there."""
    taken: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds
    while len(taken) < 3 or clock() < end:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        words = np.frombuffer(memory, np.float32)
        began = clock()
        words.fill(1.0)
        given = clock()
        words.fill(2.0)
        written = clock()
        del words
        memory.close()
        taken.append((given - began) - (written - given) + (clock() - written))
    return max(float(np.quantile(taken, _QUANTILE)) * PAGE / size, 1e-9)
