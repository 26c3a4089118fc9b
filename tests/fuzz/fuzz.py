"""A mutation fuzzer over every file that a user can hand in: profiles, traces, runs, budgets, tables of points.

``python tests/fuzz/fuzz.py 10000`` is the long form: that many inputs of each kind, and a tally. `tests/test_fuzz.py`
is the small form. Whatever the input, a door answers with a result whose figures can be, or with one line
(`CostmodelError`). Another exception, a hang or a file left behind is a failure, printed with the seed that makes it
again.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import math
import random
import resource
import signal
import sys
import tempfile
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
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

PROFILES = Path(__file__).parents[2] / "hwprofiles"
HANG_S = (20.0, 300.0)  # seconds of processor, and of the clock, that one input may take

# What people and disks put where something else belongs.
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, -2, 2, 7, 255, 1 << 31, -(1 << 31), 1 << 62, 1 << 63, 1 << 80, -(1 << 80), 10**400,
    0.0, -0.0, 0.5, -1.5, 1e-300, 1e-320, 1e300, 1e308, float("nan"), float("inf"), float("-inf"),
    "", " ", "\0", "a", "x" * 5000, "é🙂", "\ud800", "nan", "inf", "-1", "1e999", "1,5", "0x10", "1_000", "١٢",
    "__class__", "../../../etc/passwd", "/dev/zero", "$(reboot)", "{}", "[]", "aten::mm", "aten::convolution", "fp32",
    "L2", "dram", "guess", "float32", "forward", [], {}, [[]], [1, 2, 3], [-1], [0], [1 << 40, 1 << 40],
    {"a": 1}, {"value": 1},
)  # fmt: skip


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


# Mutations


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, chunks cut, doubled, moved, or filled with what does not belong."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if not out:
            break
        i = rng.randrange(len(out))
        j = min(len(out), i + rng.choice((1, 1, 2, 8, 64)))
        how = rng.randrange(8)
        if how == 0:
            out[i] ^= 1 << rng.randrange(8)
        elif how == 1:
            del out[i:j]
        elif how == 2:
            out[i:i] = out[i:j] * rng.choice((1, 2, 50))
        elif how == 3:
            out = out[:i]
        elif how == 4:
            out[i:j] = rng.randbytes(j - i)
        elif how == 5:
            out[i:i] = rng.choice(
                (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 3000, b"{" * 50, b'"', b"\n", b",", b"9" * 400)
            )
        elif how == 6:
            k = rng.randrange(len(out))
            out[k:k] = out[i:j]
        else:
            digits = [n for n, b in enumerate(out) if 48 <= b <= 57]
            if digits:
                out[rng.choice(digits)] = rng.choice(b"0123456789-.eE")
    return bytes(out)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def mutate_document(document: Any, rng: random.Random) -> Any:
    """A value replaced, dropped, doubled, renamed or nudged, once or a few times, at any depth."""
    document = json.loads(json.dumps(document))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(document))
        if not places:
            break
        *path, key = rng.choice(places)
        parent = document
        for step in path:
            parent = parent[step]
        value = parent[key]
        how = rng.randrange(8)
        if how <= 2:
            parent[key] = copy.deepcopy(rng.choice(NASTY))
        elif how == 3:
            del parent[key]
        elif how == 4 and isinstance(parent, dict):
            parent[rng.choice(("extra", "", key + " ", "schema"))] = parent.pop(key)
        elif how == 4:
            parent.insert(rng.randrange(len(parent) + 1), value)
        elif how == 5 and isinstance(value, (int, float)) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):
                parent[key] = rng.choice(
                    (value + 1, value - 1, -value, value * 1000, value * 2**40, float(value), str(value))
                )
        elif how == 5 and isinstance(value, list):
            rng.shuffle(value)
        elif how == 6:
            other = document
            *way, last = rng.choice(places)
            with contextlib.suppress(KeyError, IndexError, TypeError):
                for step in way:
                    other = other[step]
                parent[key] = json.loads(json.dumps(other[last]))
        else:
            parent[key] = [value] * rng.choice((0, 1, 2, 300))
    return document


def mutate_cells(text: str, rng: random.Random) -> str:
    """Cells of a table replaced, rows made longer or shorter, columns renamed or doubled."""
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(rng.choice((1, 1, 2, 6))):
        row = rng.choice(rows) if rows else []
        if not row:
            continue
        i = rng.randrange(len(row))
        how = rng.randrange(6)
        if how <= 2:
            row[i] = str(rng.choice(NASTY))
        elif how == 3:
            del row[i]
        elif how == 4:
            row.insert(i, row[i])
        else:
            rows.insert(rng.randrange(len(rows) + 1), list(row))
    return "\n".join(",".join(row) for row in rows) + "\n"


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
}


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
    if kind == "points":
        import costmodel.tasks.points  # noqa: F401  torch comes with it
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
    return tally


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    kinds = sys.argv[2].split(",") if len(sys.argv) > 2 else list(KINDS)
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    warnings.simplefilter("error")
    failed = False
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            tally = fuzz(kind, first, count, Path(folder))
        print(f"{kind:9s} {tally}", flush=True)
        for line in tally.failures[:40]:
            print(f"    {line}")
        failed |= bool(tally.failures)
    print(f"peak resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    sys.exit(failed)


if __name__ == "__main__":
    main()
