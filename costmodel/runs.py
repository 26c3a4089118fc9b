"""`Run`, what a measurement is, and the CSV files that hold them (`COLUMNS`)."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, cast

from .device import Device
from .errors import CostmodelError, FileError, UnknownName
from .graph import write_atomic

__all__ = [
    "COLUMNS",
    "Run",
    "Runs",
    "Skip",
    "append_runs",
    "locked",
    "read_runs",
    "runs_path",
    "runtime_for",
    "stream_runs",
]

COLUMNS = (
    "model", "task", "method", "batch", "input_size", "dtype", "device", "framework", "threads", "latency_ms",
    "peak_memory_bytes", "energy_mj", "cpu_ms", "noise", "peak_rss_bytes", "repeats_s", "meta",
)  # fmt: skip
_NEEDED = ("model", "latency_ms")
# task of a file to (mode, method)
_TASKS: dict[str, tuple[str, str | None]] = {
    "infer": ("infer", None),
    "inference": ("infer", None),
    "train": ("train", None),
    "finetune-head": ("train", "last_layer"),
    "prefill": ("prefill", None),
    "decode": ("decode", None),
}
_DTYPES = {
    "fp32": "float32", "f32": "float32", "float": "float32", "fp16": "float16", "f16": "float16", "half": "float16",
    "bf16": "bfloat16", "fp64": "float64",
}  # fmt: skip
# Files keep what a row says of itself beside the columns of the contract.
_KEPT = ("note", "params", "macs", "source", "accel")
MAX_SKIPPED = 1000  # reasons kept one by one; the rest are counted
MAX_CASES = 100_000  # different steps in a file: each is traced, some seconds


@dataclass(frozen=True)
class Run:
    """One measured step: the same shape whether it was run here or read from somebody's file.

    Attributes:
        model: spec or the name that a file gives.
        mode: ``infer``, ``train``, ``prefill``, ``decode``.
        latency_s: seconds of a step (of a token in ``decode``).
        method: ``name:key=value``, or None for the unmodified model.
        batch, threads: None where a file does not say.
        input_size: ``3x224x224`` or ``seq512``, without the batch; empty if unknown.
        dtype: ``float32``, or what a file calls it (``amp-fp16``, ``int8``).
        device: profile name, or what a file calls it.
        runtime: runtime of the profile, or the framework of a file (`runtime_for` maps it).
        cpu_s: CPU seconds of the step's thread.
        noise: relative spread over processes or repeats, as a fraction.
        peak_live_bytes, peak_rss_bytes: what tensors hold, what the process has resident. A file's
            ``peak_memory_bytes`` is taken as live.
        energy_j: joules of a step.
        repeats: raw seconds behind `latency_s`.
        meta: what else is known (torch version, date, note), strings.
    """

    model: str
    mode: str
    latency_s: float
    method: str | None = None
    batch: int | None = None
    input_size: str = ""
    dtype: str = "float32"
    device: str = ""
    runtime: str = ""
    threads: int | None = None
    cpu_s: float | None = None
    noise: float | None = None
    peak_live_bytes: int | None = None
    peak_rss_bytes: int | None = None
    energy_j: float | None = None
    repeats: tuple[float, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def case(self) -> tuple[Any, ...]:
        """What was run, without what came out: rows that share it are repeats of one case."""
        return (
            self.model, self.mode, self.method, self.batch, self.input_size, self.dtype, self.device, self.runtime,
            self.threads, self.meta.get("accel", ""),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """For people and for the keys of ``skipped``."""
        batch = None if self.batch is None else f"b{self.batch}"
        threads = None if self.threads is None else f"t{self.threads}"
        return " ".join(filter(None, (self.model, self.method, self.mode, batch, self.input_size, self.dtype, threads)))

    def as_row(self) -> dict[str, str]:
        """The run as a row of `COLUMNS`; an unknown value is empty."""
        head_only = self.method == "last_layer" and self.mode == "train"
        row: dict[str, Any] = {
            "model": self.model,
            "task": "finetune-head" if head_only else self.mode,
            "method": None if head_only else self.method,
            "batch": self.batch,
            "input_size": self.input_size,
            "dtype": self.dtype,
            "device": self.device,
            "framework": self.runtime,
            "threads": self.threads,
            "latency_ms": 1e3 * self.latency_s,
            "peak_memory_bytes": self.peak_live_bytes,
            "energy_mj": None if self.energy_j is None else 1e3 * self.energy_j,
            "cpu_ms": None if self.cpu_s is None else 1e3 * self.cpu_s,
            "noise": self.noise,
            "peak_rss_bytes": self.peak_rss_bytes,
            "repeats_s": " ".join(map(repr, self.repeats)),
            "meta": json.dumps(dict(self.meta), ensure_ascii=False, sort_keys=True) if self.meta else "",
        }
        return {key: "" if value is None else str(value) for key, value in row.items()}


@dataclass(frozen=True)
class Skip:
    """A row that is no run: its line, its name and why."""

    line: int
    name: str
    why: str


@dataclass(frozen=True)
class Runs:
    """The runs of a file, one a case, and what was skipped with the reason."""

    runs: tuple[Run, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)


def runtime_for(device: Device, framework: str, accel: str = "") -> str:
    """The runtime of `device` that a file's `framework` means: its name, or the first whose patterns match.

    Args:
        device: whose runtimes.
        framework: as in the file's column.
        accel: ``cpu`` or ``gpu`` where the file says what it ran on; a runtime of the other kind does not match.

    Raises:
        UnknownName: none does; lists the runtimes with their patterns.
    """
    wanted, engine = framework.strip().lower(), accel.strip().lower()
    allowed = {
        n: r for n, r in device.runtime.items() if engine in ("", r.engine) or engine not in ("cpu", "gpu", "npu")
    }
    if wanted in allowed:
        return wanted
    for name, runtime in allowed.items():
        if any(fnmatchcase(wanted, pattern.lower()) for pattern in runtime.frameworks):
            return name
    patterns = {f"{n} ({', '.join(r.frameworks)})" if r.frameworks else n for n, r in allowed.items()}
    where = f" on its {engine}" if engine else ""
    raise UnknownName(f"framework of {device.name}{where}", framework, patterns, "(or pass --runtime)")


def stream_runs(path: str | os.PathLike[str]) -> Iterator[Run | Skip]:
    """Rows of a CSV (or .csv.gz) one by one, in constant memory: each a `Run`, or a `Skip` with the reason.

    Raises:
        FileError: not a readable CSV, or without the columns ``model`` and ``latency_ms``.
    """
    source = Path(path)
    with _open(source) as text:
        reader = csv.reader(text, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            _check_header(source, header)
            for row in reader:
                if row:
                    yield _run_or_skip(header, row, reader.line_num)
        except (csv.Error, UnicodeDecodeError, EOFError, OSError) as error:
            raise FileError(source, f"line {reader.line_num + 1}", f"is not CSV in UTF-8: {error}") from None


def read_runs(path: str | os.PathLike[str], device: Device | None = None) -> Runs:
    """Runs of a file, one a case: rows that share a case are its repeats, their median counts.

    Memory grows with the number of cases, at most `MAX_CASES`, not of rows (eight bytes for each repeat).

    Args:
        path: a CSV with columns of `COLUMNS`; more are kept in ``meta`` or ignored, empty is unknown.
        device: keep the rows that this device's `aliases` (or its name) match, skip the others by name. A file of
            one device that matches nothing is taken whole: the caller says what it was run on.

    Raises:
        FileError: as `stream_runs`; several devices and none that is meant; no usable row; too many cases.
    """
    first: dict[tuple[Any, ...], Run] = {}
    seconds: dict[tuple[Any, ...], list[float]] = {}
    skipped = _Skipped()
    for item in stream_runs(path):
        if isinstance(item, Skip):
            skipped.add(f"line {item.line}: {item.name}", item.why)
            continue
        first.setdefault(item.case, item)
        if len(first) > MAX_CASES:
            raise FileError(
                path, "", f"is of more than {MAX_CASES:,} different steps, each of which is traced; give a part of it"
            )
        seconds.setdefault(item.case, []).extend(item.repeats or (item.latency_s,))
    kept = _of_device(Path(path), list(first.values()), device, skipped)
    if not kept:
        raise FileError(path, "", f"has no run that can be used ({skipped.summary()})")
    return Runs(tuple(_merged(run, seconds[run.case]) for run in kept), skipped.reasons())


def append_runs(path: str | os.PathLike[str], runs: Iterable[Run]) -> Path:
    """Add runs to a file (made if missing), whole or not at all; two processes may do so at once."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        old = target.read_text(encoding="utf-8") if target.exists() else ""
        if old and next(csv.reader([old.split("\n", 1)[0]])) != list(COLUMNS):
            raise FileError(target, "", "has other columns than this version writes; move it away or choose a new file")
        text = io.StringIO(newline="")
        text.write(old)
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        if not old:
            writer.writeheader()
        writer.writerows(run.as_row() for run in runs)
        return write_atomic(target, text.getvalue().encode())


