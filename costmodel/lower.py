"""Graph and device to tables: finds each op's formula and algorithm class, and says which op has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from .calibrated import UNPRICED, constants_of, fit_for
from .core.table import F8, UNITS, CpuRates, GpuRates, MemoryTable, OpTable
from .costs import Cost, OpSpec, TensorSpec, formula_for
from .device import Cache, Cluster, Device, Fit, KindFit, Number, Runtime
from .errors import CostmodelError
from .graph import OpGraph

__all__ = [
    "UNPRICED",
    "Lowered",
    "class_scale_of",
    "cpu_rates",
    "gpu_rates",
    "levels_of",
    "loop_s",
    "looped",
    "lower",
    "packing_s",
    "peak_flops_per_s",
    "team_flops_per_s",
]

_DISPATCH = ("view", "allocate")
# A unit that a core does not have runs on the next one that it has.
_FALLBACK = {"int4": "int8", "int8": "fp32", "bf16": "fp32", "fp16": "fp32", "fp64": "fp32", "fp32": "fp32"}
_UNIT_OF_DTYPE = {
    "float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16", "int8": "int8", "uint8": "int8",
    "complex64": "fp32", "complex128": "fp64",
}  # fmt: skip
# Beyond what any op has: a sum of such bytes still fits 64 bits.
_MOST_BYTES, _MOST_FLOPS = 1 << 50, 1e30
# Convolutions of one channel that a loop over groups runs by transformed tiles.
_TILED = ("conv_depthwise", "conv_depthwise_channels_last")


@dataclass(frozen=True, eq=False)
class Lowered:
    """A graph as tables, for one thread count.

    Attributes:
        graph: what was lowered.
        threads: the thread count that algorithm branches were chosen for.
        costs: one `Cost` an op.
        kinds: algorithm classes by number.
        terms: (kind, term) by number.
        table, memory: the columns that enter numba.
        unpriced: why each op without a price has none, by op name, with its count.
    """

    graph: OpGraph
    threads: int
    costs: tuple[Cost, ...]
    kinds: tuple[str, ...]
    terms: tuple[tuple[str, str], ...]
    table: OpTable
    memory: MemoryTable
    unpriced: Counter[str]

    @cached_property
    def distance(self) -> F8:
        """(u,) reuse distance of each operand, in bytes."""
        return self._distances[0]

    @cached_property
    def code_distance(self) -> F8:
        """(n,) reuse distance of each op's code, over the share of a cache that code keeps, in bytes."""
        return self._distances[1]

    @cached_property
    def _distances(self) -> tuple[F8, F8]:
        from .core.traffic import step_distances

        return step_distances(self.table.use_ptr[:-1], self.table.use_storage, self.table.use_bytes, self.table.code)

    @cached_property
    def op_bytes(self) -> F8:
        """(n,) bytes of its operands that each op reads and writes."""
        own = self.table.use_bytes * (self.table.use_storage < len(self.graph.storage_bytes))
        total = np.concatenate(([0.0], np.cumsum(own)))
        return np.asarray(total[self.table.use_ptr[1:]] - total[self.table.use_ptr[:-1]])


def lower(graph: OpGraph, threads: int = 1, lanes: int = 16) -> Lowered:
    """Find the cost of every op of `graph`, on so many threads with vectors of so many fp32, laid out as columns.

    An op without a formula, or whose formula does not take its arguments, becomes class `UNPRICED` and is listed.
    """
    codes: dict[tuple[str, str], int] = {}
    code: list[int] = []
    specs = [
        TensorSpec(shape, dtype, stride)
        for shape, dtype, stride in zip(graph.tensor_shape, graph.tensor_dtype, graph.tensor_stride)
    ]
    spec_number: dict[TensorSpec, int] = {}
    numbers = [spec_number.setdefault(s, len(spec_number)) for s in specs]
    known: dict[tuple[object, ...], tuple[Cost, str]] = {}
    costs: list[Cost] = []
    unpriced: Counter[str] = Counter()
    masked: set[int] = set()  # tensors with −∞ in them, of which exp takes the library's slow path
    for name, inputs, outputs, attrs in zip(graph.op_name, graph.op_inputs, graph.op_outputs, graph.op_attrs):
        if name.startswith("aten::masked_fill") and attrs.get("value") == "-inf":
            masked.update(outputs)
        elif name in ("aten::exp", "aten::exp_") and not masked.isdisjoint(inputs):
            attrs = {**attrs, "masked": True}
        key = (name, *(numbers[t] for t in inputs), -1, *(numbers[t] for t in outputs), repr(attrs))
        found = known.get(key)
        if found is None:
            op = OpSpec(
                name.split(".", 1)[0],
                tuple(specs[t] for t in inputs),
                tuple(specs[t] for t in outputs),
                attrs,
                threads,
                lanes,
            )
            found = known[key] = _cost(op)
        costs.append(found[0])
        if found[1]:
            unpriced[found[1]] += 1
        # what a view or an allocation runs is the dispatcher, whatever its name
        ran = ("" if found[0].kind in _DISPATCH else name, found[0].kind)
        code.append(codes.setdefault(ran, len(codes)))
    return _columns(graph, threads, costs, specs, code, unpriced)


