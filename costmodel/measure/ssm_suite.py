"""``validate --suite ssm``: decode and prefill of Mamba and Mamba-2 in every precision, at three sizes.

Decode reads every weight once, so what it takes is what DRAM gives, and that of a shared machine is not one number
(the reference machine's has two states). A group of jobs therefore runs in turn with `stream.reader`, and each is
priced by the profile with its DRAM rates scaled to what the reader found in the same process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..device import Device
from ..errors import CostmodelError
from ..validate import Case, Validation, fit_baseline
from .job import Job
from .repeats import Raw
from .stream import STREAM_BYTES
from .suite import Measured, Progress, compare, measure_groups

__all__ = ["SIZES", "ssm_groups", "ssm_suite", "with_dram"]

READER = Job(f"{Path(__file__).with_name('stream.py')}:reader", "infer")
# Model, and tokens of its prefill: two blocks of 130M, the whole of 130M, a block of 2.8B (2.7B).
SIZES: Mapping[str, tuple[tuple[str, int], ...]] = {
    "mamba": (
        ("transformers:mamba-130m,num_hidden_layers=2,vocab_size=4096", 512),
        ("transformers:mamba-130m", 64),
        ("transformers:mamba-2.8b,num_hidden_layers=1,vocab_size=4096", 128),
    ),
    "mamba2": (
        ("transformers:mamba2-130m,num_hidden_layers=2,vocab_size=4096", 512),
        ("transformers:mamba2-130m", 64),
        ("transformers:mamba2-2.7b,num_hidden_layers=1,vocab_size=4096", 128),
    ),
}
_QUAMBA2 = tuple(f"quamba2:bits={bits},gptq=false" for bits in ("w8a8", "w4a8", "w4a16"))
_METHODS = {"mamba": ("fused_scan", "quamba", *_QUAMBA2), "mamba2": ("fused_scan", *_QUAMBA2)}


def ssm_groups(base: str) -> tuple[tuple[Job, ...], ...]:
    """A group a size: every precision, decode and prefill, and the reader first."""
    return tuple(
        (
            READER,
            *(
                Job(model, mode, method, seq=seq)
                for method in _METHODS[base]
                for mode, seq in (("decode", 64), ("prefill", tokens))
            ),
        )
        for model, tokens in SIZES[base]
    )


def ssm_suite(
    device: Device,
    *,
    groups: Sequence[Sequence[Job]] | None = None,
    runtime: str | None = None,
    processes: int = 2,
    seconds: float = 1.0,
    into: Path | None = None,
    progress: Progress | None = None,
) -> Validation:
    """Latency of each step, predicted with the bandwidth of its own process, against measured.

    Args:
        device: this machine's profile.
        groups: the reader and the jobs that it runs with; both bases otherwise.
        runtime: of the device; its default otherwise.
        processes, seconds, progress: as in `suite.measure_groups`.
        into: a folder with a file of raw repeats a group.
    """
    groups = [g for base in SIZES for g in ssm_groups(base)] if groups is None else groups
    cases: list[Case] = []
    skipped: dict[str, str] = {}
    for number, group in enumerate(groups):
        kept = None if into is None else into / f"ssm-{number}.jsonl"
        raw, failed = measure_groups([group], processes=processes, seconds=seconds, into=kept, progress=progress)
        skipped |= failed
        reader, *jobs = group
        for job in jobs:
            if job in raw and reader in raw:
                try:
                    cases += _priced(job, raw[job], raw[reader], device, runtime)
                except CostmodelError as error:
                    skipped[job.name] = str(error)
    return Validation(fit_baseline(cases), skipped)


def _priced(job: Job, runs: Sequence[Raw], reads: Sequence[Raw], device: Device, runtime: str | None) -> list[Case]:
    """The calmest process of the job, priced with the bandwidth that the same process had."""
    best = min(range(len(runs)), key=lambda i: Measured.of([runs[i]]).wall_s)
    bytes_per_s = STREAM_BYTES / Measured.of([reads[best]]).wall_s
    scaled = with_dram(device, runtime, bytes_per_s)
    note = f"DRAM at {bytes_per_s / 1e9:.1f} GB/s"
    return [
        replace(case, note="; ".join(filter(None, (note, case.note))))
        for case in compare(job, Measured.of(runs), scaled, runtime)
    ]


def with_dram(device: Device, runtime: str | None, bytes_per_s: float) -> Device:
    """`device` whose one-core DRAM bandwidth is `bytes_per_s`: every rate of DRAM scales with it."""
    memory = device.memory
    measured = memory.core_read_bytes_per_s or memory.read_bytes_per_s
    slower = measured.value / bytes_per_s

    def rate(number: Any) -> Any:
        return None if number is None else number.model_copy(update={"value": number.value / slower})

    names = ("read_bytes_per_s", "write_bytes_per_s", "core_read_bytes_per_s", "core_write_bytes_per_s")
    rates = {name: rate(getattr(memory, name)) for name in names}
    name = runtime or device.default_runtime
    chosen = device.runtime[name]
    fits = tuple(
        fit.model_copy(
            update={
                "kinds": {
                    kind: constants.model_copy(
                        update={
                            way: {level: v * (slower if level == "dram" else 1.0) for level, v in found.items()}
                            for way, found in (("read_s", constants.read_s), ("write_s", constants.write_s))
                        }
                    )
                    for kind, constants in fit.kinds.items()
                }
            }
        )
        for fit in chosen.fit
    )
    return device.model_copy(
        update={
            "memory": memory.model_copy(update=rates),
            "runtime": {**device.runtime, name: chosen.model_copy(update={"fit": fits})},
        }
    )