def runs_path(device: str, name: str, folder: str | os.PathLike[str] = "traces/runs") -> Path:
    """Where measured runs are kept: ``traces/runs/<device>/<name>.csv``."""
    return Path(folder) / device / f"{name}.csv"


class _Skipped:
    """Reasons by row, the first `MAX_SKIPPED` one by one: a million bad rows do not fill the memory."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}
        self._more: Counter[str] = Counter()

    def add(self, name: str, why: str) -> None:
        if len(self._kept) < MAX_SKIPPED:
            self._kept[name] = why
        else:
            self._more[why.split(" (given")[0]] += 1

    def reasons(self) -> dict[str, str]:
        more = {f"and {n:,} more rows ({i})": why for i, (why, n) in enumerate(self._more.most_common(20))}
        return self._kept | more

    def summary(self) -> str:
        if not self._kept:
            return "no rows"
        name, why = next(iter(self._kept.items()))
        return f"{len(self._kept) + self._more.total():,} rows skipped, the first {name}: {why}"


def _merged(run: Run, seconds: list[float]) -> Run:
    if len(seconds) == 1:
        return run
    middle = statistics.median(seconds)
    spread = statistics.median(abs(s - middle) for s in seconds) / middle
    own = run.latency_s if run.repeats and len(run.repeats) == len(seconds) else middle
    return replace(run, latency_s=own, repeats=tuple(seconds), noise=spread if run.noise is None else run.noise)


def _of_device(path: Path, runs: list[Run], device: Device | None, skipped: _Skipped) -> list[Run]:
    names = sorted({run.device for run in runs})
    if device is None:
        if len(names) > 1:
            raise FileError(path, "device", f"is of {len(names)} devices ({_few(names)}); split it, or pass --device")
        return runs
    patterns = [device.name, device.title, *device.aliases]
    matching = {name for name in names if any(fnmatchcase(name.lower(), p.lower()) for p in patterns)}
    if not matching:
        if len(names) > 1:
            raise FileError(
                path, "device", f"is none that {device.name} goes by ({', '.join(patterns)}); there are {_few(names)}"
            )
        return runs
    kept = []
    for run in runs:
        if run.device in matching:
            kept.append(run)
        else:
            skipped.add(f"{run.device}: {run.name}", f"is of another device than {device.name}")
    return kept


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(repr(n) for n in names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            plain = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if packed else raw
            yield io.TextIOWrapper(plain, encoding="utf-8-sig", newline="")
    except FileNotFoundError:
        raise FileError(path, "", "no such file") from None
    except IsADirectoryError:
        raise FileError(path, "", "is a folder; give a CSV file") from None


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise FileError(path, "", "is empty; the first line names the columns: " + ", ".join(COLUMNS[:12]))
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise FileError(path, "", "is not separated by commas; write ',' between columns and '.' in numbers")
    twice = [name for name, n in Counter(header).items() if n > 1]
    if twice:
        raise FileError(path, twice[0], "names two columns; keep one")
    for name in _NEEDED:
        if name not in header:
            near = [h for h in header if h.startswith(name.split("_")[0])]
            hint = f"; {near[0]!r} is in a unit that is not read, give milliseconds" if near else ""
            raise FileError(path, name, f"is not a column{hint}; there are {', '.join(header)}")


def _run_or_skip(header: list[str], row: list[str], line: int) -> Run | Skip:
    name = " ".join(cell for cell in row[:8] if cell)[:100]
    if len(row) != len(header):
        why = f"has {len(row)} fields where the header has {len(header)}"
        return Skip(line, name, why + ("; a decimal comma?" if len(row) > len(header) else ""))
    cells = {key: cell.strip() for key, cell in zip(header, row)}
    try:
        return _run(cells)
    except CostmodelError as error:
        return Skip(line, name, str(error))


def _run(cells: dict[str, str]) -> Run:
    if not cells["model"]:
        raise CostmodelError("model is empty")
    task = cells.get("task") or "infer"
    if task not in _TASKS:
        raise UnknownName("task", task, _TASKS)
    mode, method = _TASKS[task]
    latency = _number(cells, "latency_ms", least=0.0)
    if latency is None:
        raise CostmodelError("latency_ms is empty")
    dtype = cells.get("dtype", "").lower()
    cpu, energy = _number(cells, "cpu_ms", least=0.0), _number(cells, "energy_mj", least=0.0)
    return Run(
        model=cells["model"],
        mode=mode,
        latency_s=1e-3 * latency,
        method=cells.get("method") or method,
        batch=_count(cells, "batch"),
        input_size=cells.get("input_size", "").lower(),
        dtype=_DTYPES.get(dtype, dtype or "float32"),
        device=cells.get("device", ""),
        runtime=cells.get("framework", ""),
        threads=_count(cells, "threads"),
        cpu_s=None if cpu is None else 1e-3 * cpu,
        noise=_number(cells, "noise"),
        peak_live_bytes=_count(cells, "peak_memory_bytes"),
        peak_rss_bytes=_count(cells, "peak_rss_bytes"),
        energy_j=None if energy is None else 1e-3 * energy,
        repeats=tuple(_number({"repeats_s": s}, "repeats_s", 0.0) or 0.0 for s in cells.get("repeats_s", "").split()),
        meta=_meta(cells),
    )


def _meta(cells: dict[str, str]) -> dict[str, str]:
    kept = {key: cells[key] for key in _KEPT if cells.get(key)}
    try:
        own = json.loads(cells.get("meta") or "{}")
    except (json.JSONDecodeError, RecursionError):
        raise CostmodelError("meta is not a JSON object") from None
    if not isinstance(own, dict):
        raise CostmodelError("meta is not a JSON object")
    return kept | {str(k): str(v) for k, v in own.items()}


def _number(cells: Mapping[str, str], key: str, least: float | None = None) -> float | None:
    """A cell as a number, None if empty; more than `least` where that is given, else not negative."""
    text = cells.get(key, "")
    if not text or text.lower() in ("nan", "none", "null"):
        return None
    try:
        value = float(text)
    except ValueError:
        if "," in text:
            raise CostmodelError(
                f"{key} has a decimal comma (given {text!r}); write {text.replace(',', '.')}"
            ) from None
        raise CostmodelError(f"{key} is not a number in the column's own unit (given {text!r})") from None
    if not math.isfinite(value) or value < 0 or (least is not None and value <= least):
        raise CostmodelError(f"{key} must be a finite number above 0 (given {text!r})")
    return value


def _count(cells: Mapping[str, str], key: str) -> int | None:
    value = _number(cells, key, least=0.0)
    if value is not None and value != int(value):
        raise CostmodelError(f"{key} must be a whole number (given {cells[key]!r})")
    return None if value is None else int(value)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock of a file, in a neighbour of it: the file itself is replaced at each write."""
    try:
        import fcntl
    except ImportError:  # Windows: os.replace is still whole or nothing
        yield
        return
    with open(path.with_name(f".{path.name}.lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
