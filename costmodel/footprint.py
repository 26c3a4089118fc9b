"""Memory of a step on a device: live, reserved and resident bytes, and who holds the peak."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from .core.allocator import CACHING, Held, caching_allocator
from .core.malloc import MALLOC, SMALL, STEP_MALLOC, Malloc, glibc_malloc
from .core.memory import allocation_events, live_bytes
from .core.table import F8, I8
from .device import Number, Runtime
from .errors import CostmodelError
from .graph import OpGraph
from .lower import Lowered

__all__ = [
    "AT_PEAK", "RUNTIME_SOURCE", "Blocks", "Footprint", "Holder",
    "addresses", "blocks_of", "first_births", "fits_in", "footprint", "fresh_bytes", "has_kernels", "runtime_bytes",
    "runtime_parts",
]  # fmt: skip

# Where the bytes of the peak go, by role of their storage; the keys of `estimate --json`.
AT_PEAK = {
    "parameter": "parameters",
    "buffer": "buffers",
    "input": "inputs",
    "gradient": "gradients",
    "optimizer_state": "optimizer_state",
    "activation": "saved_activations",
    "temporary": "temporaries",
}


# Runs of a step that the allocators are followed for: the heap of malloc grows over the first few.
_STEPS = 3
# Objects of the runtime take the small chunks that malloc leaves beside tensors. Of traced processes (every malloc and
# free of training steps of gpt2-tiny, swin_tiny and mobilenetv2): in training, autograd's objects outlive the tensor
# beside them for 31 to 58 % of tensors, a third of them only just. Here one is beside each tensor, and outlives it by
# this share of a pass forward and backward at most (times u⁶ of a uniform u: most far less): of thirty settings the
# one that errs least on the training steps of the calibration half of the memory suite.
_BESIDE = 1.0
_OUTLIVES, _SKEW = 0.7, 6
# Objects that come with the first of its kind and stay: one for a gradient, the records of a storage and of its version
# for the optimizer's state, and what oneDNN keeps of a convolution, in its cache by shape.
_STAY = {"gradient": 1, "optimizer_state": 2}
_STAY_CONVOLUTION = 5
# Most of them lie side by side where small chunks were free before (in a traced inference of resnet18, 264 of them in
# some ten places among its tensors): of so many a place among tensors is theirs alone. Of 0, 1/4, 1/2 and 1, this is
# right in the mean on the calibration halves of the memory suite of two machines.
_STAY_APART = 0.25
# Which tensors these are is a throw of dice, and where a heap breaks up is chaotic: resident bytes are averaged over
# this many throws.
_THROWS = 8
# Pages that a step takes anew settle later than what is held, and differ from step to step: runs that are followed for
# them, of which those after the first `_STEPS` count, and throws.
_MANY, _FEW_THROWS = 8, 4

# What a process has resident beside what malloc holds for tensors (Python, torch, the library that the model is from,
# and the code and objects of all three that building and running a model touch), for a profile that does not say: by
# library, and more for autograd and the optimizers, where a method of this package is applied (it imports capture and
# with it torch's fake tensors and sympy), and where its kernels run (numba and LLVM load them). With `shared_` before
# it: of that, pages of library files, which processes share.
RUNTIME_SOURCE = (
    "torch 2.13.0+cpu, timm, torchvision 0.28, transformers 5.23, Python 3.11 on another machine, x86-64 with 512-bit "
    "units; `costmodel calibrate` measures those of this one"
)
_RESIDENT = {
    "timm": 385e6, "torchvision": 345e6, "transformers": 420e6, "default": 332e6,
    "train": 9e6, "method": 90e6, "kernel": 42e6,
    "shared_default": 109e6, "shared_train": 8e6, "shared_method": 52e6, "shared_kernel": 35e6,
}  # fmt: skip


@dataclass(frozen=True)
class Holder:
    """A storage that is live at the peak: its bytes, role, and the op and module that made it."""

    bytes: int
    role: str
    name: str
    op: str
    module: str


@dataclass(frozen=True, eq=False)
class Footprint:
    """Bytes of one step.

    Attributes:
        live: (n + 1,) bytes that tensors hold, before the step and during each op.
        peak_op: the op during which live bytes peak; -1 is before the step.
        peak_live, peak_reserved, peak_rss: bytes; what tensors hold, what the allocator holds, what is resident.
        at_peak: bytes at the peak by role; adds up to `peak_live`.
        holders: the largest storages at the peak.
        first_peak_live: peak of the first step, in which the optimizer's state appears.
        resident: what `peak_rss` is made of: ``runtime``, ``allocator``, ``scratch`` and ``loading``; adds up to it.
        shared: bytes of `peak_rss` that other processes map too (libraries); the rest is private.
        reserved_range: least and most that the allocator holds over the throws that were averaged.
    """

    live: I8
    peak_op: int
    peak_live: int
    peak_reserved: int
    peak_rss: int
    at_peak: dict[str, int]
    holders: tuple[Holder, ...]
    first_peak_live: int
    resident: dict[str, int]
    shared: int
    reserved_range: tuple[int, int]

    def held_at_peak(self) -> list[tuple[str, int, float]]:
        """Rows of a table that adds up: role, bytes at the peak, share of the peak; the largest first."""
        whole = max(self.peak_live, 1)
        rows = [(role, held, held / whole) for role, held in self.at_peak.items() if held]
        return sorted(rows, key=lambda row: -row[1])


@dataclass(frozen=True, eq=False)
class Blocks:
    """What the allocator is asked for in a step.

    Attributes:
        size, birth, death, first_birth: (b,) see `core.memory.allocation_events`.
        stay: (b,) small objects of the runtime that are made with its first allocation and stay.
        storage: block number of storage 0; the storages follow one another.
        ops: ops of the step.
    """

    size: I8
    birth: I8
    death: I8
    first_birth: I8
    stay: I8
    storage: int
    ops: int

    def events(self, steps: int) -> I8:
        """Allocations and frees of `steps` runs."""
        return allocation_events(self.birth, self.death, self.first_birth, self.ops, steps)


def blocks_of(lowered: Lowered) -> Blocks:
    """Storages and workspaces.

    A workspace is taken apart into copies of the op's own tensors, as far as they fill it: a library copies an operand
    into its layout, computes, and copies back. It is allocated before the outputs and freed after them.
    """
    m, graph = lowered.memory, lowered.graph
    piece_size, piece_op = _workspace_pieces(lowered)
    blocks = Blocks(
        size=np.concatenate((piece_size, m.bytes)),
        birth=np.concatenate((piece_op, m.birth)),
        death=np.concatenate((piece_op + 1, m.death)),
        first_birth=np.concatenate((piece_op, first_births(graph, m.birth))),
        stay=np.array([0] * len(piece_size) + [_STAY.get(role, 0) for role in graph.storage_role], np.int64),
        storage=len(piece_size),
        ops=len(graph),
    )
    blocks.stay[blocks.storage :][m.death < len(graph)] = 0
    blocks.stay[_made_by_convolutions(graph, blocks.birth)] += _STAY_CONVOLUTION
    return blocks


def _made_by_convolutions(graph: OpGraph, birth: I8) -> I8:
    """The first block that is born in each convolution whose shapes none before it had: oneDNN keeps one of a shape."""
    shapes = {}
    for k in range(len(graph) - 1, -1, -1):
        if graph.op_name[k].startswith("aten::") and "conv" in graph.op_name[k]:
            shapes[graph.op_name[k], *(graph.tensor_shape[t] for t in graph.op_inputs[k])] = k
    op, first = np.unique(birth, return_index=True)
    return first[np.isin(op, np.fromiter(shapes.values(), np.int64, len(shapes)))]


def _with_dropped(blocks: Blocks, event: I8, dropped: list[int]) -> tuple[Blocks, I8]:
    """Blocks of these bytes that come and go while the model is made: after its weights, before the first step.

    Malloc remembers the size of a mapping that was freed: no block up to it is mapped any more, and the heap is
    trimmed later.
    """
    n, made = len(blocks.size), np.array(dropped, np.int64)
    none = np.full(len(made), -1)
    whole = replace(
        blocks,
        size=np.concatenate((blocks.size, made)),
        birth=np.concatenate((blocks.birth, none)),
        death=np.concatenate((blocks.death, none)),
        first_birth=np.concatenate((blocks.first_birth, none)),
        stay=np.concatenate((blocks.stay, 0 * none)),
    )
    there = int(((blocks.first_birth < 0) & (blocks.birth < blocks.death)).sum())
    numbers = n + 1 + np.arange(len(made))
    return whole, np.insert(event, there, np.stack((numbers, -numbers), axis=1).ravel())


def _with_objects(blocks: Blocks, event: I8, beside: float, throw: int, passes: int = _STEPS) -> tuple[I8, I8]:
    """Events and sizes of so many forward and backward passes with small objects among them, each right after its
    tensor; some objects outlive a share `beside` of tensors."""
    dice = np.random.default_rng(throw)
    stay = dice.binomial(blocks.stay, _STAY_APART)
    e, block = len(event), np.abs(event) - 1
    made = np.flatnonzero((event > 0) & (blocks.size[block] > 0))
    freed = _next_of_block(block)
    near = made[(dice.random(len(made)) < beside) & (freed[made] < e)]
    outlived = freed[near] + _OUTLIVES * dice.random(len(near)) ** _SKEW * e / passes
    first = made[np.unique(block[made], return_index=True)[1]]
    stays = np.repeat(first, stay[block[first]])
    objects = len(blocks.size) + 1 + np.arange(len(near) + len(stays))
    when = np.concatenate((np.arange(e), near + 0.5, stays + 0.6, outlived))
    all_events = np.concatenate((event, objects, -objects[: len(near)]))
    order = np.argsort(when, kind="stable")
    order = order[when[order] < e]
    return all_events[order], np.concatenate((blocks.size, np.full(len(objects), SMALL, np.int64)))


def _next_of_block(block: I8) -> I8:
    """(e,) the next event of the same block, e if there is none."""
    e = len(block)
    order = np.argsort(block, kind="stable")
    following = np.full(e, e)
    again = block[order][1:] == block[order][:-1]
    following[order[:-1][again]] = order[1:][again]
    return following


def _workspace_pieces(lowered: Lowered) -> tuple[I8, I8]:
    """Bytes and op of each piece of each workspace, the largest tensor of the op first."""
    graph, workspace = lowered.graph, lowered.memory.workspace
    size: list[int] = []
    op: list[int] = []
    for k in np.flatnonzero(workspace):
        left = int(workspace[k])
        for like in sorted((graph.tensor_bytes(t) for t in (*graph.op_outputs[k], *graph.op_inputs[k])), reverse=True):
            if 0 < like <= left:
                size.append(like)
                left -= like
        if left:
            size.append(left)
        op += [int(k)] * (len(size) - len(op))
    return np.array(size, np.int64), np.array(op, np.int64)


def first_births(graph: OpGraph, birth: I8) -> I8:
    """Births in the first run, -1 of what was made with the model: the optimizer's state is made when the update
    starts, gradients that are kept between steps when the backward pass first adds to them."""
    n = len(graph)
    update = n
    while update > 0 and graph.op_phase[update - 1] == "optimizer":
        update -= 1
    first = birth.copy()
    if update == n:
        return first
    kept: set[int] = set()
    for s, role in enumerate(graph.storage_role):
        if role == "optimizer_state":
            first[s] = update
        elif role == "gradient" and birth[s] < 0:
            kept.add(s)
    for k in range(update if kept else 0):
        if graph.op_phase[k] == "backward":
            for s in kept.intersection(graph.tensor_storage[t] for t in graph.op_outputs[k]):
                first[s] = k
                kept.remove(s)
    return first


def addresses(lowered: Lowered, rules: Malloc = MALLOC) -> I8:
    """(s,) address of each storage in steady state as glibc places it, -1 for one that holds nothing."""
    blocks = blocks_of(lowered)
    held = glibc_malloc(blocks.events(_STEPS), blocks.size, rules)
    return held.address[blocks.storage : blocks.storage + len(lowered.memory.bytes)]


def footprint(lowered: Lowered, runtime: Runtime, weight_copies: float = 1.0) -> Footprint:
    """Replay the allocations of a step.

    Args:
        lowered: the step.
        runtime: whose allocator serves it: torch's caching allocator on a GPU, glibc malloc on a CPU.
        weight_copies: copies of parameters and buffers that exist while the model is loaded: 1 if it is built or
            mapped from a file, 2 if a state dict is read and then copied into it.

    Raises:
        CostmodelError: a size or lifetime in the trace that cannot be.
    """
    m, graph = lowered.memory, lowered.graph
    _check(m.bytes, m.birth, m.death, m.workspace)
    live = live_bytes(m.bytes, m.birth, m.death, m.workspace)
    peak_op = int(np.argmax(live)) - 1
    peak_live = int(live[peak_op + 1])
    alive = np.flatnonzero((m.birth <= peak_op) & (peak_op < m.death)) if peak_op >= 0 else np.flatnonzero(m.birth < 0)
    at_peak = dict.fromkeys((*AT_PEAK.values(), "workspace"), 0)
    for s in alive:
        at_peak[AT_PEAK[graph.storage_role[s]]] += int(m.bytes[s])
    at_peak["workspace"] = int(m.workspace[peak_op]) if peak_op >= 0 else 0
    largest = alive[np.argsort(m.bytes[alive], kind="stable")[::-1][:20]]
    holders = tuple(_holder(lowered, int(s)) for s in largest)
    runs = _held(lowered, runtime)
    reserved = [int(held.reserved.max()) for held in runs]
    base = int(runtime_bytes(graph, runtime).value)
    resident = {
        "runtime": base,
        "allocator": int(np.mean([held.resident.max() for held in runs])),
        "scratch": int(m.scratch.max(initial=0)),
        "loading": 0,
    }
    resident["loading"] = max(0, base + _loading_bytes(graph, m.bytes, weight_copies) - sum(resident.values()))
    return Footprint(
        live=live,
        peak_op=peak_op,
        peak_live=peak_live,
        peak_reserved=int(np.mean(reserved)),
        peak_rss=sum(resident.values()),
        at_peak=at_peak,
        holders=holders,
        first_peak_live=int(live_bytes(m.bytes, first_births(graph, m.birth), m.death, m.workspace).max()),
        resident=resident,
        shared=min(_shared_bytes(graph, runtime), base),
        reserved_range=(min(reserved), max(reserved)),
    )


def _loading_bytes(graph: OpGraph, size: I8, weight_copies: float) -> int:
    """Bytes of weights while the model is made, with the heads that are dropped."""
    weights = sum(int(z) for z, role in zip(size, graph.storage_role) if role in ("parameter", "buffer"))
    return int(weight_copies * weights) + sum(_dropped_heads(graph, size))


def _dropped_heads(graph: OpGraph, size: I8) -> list[int]:
    """Bytes of heads of their own: where an embedding is also the weight of the head, transformers makes one and then
    drops it."""
    read: dict[str, set[int]] = {"embedding": set(), "product": set()}
    for name, inputs in zip(graph.op_name, graph.op_inputs):
        kind = name.split(".", 1)[0].removeprefix("aten::")
        if kind == "embedding":
            read["embedding"].add(graph.tensor_storage[inputs[0]])
        elif kind in ("mm", "addmm", "matmul", "linear", "bmm"):
            read["product"].update(graph.tensor_storage[t] for t in inputs)
    tied = read["embedding"] & read["product"]
    return [int(size[s]) for s in tied if graph.storage_role[s] == "parameter"]


# So many storages are not all a step's results.
_SOME = 16


def _check(size: I8, birth: I8, death: I8, workspace: I8) -> None:
    """Values that would make the replay meaningless: a trace that is edited or cut off, a formula that is wrong."""
    for what, bad in (
        ("a storage with a negative size", size < 0),
        ("a storage that dies before it is born", death < birth),
        ("a storage born after the last op", birth >= max(len(workspace), 1)),
        ("a workspace with a negative size", workspace < 0),
        ("a storage above 2^50 bytes", size > 1 << 50),
    ):
        if bad.any():
            raise CostmodelError(f"the trace has {what} (number {int(np.argmax(bad))}); trace again")
    made = (birth >= 0) & (size > 0)
    if made.sum() >= _SOME and (death[made] >= len(workspace)).all():
        raise CostmodelError(
            f"the trace never frees: all {int(made.sum())} storages that it makes live to its end, so their deaths "
            "were lost (a hook or a list that keeps every tensor?); trace again"
        )
    if float(size.sum(dtype=float) + workspace.sum(dtype=float)) > 1 << 50:
        raise CostmodelError("the trace's storages are together above 2^50 bytes; trace again")


def _held(lowered: Lowered, runtime: Runtime) -> list[Held]:
    """What the runtime's allocator makes of the step; on a CPU, of each throw of small objects."""
    if runtime.engine == "gpu":
        blocks = blocks_of(lowered)
        return [caching_allocator(blocks.events(_STEPS), blocks.size, CACHING, 0)]
    blocks, event = _malloc_events(lowered, _STEPS)
    beside, passes = _beside(lowered), _STEPS * _micro_batches(lowered.graph)
    return [glibc_malloc(*_with_objects(blocks, event, beside, throw, passes), STEP_MALLOC) for throw in range(_THROWS)]