def _cost(op: OpSpec) -> tuple[Cost, str]:
    """Cost of one op, and its name if it has no price."""
    formula = formula_for(op.name)
    unknown = Cost(flops=0, kind=UNPRICED)
    if formula is None:
        return unknown, op.name
    try:
        cost = formula(op)
        read, written = cost.bytes_read(op), cost.bytes_written(op)
        if len(read) != len(op.inputs) or len(written) != len(op.outputs):
            return unknown, f"{op.name} (its formula gives bytes for another number of tensors)"
        if not all(0 <= n <= _MOST_BYTES for n in (*read, *written, cost.workspace, cost.scratch)):
            return unknown, f"{op.name} (its formula gives bytes that cannot be)"
        counts = (cost.flops, cost.flops if cost.work is None else cost.work, cost.calls, *cost.terms.values())
        if not all(0 <= n <= _MOST_FLOPS for n in counts):
            return unknown, f"{op.name} (its formula gives {cost.flops} operations)"
        if cost.unit not in ("", *UNITS):
            return unknown, f"{op.name} (its formula names the unit {cost.unit!r}; there are {', '.join(UNITS)})"
    except Exception as error:  # a trace's attributes and a user's formula are anybody's: whatever it is, it is a gap
        said = f"{type(error).__name__} {error}".partition("\n")[0]
        return unknown, f"{op.name} (its formula does not take these arguments: {said})"
    return cost, ""


def _unit(cost: Cost, inputs: tuple[int, ...], specs: list[TensorSpec]) -> str:
    if cost.unit:
        return cost.unit
    for t in inputs:
        unit = _UNIT_OF_DTYPE.get(specs[t].dtype)
        if unit:
            return unit
    return "fp32"


def _columns(
    graph: OpGraph, threads: int, costs: list[Cost], specs: list[TensorSpec], code: list[int], unpriced: Counter[str]
) -> Lowered:
    kinds: dict[str, int] = {}
    terms: dict[tuple[str, str], int] = {}
    kind, unit, work, results = [], [], [], []
    term_ptr, term, amount = [0], [], []
    use_ptr, use_storage, use_bytes, use_write = [0], [], [], []
    storage = graph.tensor_storage
    unit_number = {u: i for i, u in enumerate(UNITS)}
    for cost, inputs, outputs in zip(costs, graph.op_inputs, graph.op_outputs):
        kind.append(kinds.setdefault(cost.kind, len(kinds)))
        unit.append(unit_number[_unit(cost, inputs, specs)])
        work.append(float(cost.flops if cost.work is None else cost.work))
        for feature, value in (cost.terms or {"work": work[-1]}).items():
            term.append(terms.setdefault((cost.kind, feature), len(terms)))
            amount.append(float(value))
        term_ptr.append(len(term))
        read = [specs[t].nbytes for t in inputs] if cost.read is None else cost.read
        written = [specs[t].nbytes for t in outputs] if cost.write is None else cost.write
        for tensors, sizes, write in ((inputs, read, False), (outputs, written, True)):
            for t, size in zip(tensors, sizes):
                if size > 0:
                    use_storage.append(storage[t])
                    use_bytes.append(float(size))
                    use_write.append(write)
        if cost.workspace > 0:  # written, then read: reordered copies and partial sums
            use_storage += [len(graph.storage_bytes)] * 2
            use_bytes += [float(cost.workspace)] * 2
            use_write += [True, False]
        use_ptr.append(len(use_storage))
        results.append(max([1, *(specs[t].numel for t in outputs)]))
    table = OpTable(
        kind=np.array(kind, np.int32),
        unit=np.array(unit, np.int32),
        flops=np.array([c.flops for c in costs], np.float64),
        work=np.array(work, np.float64),
        calls=np.array([c.calls for c in costs], np.float64),
        outputs=np.array(results, np.float64),
        code=np.array(code, np.int32),
        term_ptr=np.array(term_ptr, np.int64),
        term=np.array(term, np.int32),
        amount=np.array(amount, np.float64),
        use_ptr=np.array(use_ptr, np.int64),
        use_storage=np.array(use_storage, np.int32),
        use_bytes=np.array(use_bytes, np.float64),
        use_write=np.array(use_write, np.bool_),
    )
    memory = MemoryTable(
        bytes=np.array(graph.storage_bytes, np.int64),
        birth=np.array(graph.storage_birth, np.int64),
        death=np.array(graph.storage_death, np.int64),
        workspace=np.array([c.workspace for c in costs], np.int64),
        scratch=np.array([c.scratch for c in costs], np.int64),
    )
    return Lowered(graph, threads, tuple(costs), tuple(kinds), tuple(terms), table, memory, unpriced)


