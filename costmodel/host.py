"""This machine as a `Device`: what Linux says of it, and a short measurement of what its cores can do."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .device import Cache, Device, Number, core_flops_per_cycle, user_profiles
from .errors import CostmodelError
from .graph import write_atomic
from .toml import dumps

__all__ = ["ALLOW_FOREIGN", "cpu_name", "detect", "of_this_machine", "quick_peaks", "with_peaks", "write_host_profile"]

_SYS = "Linux, /sys/devices/system/cpu and /proc, at detection"
_KNOW = "general knowledge of cores with these features, not measured here"
# (implementer, part) of /proc/cpuinfo on Arm to a file of hwprofiles/cores.
_ARM_CORES = {
    ("0x41", "0xd03"): "cortex-a53", ("0x41", "0xd05"): "cortex-a55", ("0x41", "0xd07"): "cortex-a57",
    ("0x41", "0xd08"): "cortex-a72", ("0x41", "0xd09"): "cortex-a73", ("0x41", "0xd0b"): "cortex-a76",
    ("0x41", "0xd42"): "cortex-a78ae", ("0x4e", "0x003"): "denver2", ("0x4e", "0x004"): "carmel",
}  # fmt: skip
# Bytes a cycle that one core reads and writes by level: a prior until `quick_peaks` has measured.
_BYTES_PER_CYCLE = {1: (64.0, 32.0), 2: (32.0, 16.0), 3: (10.0, 8.0), 4: (8.0, 6.0)}


# Set to use a calibration of another torch or processor; ``costmodel --allow-foreign-calibration`` sets it.
ALLOW_FOREIGN = "COSTMODEL_ALLOW_FOREIGN_CALIBRATION"
# How far, in ln, another torch moves a model (90 % of 388 models between two of its versions: reports/diary.md, the
# i9), and another processor (a guess: a factor of two).
_OTHER_TORCH, _OTHER_CPU = 0.2, 0.7


@dataclass(frozen=True)
class _Core:
    """One physical core: logical CPUs, clock, what /proc/cpuinfo says, and (level, bytes, sharers) of its caches."""

    clock_hz: float | None
    info: tuple[tuple[str, str], ...]
    caches: tuple[tuple[int, int, int], ...]


def detect(root: str | os.PathLike[str] = "/") -> Device:
    """This machine, read from the system: nothing is timed, so rates are guesses until `quick_peaks`.

    Args:
        root: where ``sys`` and ``proc`` are, for a machine that was saved as files.

    Raises:
        CostmodelError: not Linux on x86-64 or 64-bit Arm.
    """
    base = Path(root)
    cpuinfo = _read(base / "proc/cpuinfo")
    x86, arm = "vendor_id" in cpuinfo, "CPU implementer" in cpuinfo
    if not cpuinfo or not (x86 or arm):
        raise CostmodelError(
            f"this machine ({platform.system()} {platform.machine()}) cannot be detected: that needs Linux on x86-64 "
            "or 64-bit Arm; write a profile (`costmodel devices` shows examples) and give it with --profile FILE"
        )
    clusters: dict[_Core, int] = {}
    for core in _cores(base, cpuinfo):
        clusters[core] = clusters.get(core, 0) + 1
    described = [_cluster(core, count, x86) for core, count in clusters.items()]
    described.sort(key=lambda c: -c["clock_hz"]["value"] * c["flops_per_cycle"]["fp32"]["value"])
    total, available = _memory(base)
    return Device.model_validate(
        {
            "schema": 1,
            "name": "host",
            "title": f"this machine: {described[0]['name']}",
            "sources": {"sys": _SYS, "know": _KNOW},
            "cpu": described,
            "memory": {
                "bytes": _number(total, "measured", "sys"),
                "reserved_bytes": _number(total - available, "measured", "sys"),
                "read_bytes_per_s": _number(10e9 * max(1, min(4, sum(clusters.values()))), "guess"),
                "core_read_bytes_per_s": _number(10e9, "guess"),
                "core_write_bytes_per_s": _number(6e9, "guess"),
            },
            "runtime": {"torch-eager": _eager()},
        }
    )


def cpu_name() -> str:
    """The processor, as Linux names it; with its family and model, as guests on unlike cores share one name."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        first = ""
    info = dict(re.findall(r"^([^\t:\n]+?)\s*: *(.*)$", first, re.M))
    name = info.get("model name", "").strip() or platform.processor() or platform.machine()
    return f"{name} family {info['cpu family']} model {info['model']}" if {"cpu family", "model"} <= set(info) else name