def _micro_batches(graph: OpGraph) -> int:
    """How often a step runs forward and backward; an object of autograd lives in one of them."""
    phase = graph.op_phase
    return max(sum(before != "backward" == after for before, after in itertools.pairwise(phase)), 1)


def _beside(lowered: Lowered) -> float:
    """Share of tensors that an object of autograd outlives."""
    return _BESIDE if lowered.graph.meta.mode == "train" else 0.0


def _malloc_events(lowered: Lowered, steps: int) -> tuple[Blocks, I8]:
    """Blocks, and the events of `steps` runs."""
    blocks = blocks_of(lowered)
    return _with_dropped(blocks, blocks.events(steps), _dropped_heads(lowered.graph, lowered.memory.bytes))


def fresh_bytes(lowered: Lowered) -> F8:
    """(n,) bytes that each op of a later step is the first to touch since the system gave them to glibc's malloc: what
    it maps anew for large blocks, and takes again of a heap that it had trimmed; in the mean of steps and throws."""
    n = len(lowered.graph)
    blocks, event = _malloc_events(lowered, _MANY)
    beside, passes = _beside(lowered), _MANY * _micro_batches(lowered.graph)
    found = np.zeros(n)
    for throw in range(_FEW_THROWS):
        events, size = _with_objects(blocks, event, beside, throw, passes)
        grown = np.maximum(np.diff(glibc_malloc(events, size, STEP_MALLOC).resident), 0)
        made = np.flatnonzero((events > 0) & (events <= len(blocks.size)))
        made = made[blocks.birth[events[made] - 1] >= 0]
        # of each block, which is made once a step: the steps after those in which the heap grows
        later = made[np.argsort(events[made], kind="stable")].reshape(-1, _MANY)[:, _STEPS:].ravel()
        found += np.bincount(blocks.birth[events[later] - 1], weights=grown[later], minlength=n)
    return found / (_FEW_THROWS * (_MANY - _STEPS))


