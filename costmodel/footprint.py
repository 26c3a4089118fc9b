"""Memory of a step on a device: live, reserved and resident bytes, and who holds the peak."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .core.memory import live_bytes
from .core.table import I8
from .device import Runtime
from .lower import Lowered

__all__ = ["AT_PEAK", "Footprint", "Holder", "footprint"]

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
    """

    live: I8
    peak_op: int
    peak_live: int
    peak_reserved: int
    peak_rss: int
    at_peak: dict[str, int]
    holders: tuple[Holder, ...]


def footprint(lowered: Lowered, runtime: Runtime) -> Footprint:
    """Replay the allocations of a step."""
    m, graph = lowered.memory, lowered.graph
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
    reserved = peak_live
    base = int(runtime.rss_bytes.value) if runtime.rss_bytes else 0
    scratch = int(m.scratch.max(initial=0))
    return Footprint(live, peak_op, peak_live, reserved, reserved + base + scratch, at_peak, holders)


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