# Devices to rates


def _unit_value(table: Mapping[Any, Number], unit: str) -> float:
    """The number for `unit`, or for the unit that stands in for it."""
    while unit not in table and _FALLBACK[unit] != unit:
        unit = _FALLBACK[unit]
    return float(table[unit].value if unit in table else next(iter(table.values())).value)


def peak_flops_per_s(device: Device, unit: str, threads: int) -> float:
    """Peak of `threads` cores, the fastest clusters first."""
    peak, left = 0.0, threads
    for cluster in device.cpu:
        used = min(left, int(cluster.cores.value))
        peak += used * cluster.clock_hz.value * _unit_value(cluster.flops_per_cycle, unit)
        left -= used
    return peak


def team_flops_per_s(device: Device, runtime: Runtime, unit: str, threads: int) -> float:
    """What a loop over `threads` cores runs at, where one core of the first cluster runs at its peak.

    Cut by speed, each core adds what it does; cut in equal parts, all wait for the slowest.
    """
    speeds: list[float] = []
    for cluster in device.cpu:
        used = min(threads - len(speeds), int(cluster.cores.value))
        of_peak = cluster.per_cycle.value if cluster.per_cycle else 1.0
        speeds += [cluster.clock_hz.value * _unit_value(cluster.flops_per_cycle, unit) * of_peak] * used
    return threads * min(speeds) if runtime.schedule == "static" else sum(speeds)


def levels_of(device: Device) -> tuple[str, ...]:
    """Memory levels of the CPU from L2 outwards; L1 is part of what a kernel computes at."""
    caches = tuple(f"L{c.level}" for c in _caches(device.cpu[0]))
    return (*caches, "dram")


def _caches(cluster: Cluster) -> list[Cache]:
    return sorted((c for c in cluster.cache if c.level >= 2), key=lambda c: c.level)