def runtime_parts(graph: OpGraph, known: Collection[str] = ()) -> tuple[str, ...]:
    """What a process of this step has resident of its runtime, by the keys of `Runtime.resident_bytes`: the model's
    library, what the mode adds, and what the method does: by its own name where that is `known`, else what any method
    and our kernels do."""
    method = (graph.meta.method or "").partition(":")[0]
    family = graph.meta.model.partition(":")[0]
    more = {
        "train": graph.meta.mode == "train",
        method: method in known,
        "method": bool(method) and method not in known,
        "kernel": method not in known and has_kernels(graph),
    }
    return (family if family in _RESIDENT else "default", *(key for key, has in more.items() if has))


def has_kernels(graph: OpGraph) -> bool:
    """Whether a step runs a kernel of this package."""
    return any(name.startswith("costmodel::") for name in graph.op_name)


def runtime_bytes(graph: OpGraph, runtime: Runtime) -> Number:
    """Resident bytes of the process before it holds a tensor: as `costmodel calibrate` measured them, as the profile
    has them for any model, else those of another machine with this build of torch."""
    found = runtime.resident_bytes
    parts = runtime_parts(graph, found)
    if "default" in found:
        base = found.get(parts[0], found["default"])
        return base.model_copy(update={"value": base.value + sum(found[p].value for p in parts[1:] if p in found)})
    if runtime.rss_bytes is not None:
        return runtime.rss_bytes
    return Number(value=sum(_RESIDENT[p] for p in runtime_parts(graph)), kind="guess", source=RUNTIME_SOURCE)


