"""Device profiles: `hwprofiles/<name>.toml` to a `Device`, checked key by key, the source of every number kept."""

from __future__ import annotations

import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from platformdirs import user_data_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import FileError, UnknownName
from .inherit import inherit, read_toml

__all__ = [
    "Cache", "Cluster", "Device", "Energy", "Fit", "Gpu", "Interval", "KindFit", "Memory", "Number", "Runtime",
    "core_flops_per_cycle", "devices", "load_device", "profile_folders", "user_profiles",
]  # fmt: skip

SCHEMA = 1
Unit = Literal["fp32", "fp64", "bf16", "fp16", "int8", "int4"]
# Bounds that no device meets: what is inside them can be multiplied and divided without running over.
_MOST, _LEAST = 1e18, 1e-18
Positive = Annotated[float, Field(ge=_LEAST, le=_MOST)]
NonNegative = Annotated[float, Field(ge=0, le=_MOST)]
# Numbers that may be zero, by key or by the table that they are in; by the others something is divided.
_MAY_BE_ZERO = frozenset(
    ["overhead_s", "loop_s", "issue_s", "sample_s", "reserved_bytes", "context_bytes", "rss_bytes", "idle_w", "flop_j"]
    + ["byte_j", "serial", "resident_bytes"]
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Number(_Strict):
    """One number of a device, with where it comes from.

    `source` is a key of the profile's ``[sources]`` table; `kind` says how far to trust it; `prior` is what a fitted
    one was taken for before any run of the device (`Device.before_fit`).
    """

    value: NonNegative
    kind: Literal["datasheet", "measured", "fitted", "guess"]
    source: str = Field(min_length=1)
    prior: NonNegative | None = None

    def refitted(self, value: float, source: str) -> Number:
        """This number as a fit leaves it; what it was before the first fit stays known."""
        before = self.prior if self.kind == "fitted" else self.value
        return Number(value=value, kind="fitted", source=source, prior=before)


class Cache(_Strict):
    """One cache level: `bytes` of one instance, `cores` that share it, its bandwidth to one core."""

    level: int = Field(ge=1, le=4)
    bytes: Number
    cores: Number | None = None
    read_bytes_per_s: Number | None = None
    write_bytes_per_s: Number | None = None


class Cluster(_Strict):
    """Cores of one kind. The profile lists the fastest cluster first; threads fill clusters in that order.

    `vector_bits` is the width of the registers that a library's kernels are written for (AVX-512 512, AVX2 256).
    `per_cycle` is what kernels reach of peak on this core, over what the same ones reach on the first cluster's.
    """

    core: str | None = None
    name: str
    cores: Number
    clock_hz: Number
    flops_per_cycle: dict[Unit, Number] = Field(min_length=1)
    vector_bits: Number | None = None
    per_cycle: Number | None = None
    cache: tuple[Cache, ...] = ()


class Memory(_Strict):
    """Main memory. `reserved_bytes` is what the system keeps; `core_bytes_per_s` is what one core can draw;
    `storage_bytes_per_s` is how fast a file of weights is read into it."""

    bytes: Number
    reserved_bytes: Number
    read_bytes_per_s: Number
    write_bytes_per_s: Number | None = None
    core_read_bytes_per_s: Number | None = None
    core_write_bytes_per_s: Number | None = None
    storage_bytes_per_s: Number | None = None


class Waves(_Strict):
    """How kernels cut a result into blocks for the SMs (`core.gpu.utilisation`): elements of a tile; elements and
    products a sum that a block has at least; share of the SMs that one wave leaves idle, by class with ``default``."""

    tile_elements: Number
    least_elements: Number
    split_depth: Number
    loss: dict[str, Number]

    @model_validator(mode="after")
    def _complete(self) -> Waves:
        if "default" not in self.loss or max(n.value for n in self.loss.values()) > 0.5:
            raise ValueError("loss needs a default, and at most 0.5 for any class, else more SMs would be slower")
        if not 1.0 <= self.least_elements.value <= self.tile_elements.value or self.split_depth.value < 1.0:
            raise ValueError("split_depth must be at least 1, and least_elements from 1 to tile_elements")
        return self


class Gpu(_Strict):
    """A GPU. Without `bytes` its memory is the board's (unified); without `waves` every op fills it."""

    name: str
    sms: Number
    clock_hz: Number
    flops_per_s: dict[Unit, Number] = Field(min_length=1)
    l2_bytes: Number
    l2_bytes_per_s: Number | None = None
    bytes: Number | None = None
    dram_bytes_per_s: Number
    context_bytes: Number
    waves: Waves | None = None


class Energy(_Strict):
    """Constants of ``E = P_idle · t + ε_flop · F + Σ ε_level · bytes``; `byte_j` is for DRAM."""

    idle_w: Number
    flop_j: Number
    byte_j: Number


class KindFit(_Strict):
    """Fitted constants of one algorithm class: seconds an op, an operation, a unit of a term, a byte of a level.

    `cold_s` (an op whose code comes from that level), `read_s` and `write_s` are keyed by level: ``L2``, ``L3``,
    ``dram``. `most` is the largest value of each term among the `points`.
    """

    overhead_s: NonNegative = 0.0
    cold_s: dict[str, NonNegative] = {}
    term_s: dict[str, NonNegative] = {}
    read_s: dict[str, NonNegative] = {}
    write_s: dict[str, NonNegative] = {}
    most: dict[str, Positive] = {}
    points: int = Field(default=0, ge=0)
    error: NonNegative | None = None


class Interval(_Strict):
    """Quantiles of ln(measured / predicted) by which a prediction is widened, and what they rest on."""

    low: Annotated[float, Field(ge=-20, le=0)]
    high: Annotated[float, Field(ge=0, le=20)]
    coverage: Annotated[float, Field(gt=0, lt=1)] = 0.9
    cases: int = Field(ge=0)
    kind: Literal["measured", "fitted", "guess"]
    source: str = Field(min_length=1)


class Fit(_Strict):
    """A calibration for one thread count: what it was fitted on, and its constants by algorithm class.

    Of a model in a mode (prefill and decode are ``infer``), `whole` is its factor over the sum of its ops, and
    `between_s` what each op takes more than alone: modules and Python between ops. `capacity_bytes` is the effective
    size of each cache, by level, `spin_s` what the reference spin of `measure.latency` takes at the speed of the
    machine that the constants are for.
    """

    threads: int = Field(ge=1, le=1024)
    dtype: str = "float32"
    torch: str = ""
    cpu: str = ""
    date: str = ""
    source: str = Field(min_length=1)
    points: int = Field(ge=0)
    error: NonNegative | None = None
    noise: NonNegative | None = None
    spin_s: Positive | None = None
    whole: dict[str, Positive] = {}
    between_s: dict[str, NonNegative] = {}
    capacity_bytes: dict[str, Positive] = {}
    kinds: dict[str, KindFit] = {}

    def of_mode(self, mode: str) -> tuple[float, float]:
        """`whole` and `between_s` of a mode; those of ``infer`` for one that has none of its own."""
        key = mode if mode in self.whole else "infer"
        return self.whole.get(key, 1.0), self.between_s.get(key, 0.0)


class Runtime(_Strict):
    """How a framework uses the device: what an op costs before it computes, and how near to peak it comes.

    Numbers by algorithm class are found by name: its own, else that of the class it is a kind of, else ``default``.

    Attributes:
        frameworks: shell patterns (``torch*eager*``, case ignored) of what run files call it.
        overhead_s: of an op, whatever its size; issue_s: of the host, to issue a kernel to a GPU.
        efficiency: share of peak by class.
        bandwidth_efficiency: share of DRAM's bandwidth that software reaches.
        serial: share of a thread's compute that more threads do not speed up (Amdahl), by class.
        rss_bytes: resident memory of the runtime itself, for any model.
        resident_bytes: the same by the library that a model is from, with ``default``; what ``train`` adds, each
            method by its name, and any other ``method`` and ``kernel`` of ours; of each that begins with ``shared_``,
            what processes share (`footprint.runtime_bytes`).
        shared_files: of that, what processes share of the largest library files, by name.
        scale: factor on the whole step, by mode (``infer``, ``train``, ``prefill``, ``decode``).
        class_scale: factor on the compute and traffic of a class, not on its overhead.
        fuse: rules of `fusion` that it applies.
        schedule: unlike cores share a loop by speed (``dynamic``), or in equal parts, so that the slowest decides.
        grouped: grouped convolutions run by a kernel of their own, or in a ``loop`` over groups (a call each).
        loop_s: of each further call of such a loop; `overhead_s` where it is not given.
        pack_bytes_per_s: how fast a convolution's weights are packed in each call; absent where that is done once.
        sample_s: to read and decode an image, in runs that say they include that and in whole jobs.
        start_s: from the start of a process until its libraries are loaded.
        first_op_s: of an op, once, in the first step: what is made or touched then and kept.
        page_fault_s: of a page of 4 KiB that the system gives, clears and takes back (`footprint.fresh_bytes`).
        interval: by mode, with ``default``.
        fit: calibrations of isolated ops, by thread count.
    """

    title: str
    engine: Literal["cpu", "gpu"]
    frameworks: tuple[str, ...] = ()
    overhead_s: Number
    issue_s: Number | None = None
    efficiency: dict[str, Number]
    bandwidth_efficiency: Number | None = None
    rss_bytes: Number | None = None
    resident_bytes: dict[str, Number] = {}
    shared_files: dict[str, Number] = {}
    scale: dict[str, Number] = {}
    class_scale: dict[str, Number] = {}
    serial: dict[str, Number] = {}
    fuse: tuple[Literal["norm", "activation", "add", "elementwise"], ...] = ()
    schedule: Literal["dynamic", "static"] = "dynamic"
    grouped: Literal["kernel", "loop"] = "kernel"
    loop_s: Number | None = None
    pack_bytes_per_s: Number | None = None
    sample_s: Number | None = None
    start_s: Number | None = None
    first_op_s: Number | None = None
    page_fault_s: Number | None = None
    interval: dict[str, Interval]
    fit: tuple[Fit, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Runtime:
        if "default" not in self.efficiency:
            raise ValueError("efficiency.default is missing: the share of peak of a class without its own number")
        if "default" not in self.interval:
            raise ValueError("interval.default is missing: no figure is printed without one")
        return self


class Device(_Strict):
    """A device as its profile describes it. `aliases` are shell patterns of what run files call it (case ignored)."""

    schema_: int = Field(alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    title: str
    aliases: tuple[str, ...] = ()
    notes: str = ""
    sources: dict[str, str]
    cpu: tuple[Cluster, ...] = Field(min_length=1)
    memory: Memory
    gpu: Gpu | None = None
    energy: Energy | None = None
    runtime: dict[str, Runtime] = Field(min_length=1)

    @property
    def default_runtime(self) -> str:
        """The first runtime of the profile that runs on the GPU if there is one, else the first."""
        return next((n for n, r in self.runtime.items() if r.engine == "gpu"), next(iter(self.runtime)))

    @property
    def cores(self) -> int:
        return int(sum(c.cores.value for c in self.cpu))

    @property
    def lanes(self) -> int:
        """fp32 elements of a vector of the fastest cores, as oneDNN's blocked kernels come: 8 or 16.

        16 where the profile does not say: the form that Arm boards and older profiles were fitted with.
        """
        bits = self.cpu[0].vector_bits
        return 8 if bits is not None and bits.value <= 256 else 16

    def numbers(self) -> list[tuple[str, Number]]:
        """Every number with its place in the profile, for the provenance table of a report."""
        found: list[tuple[str, Number]] = []

        def walk(place: str, value: Any) -> None:
            if isinstance(value, Number):
                found.append((place, value))
            elif isinstance(value, BaseModel):
                for key in type(value).model_fields:
                    walk(f"{place}.{key}" if place else key, getattr(value, key))
            elif isinstance(value, dict):
                for key, item in value.items():
                    walk(f"{place}.{key}", item)
            elif isinstance(value, tuple):
                for i, item in enumerate(value):
                    walk(f"{place}[{i}]", item)

        walk("", self)
        return found

    def before_fit(self, runtime: str) -> Device:
        """This device as it was described before any run of `runtime` on it: what a fit from zero rows starts at.

        A fitted number goes back to its prior; one without is dropped, and so are intervals that runs gave.
        """
        r = self.runtime[runtime]
        update: dict[str, Any] = {"fit": ()}
        for key in type(r).model_fields:
            value = getattr(r, key)
            if isinstance(value, Number):
                update[key] = _before(value)
            elif isinstance(value, dict) and key != "interval":
                update[key] = {k: n for k, v in value.items() if (n := _before(v)) is not None}
        update["overhead_s"] = update["overhead_s"] or r.overhead_s
        update["interval"] = {"default": Interval(low=-0.7, high=0.7, cases=0, kind="guess", source="unvalidated")}
        return self.model_copy(update={"runtime": {**self.runtime, runtime: r.model_copy(update=update)}})

    def usable_bytes(self, engine: str) -> float:
        """Memory that a program can have: a GPU's own less its context, or the board's less what the system keeps."""
        if engine == "gpu" and self.gpu is not None:
            if self.gpu.bytes is not None:
                return self.gpu.bytes.value - self.gpu.context_bytes.value
            return self.memory.bytes.value - self.memory.reserved_bytes.value - self.gpu.context_bytes.value
        return self.memory.bytes.value - self.memory.reserved_bytes.value


def _before(number: Number) -> Number | None:
    """A number before its fit, None if it had no value then."""
    if number.kind != "fitted":
        return number
    return None if number.prior is None else Number(value=number.prior, kind="guess", source=number.source)


def user_profiles() -> Path:
    """Where calibrated profiles are written: found by name before the shipped ones, and files to share."""
    base = os.environ.get("COSTMODEL_HOME")
    return (Path(base) if base else user_data_path("costmodel", appauthor=False)) / "hwprofiles"


@cache
def _shipped() -> Path:
    inside = Path(str(files("costmodel"))) / "hwprofiles"  # in an installed wheel
    return inside if inside.is_dir() else inside.parents[1] / "hwprofiles"


def profile_folders() -> tuple[Path, ...]:
    """Folders that hold profiles, the user's first."""
    return (user_profiles(), _shipped())


def devices() -> dict[str, Path]:
    """Every device there is a profile for, by name."""
    found: dict[str, Path] = {}
    for folder in profile_folders():
        for path in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
            found.setdefault(path.stem, path)
    return found


def load_device(name: str | os.PathLike[str]) -> Device:
    """The device called `name`, or the profile at that path (it ends in ``.toml``).

    ``host`` is this machine: its calibrated profile if there is one, else what can be read from the system. A
    calibration of another torch or processor is refused there (`host.of_this_machine`); by any other name, or by its
    path, a profile is of the machine that it was made on.

    Raises:
        UnknownName: no such device; FileError: a profile that cannot be used, with file, key and fix.
        CostmodelError: the calibration of this machine is of another torch or processor.
    """
    text = os.fspath(name)
    if text.endswith(".toml"):
        return _read(Path(text))
    known = devices()
    if text == "host":
        from .host import detect, of_this_machine

        return of_this_machine(_read(known[text])) if text in known else detect()
    if text in known:
        return _read(known[text])
    raise UnknownName("device", text, {*known, "host"}, "(or give the path of a .toml profile)")


def _read(path: Path) -> Device:
    document = read_toml(path)
    schema = document.get("schema")
    if schema != SCHEMA:
        raise FileError(path, "schema", f"is {schema!r}, this version reads {SCHEMA}; see CHANGELOG for what changed")
    document = inherit(path, document, profile_folders())
    try:
        device = Device.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        given = "" if isinstance(first["input"], (dict, list)) else f" (given {first['input']!r})"
        raise FileError(path, key, f"{first['msg']}{given}") from None
    for place, number in device.numbers():
        if number.source not in device.sources:
            raise FileError(
                path,
                f"{place}.source",
                f"{number.source!r} is not in [sources] (there are {', '.join(device.sources) or 'none'}); "
                "every device number needs a source",
            )
        problem = _impossible(place, number.value)
        if problem:
            raise FileError(path, f"{place}.value", f"{problem} (given {number.value:g})")
    return device


def _impossible(place: str, value: float) -> str:
    """Why a number cannot be what its place says; empty if it can."""
    table, _, key = place.rpartition(".")
    if key == "cores" and (value < 1 or value != int(value)):
        return "cores are a whole number, at least 1"
    if table.endswith(".serial") and value > 1:
        return "a share is at most 1"
    if value < _LEAST and not (value == 0 and _MAY_BE_ZERO & {key, table.rpartition(".")[2]}):
        return "must be above 0"
    return ""


def core_flops_per_cycle(core: str) -> dict[str, float]:
    """FLOPs a cycle by unit of a core in ``cores/``, for a machine that is detected and not described."""
    table = read_toml(_shipped() / "cores" / f"{core}.toml")["core"]["flops_per_cycle"]
    return {unit: float(number["value"]) for unit, number in table.items()}
