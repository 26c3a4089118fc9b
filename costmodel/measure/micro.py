"""Isolated ops timed in several states of the caches: what `calibrate` fits.

**hot**: the op again and again. **between**: after a dozen other ops, which leave its code and weights to L3, with the
activations and the memory of the output touched again: what a model's layer finds. **warm**: the same after 64 MB of
other data, which leave code and weights to DRAM. **cold**: after the 64 MB, the inputs not touched, and the output's
memory touched for every other point, which tells reading from writing. The fit separates where code comes from and
where data do because it sees the states together (LATENCY.md, micro-benchmark design and Next 1).

An op of which a model runs layer after layer and nothing between (generation) is timed hot and **rotated**: copies of
its weights in turn, as many as make 64 MB. They come from DRAM at the rate that it keeps up, activations and code from
where the last layer left them. After 64 MB of a plain sum the same op takes up to 1.5 times as long as in generation.

``python -m costmodel.measure.micro`` is the process that measures: it writes one JSON line a point to a file, and goes
on where an earlier run was stopped.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..capture import Recorder
from ..errors import CostmodelError
from ..graph import OpGraph
from . import micro_conv, micro_maps, micro_methods, micro_ops, micro_ssm
from .latency import pinned_allocator, reference_spin
from .micro_ops import Call, Shapes

__all__ = ["FLUSH_BYTES", "GENERATORS", "measure_points", "plan"]

# More than the last-level cache of any device here: what is not touched after it comes from DRAM.
FLUSH_BYTES = 64 << 20
# name -> (generator, share of the points, used by training only)
GENERATORS = {
    **micro_ops.GENERATORS,
    **micro_conv.GENERATORS,
    **micro_maps.GENERATORS,
    **micro_methods.GENERATORS,
    **micro_ssm.GENERATORS,
}
_REPEATS = {"hot": 9, "between": 4, "warm": 2, "cold": 2}
_MOST_LAYERS = 64


def plan(points: int, train: bool) -> list[tuple[str, int]]:
    """Generator and seed of each point, spread evenly, so that a run cut short has some of each."""
    names = [n for n, (_, _, training) in GENERATORS.items() if train or not training]
    share = np.array([GENERATORS[n][1] for n in names])
    counts = np.maximum(2, np.round(points * share / share.sum())).astype(int)
    slots = [((i + 0.5) / count, name, i) for name, count in zip(names, counts) for i in range(count)]
    return [(name, i) for _, name, i in sorted(slots)]


def _touch(value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value.sum()
    elif isinstance(value, (list, tuple)):
        for item in value:
            _touch(item)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _describe(call: Call) -> dict[str, Any] | None:
    """The op as it is traced: name, tensors, attributes, the storage and coldness of each operand; None for several."""
    graph = OpGraph()
    recorder = Recorder(graph)
    with recorder:
        call.func(*call.args)
    recorder.close()
    if len(graph) != 1:
        return None
    weight = [i in call.weights for i, value in enumerate(call.args) for _ in _tensors(value)]

    def tensor(number: int) -> list[Any]:
        g = graph
        return [list(g.tensor_shape[number]), g.tensor_dtype[number], list(g.tensor_stride[number])]

    inputs = graph.op_inputs[0]
    return {
        "op": graph.op_name[0],
        "inputs": [tensor(t) for t in inputs],
        "outputs": [tensor(t) for t in graph.op_outputs[0]],
        "attrs": graph.op_attrs[0],
        "storage": [graph.tensor_storage[t] for t in (*inputs, *graph.op_outputs[0])],
        "weight": weight,
    }


class Others:
    """A dozen ops of a net, each of another kernel, on tensors of some `bytes` together: what runs between two of a
    kind."""

    def __init__(self) -> None:
        rand, aten = torch.rand, torch.ops.aten
        image, tokens = rand(1, 32, 40, 40), rand(96, 256)
        calls: list[tuple[Any, tuple[Any, ...]]] = [
            (aten.convolution.default, (image, rand(32, 32, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)),
            (aten.native_batch_norm.default, (image, *(rand(32) for _ in range(4)), False, 0.1, 1e-5)),
            (aten.relu.default, (rand(1, 32, 40, 40),)),
            (aten.max_pool2d_with_indices.default, (rand(1, 16, 32, 32), [2, 2], [2, 2])),
            (aten.add.Tensor, (rand(200_000), rand(200_000))),
            (aten.mm.default, (tokens, rand(256, 256))),
            (aten.native_layer_norm.default, (rand(96, 256), [256], rand(256), rand(256), 1e-5)),
            (aten._softmax.default, (rand(4, 64, 64), -1, False)),
            (aten.gelu.default, (rand(96, 256),)),
            (aten.bmm.default, (rand(4, 64, 32), rand(4, 32, 64))),
            (aten.cat.default, ([rand(1, 16, 40, 40), rand(1, 16, 40, 40)], 1)),
            (aten.clone.default, (rand(128, 256).t(),)),
            (aten.mean.dim, (rand(1, 64, 40, 40), [2, 3])),
        ]
        self.calls = calls
        touched = [t for func, args in calls for t in _tensors([*args, func(*args)])]
        self.bytes = float(sum(t.nbytes for t in {id(t): t for t in touched}.values()))

    def run(self, func: Any) -> None:
        """All of them but those of `func`'s own operator."""
        name = func.name().partition(".")[0]
        for other, args in self.calls:
            if other.name().partition(".")[0] != name:
                other(*args)