def of_this_machine(device: Device) -> Device:
    """The calibrated profile ``host``, if it is of this processor and of the torch that is installed.

    Returns:
        `device`; with wider intervals if it is of another and `ALLOW_FOREIGN` is set in the environment. A torch that
        is not installed differs from none.

    Raises:
        CostmodelError: it is of another, and nothing was allowed.
    """
    here = {"cpu": cpu_name(), "torch": _installed_torch()}
    widen: dict[str, float] = {}
    said: list[str] = []
    for name, runtime in device.runtime.items():
        other_cpu = {f.cpu for f in runtime.fit} - {here["cpu"], ""}
        other_torch = {f.torch for f in runtime.fit} - {here["torch"], ""} if here["torch"] else set()
        if other_cpu or other_torch:
            widen[name] = _OTHER_CPU * bool(other_cpu) + _OTHER_TORCH * bool(other_torch)
            said += [f"torch {t}, here is {here['torch']}" for t in sorted(other_torch)]
            said += [f"{c}, here is {here['cpu']}" for c in sorted(other_cpu)]
    if not widen:
        return device
    why = "; ".join(dict.fromkeys(said))
    if not os.environ.get(ALLOW_FOREIGN):
        raise CostmodelError(
            f"the calibration of this machine was made with {why}: run `costmodel calibrate` again, or use it with "
            "wider intervals by `costmodel --allow-foreign-calibration …`"
        )
    return _widened(device, widen, why)


def _widened(device: Device, widen: Mapping[str, float], why: str) -> Device:
    runtimes = dict(device.runtime)
    for name, by in widen.items():
        interval = {
            key: i.model_copy(update={"low": i.low - by, "high": i.high + by, "kind": "guess", "source": "foreign"})
            for key, i in runtimes[name].interval.items()
        }
        runtimes[name] = runtimes[name].model_copy(update={"interval": interval})
    note = f"{device.notes}; intervals are wider, as it was made with {why}"
    return device.model_copy(
        update={"runtime": runtimes, "notes": note, "sources": {**device.sources, "foreign": f"made with {why}"}}
    )


def _installed_torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""


def quick_peaks(device: Device, threads: int = 1, seconds: float = 0.6) -> dict[str, Number]:
    """Measure what `threads` cores of this machine reach, in some ten measurements of `seconds` each.

    Returns:
        ``fp32_flops_per_s``, and ``L1_read_bytes_per_s``, ``L1_write_bytes_per_s`` and so on to ``dram_…``: totals of
        the threads; of one thread also ``page_fault_s``. Kind measured, source ``peaks``.
    """
    from . import peaks

    if not 1 <= threads <= device.cores:
        raise CostmodelError(
            f"this machine has {device.cores} cores; measure 1 to {device.cores} threads, not {threads}"
        )
    found = {"fp32_flops_per_s": peaks.fma_flops_per_s(threads, seconds)}
    for level, size in _working_sets(device).items():
        found[f"{level}_read_bytes_per_s"] = peaks.read_bytes_per_s(size, threads, seconds)
        found[f"{level}_write_bytes_per_s"] = peaks.write_bytes_per_s(size, threads, seconds)
    if threads == 1:
        found["page_fault_s"] = peaks.page_fault_s(seconds)
    return {key: Number(value=value, kind="measured", source="peaks") for key, value in found.items()}


def with_peaks(device: Device, one: Mapping[str, Number], all_cores: Mapping[str, Number] | None = None) -> Device:
    """`device` with the rates that `quick_peaks` measured with one thread, and with all cores for shared memory.

    The clock is not known to a guest; the peak is, so ``clock_hz`` becomes the measured peak over FLOPs a cycle.
    """
    every = all_cores or one
    first = device.cpu[0]
    clock = one["fp32_flops_per_s"].value / first.flops_per_cycle["fp32"].value
    caches: list[Cache] = []
    for level in reversed(first.cache):
        rates = {}
        for way in ("read_bytes_per_s", "write_bytes_per_s"):
            rate = one.get(f"L{level.level}_{way}", getattr(level, way))
            behind = getattr(caches[0], way) if caches else None
            # a level that came out slower than the one behind it was disturbed while it was measured
            rates[way] = behind if rate and behind and behind.value > rate.value else rate
        caches.insert(0, level.model_copy(update=rates))
    hertz = Number(value=clock, kind="measured", source="peaks")
    cluster = first.model_copy(update={"clock_hz": hertz, "cache": tuple(caches)})
    memory = device.memory.model_copy(
        update={
            "read_bytes_per_s": every["dram_read_bytes_per_s"],
            "write_bytes_per_s": every["dram_write_bytes_per_s"],
            "core_read_bytes_per_s": one["dram_read_bytes_per_s"],
            "core_write_bytes_per_s": one["dram_write_bytes_per_s"],
        }
    )
    when = f"costmodel.host.quick_peaks on this machine, {date.today().isoformat()}; the low quintile of seconds"
    runtimes = {
        name: runtime.model_copy(update={"page_fault_s": one.get("page_fault_s", runtime.page_fault_s)})
        for name, runtime in device.runtime.items()
    }
    return device.model_copy(
        update={
            "cpu": (cluster, *device.cpu[1:]),
            "memory": memory,
            "runtime": runtimes,
            "sources": {**device.sources, "peaks": when},
        }
    )


