"""What a process of a runtime has resident beside its tensors: fresh processes of a few small jobs, and a fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.optimize import linprog

from ..core.table import F8
from ..device import Device, Interval, Number
from ..errors import CostmodelError
from ..estimate import Estimate, estimate
from ..footprint import first_births, has_kernels, runtime_parts
from ..graph import OpGraph
from .memory_runs import add_run, read_runs
from .resident import OTHER_FILES, MemoryJob, Resident, measure_rss

__all__ = ["largest_of", "measure_runtime_memory", "probes", "with_runtime_memory"]

Progress = Callable[[int, int, str], None]


def probes(quick: bool = False) -> tuple[MemoryJob, ...]:
    """Jobs of each library, in inference and training, and of the methods that load most; all of the half of the memory
    suite that constants may be set on, or not of the suite. A library that is not installed is left out."""
    j, ten = MemoryJob, ",num_classes=10"
    few = (
        j("mlp-small", "train", batch=64, optimizer="adamw"),
        j("conv-small", "train", batch=64, optimizer="momentum"),
        j(f"timm:mobilenetv2_100{ten}"),
        j(f"timm:resnet18{ten}", "train", batch=8, input_size="3x128x128", optimizer="momentum"),
        j("torchvision:resnet18"),
        j("transformers:llama-tiny", "decode", seq=256),
        j("mobilenet-v3-small", "train", "mobiletl:blocks=3", batch=8),
        j(f"timm:mobilenetv2_100{ten}", "train", "checkpoint", batch=8, input_size="3x160x160"),
    )
    if quick:
        return few
    return (
        *few,
        j("timm:convnext_atto", "train", batch=4, input_size="3x160x160"),
        j("torchvision:densenet121", "train", batch=2, input_size="3x128x128"),
        j("torchvision:vgg11", batch=1),
        j("mobilenet-v3-small", "train", batch=8),
        j("transformers:bert-mini", "train", seq=128, batch=4, accumulate=2),
        j("transformers:mamba-tiny", "prefill", seq=64),
        j(f"timm:mobilenetv2_100{ten}", "train", "last_layer", batch=8),
        j(f"timm:deit_tiny_patch16_224{ten}", "train", "lbp_wht:order=2", batch=4),
        j("transformers:mamba-tiny,num_hidden_layers=2", "prefill", "quamba", seq=32),
    )


_TOGETHER = 2  # processes at a time


def _attempt(job: MemoryJob) -> Resident | CostmodelError:
    try:
        return measure_rss(job)
    except CostmodelError as error:
        return error


def measure_runtime_memory(
    device: Device,
    runtime: str,
    *,
    jobs: Sequence[MemoryJob],
    threads: int = 1,
    into: Path | None = None,
    progress: Progress | None = None,
) -> Device:
    """`device` with what its runtime has resident, measured in a fresh process a job.

    Args:
        into: file of measurements (`memory_runs`) that is added to; what it holds is not measured again.

    Raises:
        CostmodelError: no job could be run.
    """
    kept = {} if into is None else read_runs(into).resident
    wanted = [replace(job, threads=threads) for job in jobs]
    runs = {job: list(kept[job.name]) for job in wanted if kept.get(job.name)}
    missing = [job for job in wanted if job not in runs]
    said = ""
    with ThreadPoolExecutor(_TOGETHER) as pool:  # memory is what is measured, so one process does not disturb another
        for done, (job, found) in enumerate(zip(missing, pool.map(_attempt, missing)), 1):
            if progress is not None:
                progress(done, len(missing), f"memory of {job.name}")
            if isinstance(found, CostmodelError):
                said = str(found)
                continue
            runs[job] = [found]
            if into is not None:
                add_run(into, job, found)
    if not runs:
        raise CostmodelError(f"no process could be measured: {said}")
    return with_runtime_memory(device, runtime, runs)


def with_runtime_memory(device: Device, name: str, runs: Mapping[MemoryJob, Sequence[Resident]]) -> Device:
    """`device` with `resident_bytes` of runtime `name` fitted to fresh processes, by least absolute deviations relative
    to their peaks of what they had resident beside tensors; and the interval of peaks with what malloc is simulated to
    hold of those."""
    runtime = device.runtime[name]
    bare = device.model_copy(update={"runtime": {name: runtime.model_copy(update={"resident_bytes": {}})}})
    peak = np.array([float(np.median([r.peak for r in of_job])) for of_job in runs.values()])
    shared = np.array([float(np.median([r.shared for r in of_job])) for of_job in runs.values()])
    found = [largest_of(job, bare, name) for job in runs]
    tensors = np.array([float(f.footprint.peak_rss - f.footprint.resident["runtime"]) for f in found])
    kernels = {job.method.partition(":")[0]: has_kernels(f.graph) for job, f in zip(runs, found) if job.method}
    parts = [runtime_parts(f.graph, kernels) for f in found]
    each = zip(found, runs.values())
    beside = [float(np.median([_beside_tensors(run, f.graph) for run in of_job])) for f, of_job in each]
    own = _fitted(parts, np.array(beside), peak)
    of_files = _fitted(parts, shared, peak)
    own.setdefault("default", min(own[p[0]] for p in parts))
    of_files.setdefault("default", min(of_files[p[0]] for p in parts))
    for of_part in (own, of_files):
        of_part |= _any_method({name: (of_part[name], runs_ours) for name, runs_ours in kernels.items()})
    left = np.log(peak / (tensors + [sum(own[key] for key in of_job) for of_job in parts]))
    wide = max(1.2 * float(np.abs(left).max()), 0.05)
    key = "resident"
    numbers = {
        f"{prefix}{part}": Number(value=round(value), kind="measured", source=key)
        for prefix, values in (("", own), ("shared_", of_files))
        for part, value in values.items()
    }
    interval = Interval(low=-wide, high=wide, cases=len(runs), kind="fitted", source=key)
    files = {
        name: Number(value=value, kind="measured", source=key) for name, value in _shared_files(runs.values()).items()
    }
    changed = runtime.model_copy(
        update={
            "resident_bytes": numbers,
            "shared_files": files,
            "interval": {**runtime.interval, "peak_rss": interval},
        }
    )
    said = (
        f"fresh processes of {len(runs)} jobs ({sum(map(len, runs.values()))} runs): resident when the model was made, "
        f"less its tensors, and what steps added beside malloc (costmodel.measure.runtime_memory); {_versions()}"
    )
    return device.model_copy(
        update={"runtime": {**device.runtime, name: changed}, "sources": {**device.sources, key: said}}
    )


def _any_method(known: Mapping[str, tuple[float, bool]]) -> dict[str, float]:
    """What a method that was not measured adds, and kernels of this package beyond it, in the middle of those that
    were: bytes of each, and whether it runs such kernels."""
    plain = [value for value, runs_ours in known.values() if not runs_ours]
    ours = [value for value, runs_ours in known.values() if runs_ours]
    found = {"method": float(np.median(plain or ours))} if known else {}
    if ours:
        found["kernel"] = max(float(np.median(ours)) - found["method"], 0.0)
    return found


def _beside_tensors(run: Resident, graph: OpGraph) -> int:
    """Resident bytes of a process that are no tensor's and that no tensor can have: when the model is made, all but its
    weights, its inputs and what malloc has free; and what comes in beside malloc (code, its data) while steps run.

    Measured this way and not as what is left of the peak, which has in it by how much the simulated heap is off.
    """
    loaded, steady = run.stages["loaded"], run.stages["steady"]
    made = first_births(graph, np.array(graph.storage_birth, np.int64)) < 0
    tensors = int(np.array(graph.storage_bytes, np.int64)[made].sum())
    return loaded.rss - loaded.free - tensors + steady.beside - loaded.beside


def _shared_files(runs: Iterable[Sequence[Resident]]) -> dict[str, float]:
    """Median bytes that processes share of each large library file that most of the runs mapped, the largest first."""
    known = [run for of_job in runs for run in of_job if run.files]
    found: dict[str, list[int]] = {}
    for run in known:
        for name, mapped in run.files.items():
            if name != OTHER_FILES:
                found.setdefault(name, []).append(mapped.shared)
    middle = {name: float(np.median(each)) for name, each in found.items() if 2 * len(each) > len(known)}
    return dict(sorted(middle.items(), key=lambda item: -item[1]))


def largest_of(job: MemoryJob, device: Device, runtime: str | None) -> Estimate:
    """The estimate of whatever has most resident in a process of `job`: to decode, it has filled its cache before."""
    steps = (job, replace(job, mode="prefill")) if job.mode == "decode" else (job,)
    found = [estimate(step.trace(), device, runtime=runtime, threads=step.threads) for step in steps]
    return max(found, key=lambda e: e.memory.peak_rss.point)


def _fitted(parts: Sequence[Sequence[str]], value: F8, scale: F8) -> dict[str, float]:
    """Bytes of each part, none negative, whose sums are nearest to `value` in units of `scale`."""
    keys = list(dict.fromkeys(key for of_job in parts for key in of_job))
    has = np.array([[key in of_job for key in keys] for of_job in parts], float)
    n, k, unit = len(value), len(keys), 1e8
    answer = linprog(
        np.concatenate((np.zeros(k), unit / scale, unit / scale)),
        A_eq=np.hstack((has, np.eye(n), -np.eye(n))),
        b_eq=value / unit,
        bounds=[(0, None)] * (k + 2 * n),
    )
    if answer.x is None:  # it always has a solution
        raise CostmodelError(f"the memory of the runtime cannot be fitted: {answer.message}")
    return dict(zip(keys, map(float, answer.x[:k] * unit)))


def _versions() -> str:
    from importlib.metadata import version
    from importlib.util import find_spec

    names = ("torch", "timm", "torchvision", "transformers", "numba")
    return ", ".join(f"{name} {version(name)}" for name in names if find_spec(name) is not None)
