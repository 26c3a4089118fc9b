"""A mutation fuzzer over every file that a user can hand in: profiles, traces, runs, budgets, tables, .pt2, ONNX.

``make fuzz`` (``python -m tests.fuzz.fuzz 10000``) is the long form: that many inputs of each kind, and a tally.
`tests/test_fuzz.py` is the small form. Whatever the input, a door answers with a result whose figures can be, or with
one line (`CostmodelError`). Another exception, a hang, more memory than `MEMORY_BYTES`, a file left behind, or a
process, socket or file that reading the input opened is a failure, printed with the seed that makes it again.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from costmodel import toml
from costmodel.budget import load_budget
from costmodel.device import Device, load_device
from costmodel.errors import CostmodelError
from costmodel.estimate import Estimate, estimate
from costmodel.graph import GraphMeta, OpGraph, load
from costmodel.runs import read_runs

from .listen import watched
from .mutate import mutate_bytes, mutate_cells, mutate_document

PROFILES = Path(__file__).parents[2] / "hwprofiles"
HANG_S = (20.0, 300.0)  # seconds of processor, and of the clock, that one input may take
MEMORY_BYTES = 2 << 30  # that the long form may map above what it starts with


# Inputs that are right, to start from


@cache
def graph() -> OpGraph:
    """Eight ops of a small training step, by hand: no torch is needed to make it."""
    g = OpGraph(GraphMeta("hand made", "train", batch=4, optimizer="sgd", producer="by hand"))

    def tensor(shape: tuple[int, ...], role: str, birth: int, death: int) -> int:
        stride: tuple[int, ...] = ()
        step = 1
        for n in reversed(shape):
            stride, step = (step, *stride), step * n
        g.storage_bytes.append(4 * step)
        g.storage_role.append(role)
        g.storage_birth.append(birth)
        g.storage_death.append(death)
        g.storage_name.append("w" if role == "parameter" else "")
        g.tensor_storage.append(len(g.storage_bytes) - 1)
        g.tensor_offset.append(0)
        g.tensor_shape.append(shape)
        g.tensor_stride.append(stride)
        g.tensor_dtype.append("float32")
        return len(g.tensor_storage) - 1

    def op(name: str, phase: str, inputs: tuple[int, ...], outputs: tuple[int, ...], **attrs: Any) -> None:
        g.op_name.append(name)
        g.op_phase.append(phase)
        g.op_module.append("conv" if "conv" in name else "head")
        g.op_inputs.append(inputs)
        g.op_outputs.append(outputs)
        g.op_attrs.append(attrs)

    x, w = tensor((4, 3, 16, 16), "input", -1, 8), tensor((8, 3, 3, 3), "parameter", -1, 8)
    y, z = tensor((4, 8, 16, 16), "activation", 0, 6), tensor((4, 8, 16, 16), "activation", 1, 6)
    head, out = tensor((2048, 10), "parameter", -1, 8), tensor((4, 10), "temporary", 2, 5)
    p, gw = tensor((4, 10), "temporary", 3, 5), tensor((2048, 10), "gradient", 5, 8)
    gz, gy = tensor((4, 2048), "temporary", 4, 6), tensor((4, 8, 16, 16), "temporary", 5, 7)
    gc = tensor((8, 3, 3, 3), "gradient", 6, 8)
    flat = len(g.tensor_storage)
    g.tensor_storage.append(g.tensor_storage[z])
    g.tensor_offset.append(0)
    g.tensor_shape.append((4, 2048))
    g.tensor_stride.append((2048, 1))
    g.tensor_dtype.append("float32")
    conv = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "transposed": False}
    op("aten::convolution", "forward", (x, w), (y,), **conv)
    op("aten::relu", "forward", (y,), (z,))
    op("aten::mm", "forward", (flat, head), (out,))
    op("aten::_softmax", "forward", (out,), (p,), dim=1, half_to_float=False)
    op("aten::mm", "backward", (p, head), (gz,))
    op("aten::threshold_backward", "backward", (z, y), (gy,), threshold=0)
    op("aten::convolution_backward", "backward", (gy, x, w), (gc,), output_mask=[False, True, False], **conv)
    op("aten::_foreach_add_", "optimizer", (w, head, gc, gw), (w, head), alpha=-0.001)
    g.storage_birth[g.tensor_storage[gw]] = 5
    return g.check()


@cache
def trace_document() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return dict(json.loads(gzip.decompress(graph().save(Path(folder) / "g.json.gz").read_bytes())))


@cache
def board() -> Device:
    return load_device("raspberry-pi-4b")


@cache
def accelerator() -> Device:
    return load_device("jetson-nano")


BUDGET = """schema = 1
[[budget]]
model = "timm:mobilenetv2_100"
device = "raspberry-pi-4b"
mode = "train"
batch = 8
threads = 4
latency = "2.5 s"
memory = "1 GiB"
[[budget]]
model = "mlp-small"
device = "raspberry-pi-5"
latency = 0.05
memory_live = 1073741824
energy = "9 J"
"""
RUNS = '''model,task,method,batch,input_size,dtype,device,framework,threads,latency_ms,peak_memory_bytes,energy_mj,meta
resnet18,infer,,1,3x224x224,fp32,Raspberry Pi 4B,torch eager,4,412.5,131072000,,"{""torch"": ""2.9""}"
resnet18,infer,,1,3x224x224,fp32,Raspberry Pi 4B,torch eager,4,430.0,,,
mobilenetv2,finetune-head,,8,3x224x224,fp32,Raspberry Pi 4B,torch eager,1,1999.9,,5000,
"a,""b""",train,lbp_wht:order=4,16,seq128,bf16,Raspberry Pi 4B,ncnn,2,3,1,2,
'''
POINTS = """name,accuracy,accuracy_error,metric,model,method,mode,batch,higher_is_better
full,0.91,0.01,accuracy,{trace},,infer,1,true
cheap,0.88,0.02,accuracy,{trace},half,infer,1,true
"""


# Doors: a file's bytes in, checked figures or a CostmodelError out


def check_estimate(e: Estimate) -> None:
    """Figures that cannot be are a failure, whatever the input was."""
    document = e.as_dict()
    json.dumps(document, allow_nan=False)
    for figure in (
        document["latency_s"],
        *(document["memory_bytes"][k] for k in ("peak_live", "peak_reserved", "peak_rss")),
    ):
        assert 0 <= figure["low"] <= figure["point"] <= figure["high"] < math.inf, figure
    assert document["flops"] >= 0, document["flops"]
    assert document["bytes_moved"] >= 0, document["bytes_moved"]
    assert sum(document["memory_bytes"]["at_peak"].values()) == document["memory_bytes"]["peak_live"]["point"]
    assert 0 <= document["coverage"]["time"] <= 1 + 1e-9, document["coverage"]


def open_profile(path: Path) -> None:
    device = load_device(path)
    for runtime in device.runtime:
        check_estimate(estimate(graph(), device, runtime=runtime))


def open_trace(path: Path) -> None:
    loaded = load(path)
    check_estimate(estimate(loaded, board(), threads=2))
    check_estimate(estimate(loaded, accelerator()))


def open_runs(path: Path) -> None:
    for run in read_runs(path, board()).runs:
        assert 0 < run.latency_s < math.inf, run


def open_budget(path: Path) -> None:
    for entry in load_budget(path).budget:
        assert all(0 < limit < math.inf for limit in entry.limits.values()), entry


def open_points(path: Path) -> None:
    from costmodel.pareto import pareto
    from costmodel.tasks.points import table_points

    for front in pareto(table_points(path, [board()])).values():
        assert any(front.optimal)
        assert math.isfinite(front.hypervolume)


def make_profile(rng: random.Random, _folder: Path) -> tuple[str, bytes]:
    source = PROFILES / rng.choice(("raspberry-pi-4b.toml", "jetson-nano.toml", "i9-10940x.toml", "a100.toml"))
    if rng.random() < 0.4:
        return "p.toml", mutate_bytes(source.read_bytes(), rng)
    document = mutate_document(tomllib.loads(source.read_text()), rng)
    with contextlib.suppress(TypeError, ValueError, UnicodeError):
        return "p.toml", toml.dumps(document).encode("utf-8", "surrogatepass")
    return "p.toml", mutate_bytes(source.read_bytes(), rng)


def make_trace(rng: random.Random, _folder: Path) -> tuple[str, bytes]:
    how = rng.random()
    if how < 0.2:  # in the packed bytes
        packed = gzip.compress(json.dumps(trace_document()).encode(), mtime=0)
        return "t.json.gz", mutate_bytes(packed, rng)
    if how < 0.4:
        return "t.json", mutate_bytes(json.dumps(trace_document()).encode(), rng)
    return "t.json", json.dumps(mutate_document(trace_document(), rng)).encode()


def make_runs(rng: random.Random, _folder: Path) -> tuple[str, bytes]:
    text = (
        mutate_cells(RUNS, rng).encode("utf-8", "surrogatepass")
        if rng.random() < 0.6
        else mutate_bytes(RUNS.encode(), rng)
    )
    return ("r.csv.gz", gzip.compress(text)) if rng.random() < 0.1 else ("r.csv", text)


def make_budget(rng: random.Random, _folder: Path) -> tuple[str, bytes]:
    if rng.random() < 0.5:
        return "b.toml", mutate_bytes(BUDGET.encode(), rng)
    with contextlib.suppress(TypeError, ValueError, UnicodeError):
        return "b.toml", toml.dumps(mutate_document(tomllib.loads(BUDGET), rng)).encode("utf-8", "surrogatepass")
    return "b.toml", mutate_bytes(BUDGET.encode(), rng)


def make_points(rng: random.Random, folder: Path) -> tuple[str, bytes]:
    trace = folder / "whole.json.gz"
    if not trace.exists():
        graph().save(trace)
    text = POINTS.format(trace=trace)
    data = (
        mutate_cells(text, rng).encode("utf-8", "surrogatepass")
        if rng.random() < 0.6
        else mutate_bytes(text.encode(), rng)
    )
    return "p.csv", data


def make_pt2(rng: random.Random, folder: Path) -> tuple[str, bytes]:
    from .archives import make_pt2 as make

    return make(rng, folder)


def make_onnx(rng: random.Random, _folder: Path) -> tuple[str, bytes]:
    from .networks import make_onnx as make

    return make(rng)


def open_model(path: Path) -> None:
    """Load, trace and price it, as ``costmodel estimate`` does."""
    from costmodel.measure.job import Job

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own words about odd programs
        traced = Job(str(path)).trace()
    check_estimate(estimate(traced, board(), threads=2))


@dataclass(frozen=True)
class Kind:
    """One kind of file: how a broken one is made, and the door that it goes through."""

    make: Callable[[random.Random, Path], tuple[str, bytes]]
    open: Callable[[Path], None]


KINDS = {
    "profiles": Kind(make_profile, open_profile),
    "traces": Kind(make_trace, open_trace),
    "runs": Kind(make_runs, open_runs),
    "budgets": Kind(make_budget, open_budget),
    "points": Kind(make_points, open_points),
    "pt2": Kind(make_pt2, open_model),
    "onnx": Kind(make_onnx, open_model),
}
TORCH_KINDS = {"points", "pt2", "onnx"}


@dataclass
class Tally:
    """What came of the inputs of one kind."""

    results: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def __str__(self) -> str:
        total = self.results + self.refused + len(self.failures)
        return (
            f"{total:>7,} inputs {self.results:>7,} results {self.refused:>7,} refused in one line "
            f"{len(self.reasons):>5,} different {len(self.failures):>4,} failures, slowest {self.slowest_s:.2f} s"
        )


class _Hang(BaseException):
    """Not an `Exception`: nothing on the way may swallow it."""


def _alarm(*_: object) -> None:
    raise _Hang


def fuzz(kind: str, first_seed: int, count: int, folder: Path) -> Tally:
    """Send `count` broken files of a kind, one a seed, through their door."""
    tally, how = Tally(), KINDS[kind]
    check_estimate(estimate(graph(), board()))  # compiled before the clock runs
    check_estimate(estimate(graph(), accelerator()))
    if kind in TORCH_KINDS:
        how.open(_right(kind, folder))  # what torch imports and writes once is not of an input
    signal.signal(signal.SIGPROF, _alarm)
    signal.signal(signal.SIGALRM, _alarm)
    for seed in range(first_seed, first_seed + count):
        name, data = how.make(random.Random(f"{kind} {seed}"), folder)
        path = folder / name
        path.write_bytes(data)
        before = {p.name for p in folder.iterdir()}
        signal.setitimer(signal.ITIMER_PROF, HANG_S[0])
        signal.setitimer(signal.ITIMER_REAL, HANG_S[1])
        start = time.perf_counter()
        try:
            with watched() as heard:
                how.open(path)
            tally.results += 1
        except CostmodelError as error:
            text = str(error)
            if "\n" in text or not text.strip():
                tally.failures.append(f"{kind} {seed}: not one line: {text[:200]!r}")
            else:
                tally.refused += 1
                tally.reasons[text.replace(str(folder), "")[:60]] += 1
        except _Hang:
            tally.failures.append(f"{kind} {seed}: still running")
        except Exception as error:
            tally.failures.append(f"{kind} {seed}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        tally.slowest_s = max(tally.slowest_s, time.perf_counter() - start)
        left = {p.name for p in folder.iterdir()} - before
        if left:
            tally.failures.append(f"{kind} {seed}: left behind {sorted(left)}")
            for name in left:
                shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        if heard:
            tally.failures.append(f"{kind} {seed}: opened {heard[:3]}")
    return tally


def _right(kind: str, folder: Path) -> Path:
    """A file of this kind with nothing wrong."""
    if kind == "pt2":
        from .archives import pack, programs

        for program in programs():
            (folder / "right.pt2").write_bytes(pack(program))
        return folder / "right.pt2"
    if kind == "onnx":
        from .networks import networks

        (folder / "right.onnx").write_bytes(networks()[0])
        return folder / "right.onnx"
    path = folder / "right.csv"
    path.write_text(POINTS.format(trace=graph().save(folder / "whole.json.gz")))
    return path


def limit_memory(more: int = MEMORY_BYTES) -> None:
    """Let this process map `more` bytes above what it has: a bomb becomes a `MemoryError`, not a full machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    kinds = sys.argv[2].split(",") if len(sys.argv) > 2 else list(KINDS)
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    warnings.simplefilter("error")
    failed = False
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            if kind in TORCH_KINDS:
                KINDS[kind].open(_right(kind, Path(folder)))
            limit_memory()
            tally = fuzz(kind, first, count, Path(folder))
        print(f"{kind:9s} {tally}", flush=True)
        for line in tally.failures[:40]:
            print(f"    {line}")
        failed |= bool(tally.failures)
    print(f"peak resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    sys.exit(failed)


if __name__ == "__main__":
    main()
