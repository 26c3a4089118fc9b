"""From a row of somebody's table to the op graph of what was run: names resolved, step rebuilt, trace kept."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from dataclasses import replace
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path

from ..device import Device
from ..errors import CostmodelError, FileError
from ..estimate import Estimate, Range, estimate
from ..fewshot import sample_seconds
from ..graph import OpGraph, load
from ..models import available, resolve_alias
from ..runs import Run, runtime_for
from .job import Job

__all__ = ["estimate_of_run", "graph_of_run", "job_of", "trace_cache", "traced"]

# What tables call a precision, and the dtype of the step that is rebuilt for it.
_DTYPES = {"amp-fp16": "float16", "amp-bf16": "bfloat16", "auto": "float32"}
_SPEC_MARKS = (":", "/", ".pt2", ".py")
_IN_MEMORY = 24  # graphs: tables of many boards are of the same nets


def job_of(run: Run) -> Job:
    """The step that `run` measured, as options of the command line.

    A name with a family (``timm:…``) and one of our own models are specs already; any other is looked up in the table
    of what published files call it. Without a batch it is 1.

    Raises:
        CostmodelError: says why the row cannot be rebuilt.
    """
    dtype = _DTYPES.get(run.dtype, run.dtype)
    if dtype not in ("float32", "float16", "bfloat16", "float64"):
        raise CostmodelError(f"dtype {run.dtype!r} has no rebuild: the network was quantized by the runtime")
    tokens = run.input_size.removeprefix("seq") if run.input_size.startswith("seq") else ""
    return Job(
        model=run.model if _is_spec(run) else resolve_alias(run.model, run.meta.get("source") or None),
        mode=run.mode,
        method=run.method,
        batch=run.batch or 1,
        input_size=None if tokens else run.input_size or None,
        seq=int(tokens) if tokens.isdigit() else None,
        dtype=dtype,
        threads=run.threads or 1,
    )


def graph_of_run(run: Run) -> OpGraph:
    """The op graph of what `run` measured, from the cache of traces or traced now."""
    return traced(job_of(run))


def estimate_of_run(run: Run, device: Device, runtime: str | None = None) -> Estimate:
    """What `device` should take for what `run` measured.

    Without a thread count it is one a core of the fastest cluster, which is what torch starts; without a runtime it
    is the one that the row's framework means. A row that includes reading its samples gets the time for that too.

    Raises:
        CostmodelError: the row cannot be rebuilt, or its framework is none of the device's.
    """
    name = runtime or runtime_for(device, run.runtime, run.meta.get("accel", ""))
    threads = min(run.threads or int(device.cpu[0].cores.value), device.cores)
    allocator = run.meta.get("allocator", "default")
    found = estimate(graph_of_run(run), device, runtime=name, threads=threads, allocator=allocator)
    reading = sample_seconds(run, device.runtime[name])
    if not reading:
        return found
    t = found.latency_s
    more = 1.0 + reading / t.point
    return replace(found, latency_s=Range(t.low * more, t.point * more, t.high * more))


def traced(job: Job) -> OpGraph:
    """The trace of a job, kept in `trace_cache`; weights are never made (they are on the meta device)."""
    path = trace_cache() / f"{_key(job)}.json.gz"
    if path.exists():
        try:
            return _kept(path)
        except FileError:
            path.unlink(missing_ok=True)  # an older format
    graph = _trace(job)
    graph.save(path)
    return graph


@lru_cache(maxsize=_IN_MEMORY)
def _kept(path: Path) -> OpGraph:
    return load(path)


def trace_cache() -> Path:
    """Folder of cached traces: ``$COSTMODEL_HOME/traces``, else the user's cache."""
    home = os.environ.get("COSTMODEL_HOME")
    return (Path(home) if home else user_cache_path("costmodel", appauthor=False)) / "traces"


def _trace(job: Job) -> OpGraph:
    try:
        return job.trace(device="meta")
    except CostmodelError:
        raise
    except (NotImplementedError, RuntimeError, TypeError, ValueError, AssertionError):
        return job.trace()  # initialisers that need values: build it for real


def _key(job: Job) -> str:
    what = {k: v for k, v in job.as_dict().items() if k not in ("threads", "allocator")}  # a graph depends on neither
    libraries = {name: version(name) for name in ("torch", "timm", "torchvision", "transformers") if _installed(name)}
    text = json.dumps([_code_of(*_TRACER), what, libraries, *_made_by(job)], sort_keys=True)
    stem = "".join(c if c.isalnum() else "_" for c in job.name)[:60]
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


# What makes traces: after a change of its code (not of its comments), older ones are not read.
_TRACER = ("capture.py", "fakes.py", "graph.py", "inplace.py", "models/step.py")


def _made_by(job: Job) -> list[str]:
    """What else decides a trace: code of ours that makes the net or changes it, and a file or folder of the user's."""
    found = [] if ":" in job.model else [_code_of("models/*.py")]
    if job.method:
        found.append(_code_of("methods/**/*.py"))
    for name in {job.model, job.model.rpartition(":")[0], job.model.partition(":")[2]}:
        if name and os.path.exists(name):  # False, not an error, for what cannot be a path
            path = Path(name)
            inside = path.iterdir() if path.is_dir() else [path]
            found += [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in inside if p.is_file()]
    return sorted(found)


@cache
def _code_of(*patterns: str) -> str:
    """A digest of the code in files of this package, without comments and docstrings."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(p for pattern in patterns for p in package.glob(pattern)):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
                node.body = node.body[1:]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def _installed(name: str) -> bool:
    try:
        version(name)
    except ImportError:  # PackageNotFoundError is one
        return False
    return True


def _is_spec(run: Run) -> bool:
    """Whether a row names a model as the command line does: with a family, a file, or one of our own."""
    own = not run.meta.get("source") and run.model.split(",")[0] in available(["own"])["own"]
    return own or any(mark in run.model for mark in _SPEC_MARKS)