def _shared_bytes(graph: OpGraph, runtime: Runtime) -> int:
    """Of `runtime_bytes`, those that other processes map too."""
    found = {key: number.value for key, number in runtime.resident_bytes.items()}
    known = found if "shared_default" in found else _RESIDENT
    first, *more = (f"shared_{part}" for part in runtime_parts(graph, runtime.resident_bytes))
    return int(known.get(first, known["shared_default"]) + sum(known.get(part, 0.0) for part in more))


def _holder(lowered: Lowered, storage: int) -> Holder:
    graph = lowered.graph
    birth = graph.storage_birth[storage]
    return Holder(
        bytes=graph.storage_bytes[storage],
        role=graph.storage_role[storage],
        name=graph.storage_name[storage],
        op=graph.op_name[birth] if birth >= 0 else "",
        module=graph.op_module[birth] if birth >= 0 else "",
    )


# What fits


def fits_in(lowered: Lowered, runtime: Runtime, capacity_bytes: float) -> bool:
    """Whether the step runs in `capacity_bytes`: on a GPU with its allocator giving back what it caches, as torch's
    does before it fails; on a CPU, whether what is resident is no more."""
    if runtime.engine == "gpu":
        blocks = blocks_of(lowered)
        return caching_allocator(blocks.events(_STEPS), blocks.size, CACHING, int(capacity_bytes)).failed < 0
    return footprint(lowered, runtime).peak_rss <= capacity_bytes