def _level_rates(device: Device, runtime: Runtime, threads: int) -> tuple[list[float], list[float], list[float]]:
    """Capacity of each cache, and seconds a byte to read and write at each level, for `threads` threads.

    A private cache serves each thread; DRAM serves what one core can draw times the threads, up to the share of its
    own bandwidth that software reaches.
    A cache without a bandwidth in the profile is priced like the level behind it.
    """
    share = runtime.bandwidth_efficiency.value if runtime.bandwidth_efficiency else 1.0
    m = device.memory

    def dram(total: float, of_core: float | None) -> float:
        return min(share * total, threads * of_core) if of_core else share * total

    total_write = (m.write_bytes_per_s or m.read_bytes_per_s).value
    core_read = m.core_read_bytes_per_s.value if m.core_read_bytes_per_s else None
    core_write = m.core_write_bytes_per_s.value if m.core_write_bytes_per_s else core_read
    read = [1.0 / dram(m.read_bytes_per_s.value, core_read)]
    write = [1.0 / dram(total_write, core_write)]
    capacity: list[float] = []
    for cache in reversed(_caches(device.cpu[0])):
        sharers = cache.cores.value if cache.cores else 1.0
        instances = min(-(-threads // max(sharers, 1.0)), device.cpu[0].cores.value)
        capacity.append(cache.bytes.value * instances)
        of_read = cache.read_bytes_per_s.value * threads if cache.read_bytes_per_s else None
        of_write = cache.write_bytes_per_s.value * threads if cache.write_bytes_per_s else of_read
        read.append(min(1.0 / of_read, read[-1]) if of_read else read[-1])
        write.append(min(1.0 / of_write, write[-1]) if of_write else write[-1])
    return capacity[::-1], read[::-1], write[::-1]


def efficiency_of(runtime: Runtime, kind: str) -> float:
    """Share of peak of an algorithm class: its own number, else that of the class it is a kind of, else the default.

    ``gemm_skinny`` is a ``gemm``, ``conv_depthwise_backward`` is a ``conv_depthwise`` is a ``conv``.
    """
    return runtime.efficiency[_class_in(runtime.efficiency, kind) or "default"].value


def class_scale_of(runtime: Runtime, kind: str) -> float:
    """Factor on the compute and traffic of an algorithm class; 1 where neither it nor what it is a kind of has one."""
    return _class_value(runtime.class_scale, kind, 1.0)


def _class_value(table: Mapping[str, Number], kind: str, without: float) -> float:
    name = _class_in(table, kind) or "default"
    return table[name].value if name in table else without


def _class_in(table: Mapping[str, object], kind: str) -> str:
    name = kind
    while name and name not in table:
        name = name.rpartition("_")[0]
    return name


def loop_s(lowered: Lowered, runtime: Runtime) -> F8:
    """(n,) seconds of the further library calls of each op, where a runtime loops over the groups of a convolution."""
    each = (runtime.loop_s or runtime.overhead_s).value
    return (_loops(lowered, runtime) - 1.0) * each


def looped(lowered: Lowered, runtime: Runtime) -> OpTable:
    """The table as a runtime runs it that loops over groups: a forward channel is transformed tile by tile.

    Its cost hardly depends on the kernel: 250 + 8.2 k² operations an output pixel, of each stride-1 channel (ATen's
    NNPACK path timed here at k = 3, 5, 7 on maps of 14 to 112, batch 16: 3.0, 4.1 and 5.6 ns on a peak of 118 GFLOP/s).
    """
    if runtime.grouped == "kernel":
        return lowered.table
    work = lowered.table.work.copy()
    for k, cost in enumerate(lowered.costs):
        if cost.kind in _TILED:
            taps = lowered.graph.tensor_shape[lowered.graph.op_inputs[k][1]][2:]
            work[k] = cost.flops / 2.0 * (250.0 / prod(taps) + 8.2) if taps else work[k]
    return lowered.table._replace(work=work)


def _loops(lowered: Lowered, runtime: Runtime) -> F8:
    if runtime.grouped == "kernel":
        return np.ones(len(lowered.costs))
    groups = (
        attrs.get("groups") if cost.kind.startswith("conv") else 1
        for cost, attrs in zip(lowered.costs, lowered.graph.op_attrs)
    )
    return np.fromiter((g if type(g) is int and 1 <= g <= _MOST_BYTES else 1 for g in groups), np.float64)


def packing_s(lowered: Lowered, runtime: Runtime) -> F8:
    """(n,) seconds that each convolution takes to pack its weights, in a runtime that does so at every call."""
    seconds = np.zeros(len(lowered.costs))
    if runtime.pack_bytes_per_s is None:
        return seconds
    table, roles = lowered.table, [*lowered.graph.storage_role, "workspace"]
    for k, cost in enumerate(lowered.costs):
        if cost.kind.startswith("conv"):
            for u in range(table.use_ptr[k], table.use_ptr[k + 1]):
                if not table.use_write[u] and roles[table.use_storage[u]] == "parameter":
                    seconds[k] += table.use_bytes[u] / runtime.pack_bytes_per_s.value
    return seconds


def cpu_rates(device: Device, runtime: Runtime, lowered: Lowered) -> CpuRates:
    """What `device` under `runtime` makes of the kinds and terms of `lowered`.

    A kind with fitted constants is priced by them (a sum of terms); the others by peak and bandwidth, the larger of
    compute and traffic.
    """
    threads, kinds, terms = lowered.threads, lowered.kinds, lowered.terms
    if threads > device.cores:
        raise CostmodelError(f"{device.name} has {device.cores} cores; ask for at most as many threads, not {threads}")
    fit = fit_for(runtime, threads, lowered.graph.meta.dtype)
    capacity, read, write = _level_rates(device, runtime, threads)
    names = levels_of(device)
    if fit is not None:
        capacity = [fit.capacity_bytes.get(level, size) for level, size in zip(names, capacity)]
    rates = CpuRates(
        overhead_s=np.full(len(kinds), runtime.overhead_s.value),
        cold_s=np.zeros((len(kinds), len(names))),
        work_s=np.zeros((len(kinds), len(UNITS))),
        term_s=np.zeros(len(terms)),
        read_s=np.tile(np.array(read), (len(kinds), 1)),
        write_s=np.tile(np.array(write), (len(kinds), 1)),
        capacity=np.array(capacity),
        overlap=np.ones(len(kinds)),
    )
    for k, kind in enumerate(kinds):
        constants = constants_of(fit, kind) if fit else None
        if fit is not None and constants is not None:
            _apply_fit(rates, fit, constants, k, lowered, names)
            continue
        efficiency, serial = efficiency_of(runtime, kind), _class_value(runtime.serial, kind, 0.0)
        for u, unit in enumerate(UNITS):
            one, all_threads = (team_flops_per_s(device, runtime, unit, n) for n in (1, threads))
            rates.work_s[k, u] = (serial / one + (1.0 - serial) / all_threads) / efficiency
    scale = np.array([class_scale_of(runtime, kind) for kind in kinds])
    for rate in (rates.work_s, rates.read_s, rates.write_s):
        rate *= scale[:, None]
    rates.term_s[:] *= [class_scale_of(runtime, kind) for kind, _ in terms]
    return rates


def _apply_fit(
    rates: CpuRates, fit: Fit, constants: KindFit, k: int, lowered: Lowered, levels: tuple[str, ...]
) -> None:
    """Put the constants of class number `k` into `rates`."""
    whole, between_s = fit.of_mode(lowered.graph.meta.mode)
    rates.overlap[k] = 0.0
    rates.overhead_s[k] = whole * constants.overhead_s + between_s
    # a calibration for another thread count: what is computed divides, what is overhead does not
    split = whole * fit.threads / lowered.threads
    for i, (of, term) in enumerate(lowered.terms):
        if of == lowered.kinds[k]:
            rates.term_s[i] = split * constants.term_s.get(term, 0.0)
    for j, level in enumerate(levels):
        rates.cold_s[k, j] = whole * constants.cold_s.get(level, 0.0)
        rates.read_s[k, j] = whole * constants.read_s.get(level, 0.0)
        rates.write_s[k, j] = whole * constants.write_s.get(level, 0.0)


def gpu_rates(device: Device, runtime: Runtime, lowered: Lowered) -> GpuRates:
    """What the GPU of `device` under `runtime` makes of the kinds of `lowered`.

    A profile that says nothing of waves has blocks of one element, and no wave leaves SMs idle.
    """
    gpu = device.gpu
    if gpu is None:
        raise CostmodelError(f"{device.name} has no [gpu]; its runtimes are {', '.join(device.runtime)}")
    kinds, waves = lowered.kinds, gpu.waves
    share = runtime.bandwidth_efficiency.value if runtime.bandwidth_efficiency else 1.0
    dram = gpu.dram_bytes_per_s.value * share
    work_s = np.zeros((len(kinds), len(UNITS)))
    for k, kind in enumerate(kinds):
        efficiency = efficiency_of(runtime, kind)
        for u, unit in enumerate(UNITS):
            work_s[k, u] = 1.0 / (efficiency * _unit_value(gpu.flops_per_s, unit))
    return GpuRates(
        floor_s=np.array([0.0 if kind == "view" else runtime.overhead_s.value for kind in kinds]),
        work_s=work_s,
        byte_s=np.array([1.0 / (gpu.l2_bytes_per_s.value if gpu.l2_bytes_per_s else dram), 1.0 / dram]),
        l2_bytes=gpu.l2_bytes.value,
        sms=gpu.sms.value,
        tile=waves.tile_elements.value if waves else 1.0,
        least_tile=waves.least_elements.value if waves else 1.0,
        depth=waves.split_depth.value if waves else 1.0,
        loss=np.array([waves.loss[_class_in(waves.loss, kind) or "default"].value if waves else 0.0 for kind in kinds]),
        issue_s=runtime.issue_s.value if runtime.issue_s else 0.0,
    )