def write_host_profile(device: Device, path: str | os.PathLike[str] | None = None) -> Path:
    """Write a profile, whole or not at all: to the user's own folder, where it is found before the shipped ones.

    Args:
        device: what to write; its name is the name of the file.
        path: another file.
    """
    document = device.model_dump(by_alias=True, exclude_defaults=True)
    target = Path(path) if path is not None else user_profiles() / f"{device.name}.toml"
    return write_atomic(target, dumps(document).encode())


def _number(value: float, kind: str, source: str = "know") -> dict[str, Any]:
    return {"value": value, "kind": kind, "source": source}


def _eager() -> dict[str, Any]:
    return {
        "title": "PyTorch eager on the CPU",
        "engine": "cpu",
        "frameworks": ["torch*eager*", "torch", "pytorch"],
        "overhead_s": _number(4e-6, "guess"),
        "efficiency": {
            "default": _number(0.3, "guess"),
            "gemm": _number(0.75, "guess"),
            "conv": _number(0.6, "guess"),
        },
        "interval": {"default": {"low": -0.7, "high": 0.7, "cases": 0, "kind": "guess", "source": "know"}},
    }


def _cluster(core: _Core, count: int, x86: bool) -> dict[str, Any]:
    info = dict(core.info)
    clock, clock_kind = (core.clock_hz, "measured") if core.clock_hz else (_nominal_hz(info), "guess")
    shipped = None if x86 else _ARM_CORES.get((info.get("CPU implementer", ""), info.get("CPU part", "")))
    flops = core_flops_per_cycle(shipped) if shipped else (_x86_flops(info) if x86 else _arm_flops(info))
    caches = []
    for level, size, sharers in core.caches:
        read, write = _BYTES_PER_CYCLE[level]
        caches.append(
            {
                "level": level,
                "bytes": _number(size, "measured", "sys"),
                "cores": _number(sharers, "measured", "sys"),
                "read_bytes_per_s": _number(read * clock, "guess"),
                "write_bytes_per_s": _number(write * clock, "guess"),
            }
        )
    return {
        "name": shipped or info.get("model name") or info.get("CPU part", "CPU"),
        "cores": _number(count, "measured", "sys"),
        "clock_hz": _number(clock, clock_kind, "sys"),
        "flops_per_cycle": {unit: _number(value, "guess") for unit, value in flops.items()},
        **({"vector_bits": _number(_vector_bits(info), "measured", "sys")} if x86 else {}),
        "cache": caches,
    }


def _nominal_hz(info: Mapping[str, str]) -> float:
    mhz = re.search(r"[\d.]+", info.get("cpu MHz", ""))
    return 1e6 * float(mhz.group()) if mhz and float(mhz.group()) > 0 else 2e9


def _vector_bits(info: Mapping[str, str]) -> int:
    """Width that oneDNN writes kernels for on this core: AVX-512 with all that it asks for, AVX2, else SSE."""
    flags = set(info.get("flags", "").split())
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags:
        return 512
    return 256 if {"avx2", "fma"} <= flags else 128


def _x86_flops(info: Mapping[str, str]) -> dict[str, float]:
    """FLOPs a cycle and core by vector extension; AMD's Zen 4 runs 512-bit operations on 256-bit pipes."""
    flags = set(info.get("flags", "").split())
    halves = info.get("vendor_id") == "AuthenticAMD" and info.get("cpu family", "0") in ("23", "25")
    if "avx512f" in flags:
        fp32 = 32.0 if halves else 64.0
    elif {"avx2", "fma"} <= flags:
        fp32 = 32.0
    else:
        fp32 = 16.0 if "avx" in flags else 8.0
    found = {"fp32": fp32, "fp64": fp32 / 2}
    if "avx512_bf16" in flags:
        found["bf16"] = 2 * fp32
    if "amx_bf16" in flags:
        found["bf16"], found["int8"] = 1024.0, 2048.0  # tiles of 16 × 16 × 32 in 16 cycles
    elif flags & {"avx512_vnni", "avx_vnni"}:
        found["int8"] = 4 * fp32
    elif "avx2" in flags:
        found["int8"] = 2 * fp32
    return found