def _time_point(call: Call, others: Others, flush: np.ndarray, cold_output: bool) -> dict[str, Any]:
    """Seconds of the repeats in each state, and of the reference spin before and after it."""
    func, args = call.func, call.args
    clock = time.perf_counter_ns
    activations = [a for i, a in enumerate(args) if i not in call.weights]
    result: dict[str, Any] = {state: [] for state in _REPEATS}
    spins = result["spin"] = {"hot": [reference_spin()]}
    func(*args)
    func(*args)
    spent = 0.0
    for repeat in range(_REPEATS["hot"]):
        t0 = clock()
        func(*args)
        result["hot"].append((clock() - t0) / 1e9)
        spent += result["hot"][-1]
        if spent > 0.15 and repeat >= 2:
            break
    spins["hot"].append(reference_spin())
    if result["hot"][-1] > 0.05:  # larger than any cache: the states are the same
        return result
    for state in ("between", "warm", "cold"):
        spins[state] = [reference_spin()]
        for _ in range(_REPEATS[state]):
            out = func(*args)  # where the next output goes: freed below, taken again by the timed call
            if state == "between":
                others.run(func)
            else:
                flush.sum()
            if state != "cold":
                _touch(activations)
            if state != "cold" or not cold_output:
                for t in _tensors(out):
                    t.fill_(1) if t.numel() else None
            del out
            t0 = clock()
            func(*args)
            result[state].append((clock() - t0) / 1e9)
        spins[state].append(reference_spin())
    return result


def _time_layers(call: Call, again: Callable[[], tuple[Any, ...]]) -> dict[str, Any]:
    """Seconds of one layer again and again, and of each of many in turn; the bytes of the others' weights."""
    own = sum(t.nbytes for i in call.weights for t in _tensors(call.args[i]))
    layers = [call.args, *(again() for _ in range(min(_MOST_LAYERS, max(-(-FLUSH_BYTES // own), 2)) - 1))]
    clock = time.perf_counter_ns

    def timed(order: Sequence[tuple[Any, ...]]) -> list[float]:
        seconds = []
        for args in order:
            t0 = clock()
            call.func(*args)
            seconds.append((clock() - t0) / 1e9)
        return seconds

    spins = [reference_spin()]
    hot = timed([call.args] * (2 + _REPEATS["hot"]))[2:]
    spins.append(reference_spin())
    timed(layers)
    rotated = timed(layers * 2)
    spins.append(reference_spin())
    return {
        "hot": hot,
        "rotated": rotated,
        "rotated_bytes": float(own * (len(layers) - 1)),
        "spin": {"hot": spins[:2], "rotated": spins[1:]},
    }


def _run(path: Path, points: int, train: bool, threads: int, dtype: torch.dtype, seconds: float) -> None:
    """Measure what `path` does not hold yet, a line a point, until done or out of time."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    done = {(p["generator"], p["seed"]) for p in read_points(path)}
    todo = [p for p in plan(points, train) if p not in done]
    flush, others = np.ones(FLUSH_BYTES // 8), Others()
    gc.disable()
    end = time.monotonic() + seconds
    with open(path, "a") as file, torch.no_grad():
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")  # a line that a kill cut off takes none with it
        for n, (name, seed) in enumerate(todo):
            if time.monotonic() > end:
                break
            shapes = Shapes(hash_seed(name, seed), dtype)
            call = GENERATORS[name][0](shapes)
            described = _describe(call)
            if described is not None:
                cold_output = seed % 2 == 0
                if call.again is None:
                    timed = _time_point(call, others, flush, cold_output)
                else:
                    timed = _time_layers(call, call.again)
                state = {"cold_output": cold_output, "between_bytes": others.bytes}
                line = {"generator": name, "seed": seed, **described, **state, **timed}
                file.write(json.dumps(line) + "\n")
                file.flush()
            sys.stdout.write(f"{len(done) + n + 1} {len(done) + len(todo)} {name}\n")
            sys.stdout.flush()


def hash_seed(name: str, seed: int) -> int:
    """The same number for the same point on every machine (`hash` of a string is not)."""
    return sum(ord(c) * 131**i for i, c in enumerate(name)) % (1 << 31) + 7919 * seed


def read_points(path: Path) -> list[dict[str, Any]]:
    """Points measured so far; a line that was cut off by a kill is dropped."""
    points = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                points.append(json.loads(line))
            except ValueError:
                continue
    return points


def measure_points(
    path: Path,
    *,
    points: int,
    train: bool,
    threads: int = 1,
    dtype: str = "float32",
    seconds: float = 185.0,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[dict[str, Any]]:
    """Measure isolated ops in a fresh process, into `path`, which an interrupted run leaves usable.

    Args:
        path: JSON lines; what is there is kept and not measured again.
        points: about how many in all.
        train: also the ops that only training runs.
        threads, dtype: of torch.
        seconds: stop after that.
        progress: called with done, total and the generator's name.

    Returns:
        Every point in `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    request = {"path": str(path), "points": points, "train": train, "threads": threads, "dtype": dtype}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **pinned_allocator()}
    command = [sys.executable, "-m", "costmodel.measure.micro", json.dumps({**request, "seconds": seconds})]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            done, total, name = line.split()
            if progress is not None:
                progress(int(done), int(total), name)
        _, said = process.communicate()
    if process.returncode:
        last = said.strip().splitlines()[-1] if said.strip() else f"status {process.returncode}"
        raise CostmodelError(f"the calibrating process died: {last}; what it measured is kept, run the command again")
    return read_points(path)


if __name__ == "__main__":
    _request = json.loads(sys.argv[1])
    _run(
        Path(_request["path"]),
        _request["points"],
        _request["train"],
        _request["threads"],
        getattr(torch, _request["dtype"]),
        _request["seconds"],
    )