def _arm_flops(info: Mapping[str, str]) -> dict[str, float]:
    """FLOPs a cycle of a core that has no file of its own: two 128-bit pipes from Armv8.2's dot product on."""
    flags = set(info.get("Features", "").split())
    fp32 = 16.0 if "asimddp" in flags else 8.0
    found = {"fp32": fp32, "fp64": fp32 / 2, "int8": (4 if "asimddp" in flags else 2) * fp32}
    if "asimdhp" in flags:
        found["fp16"] = 2 * fp32
    if "bf16" in flags:
        found["bf16"] = 4 * fp32
    if "i8mm" in flags:
        found["int8"] = 8 * fp32
    return found


def _cores(base: Path, cpuinfo: str) -> list[_Core]:
    """Physical cores that are online: of the threads of one core, the first."""
    blocks = [dict(re.findall(r"^([^\t:\n]+?)\s*: *(.*)$", block, re.M)) for block in cpuinfo.split("\n\n")]
    infos = {int(b["processor"]): b for b in blocks if b.get("processor", "").isdigit()}
    cpus = base / "sys/devices/system/cpu"
    found = []
    for number, info in sorted(infos.items()):
        cpu = cpus / f"cpu{number}"
        siblings = _read(cpu / "topology/thread_siblings_list") or str(number)
        if _members(siblings)[0] == number:
            khz = _read(cpu / "cpufreq/cpuinfo_max_freq")
            kept = (
                "CPU implementer",
                "CPU part",
                "vendor_id",
                "cpu family",
                "model name",
                "flags",
                "Features",
                "cpu MHz",
            )
            same = tuple((key, info[key]) for key in kept if key in info)
            found.append(_Core(1e3 * float(khz) if khz else None, same, _caches(cpu, len(_members(siblings)))))
    return found


def _caches(cpu: Path, threads_of_core: int) -> tuple[tuple[int, int, int], ...]:
    """(level, bytes, cores that share it) of data and unified caches, the nearest first."""
    found = []
    for index in sorted(cpu.glob("cache/index*")):
        size = re.fullmatch(r"(\d+)([KM]?)", _read(index / "size"))
        if _read(index / "type") not in ("Data", "Unified") or not size:
            continue
        sharers = max(1, len(_members(_read(index / "shared_cpu_list") or "0")) // threads_of_core)
        number = int(size.group(1)) * {"": 1, "K": 1024, "M": 1 << 20}[size.group(2)]
        found.append((int(_read(index / "level")), number, sharers))
    return tuple(sorted(found))


def _members(cpu_list: str) -> list[int]:
    """``0-2,8`` to [0, 1, 2, 8]."""
    numbers: list[int] = []
    for part in cpu_list.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _memory(base: Path) -> tuple[float, float]:
    """Bytes there are and bytes that are available now, within a container's limit."""
    lines = dict(re.findall(r"^(\w+):\s+(\d+) kB$", _read(base / "proc/meminfo"), re.M))
    total = 1024.0 * float(lines.get("MemTotal", 0))
    available = 1024.0 * float(lines.get("MemAvailable", 0))
    limit = _read(base / "sys/fs/cgroup/memory.max")
    if limit.isdigit() and 0 < int(limit) < total:
        used = float(_read(base / "sys/fs/cgroup/memory.current") or 0)
        available = min(available, max(float(limit) - used, 0.0))
        total = float(limit)
    return total, available


def _working_sets(device: Device) -> dict[str, int]:
    """Bytes that stay in each level: half of a cache (an eighth of a shared last one), four last caches for DRAM."""
    caches = device.cpu[0].cache
    sizes = {}
    for level in caches:
        shared = level.cores is not None and level.cores.value > 1
        sizes[f"L{level.level}"] = int(level.bytes.value / (8 if shared and level.level > 2 else 2))
    last = max((level.bytes.value for level in caches), default=1 << 20)
    sizes["dram"] = int(min(max(4 * last, 64 << 20), device.memory.bytes.value / 16))
    return sizes


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
