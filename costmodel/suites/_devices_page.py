"""The page of the devices suite: a line a figure, the largest misses, what was left out, and what is still a guess."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..device import Device, devices, load_device
from ..errors import FileError
from ..graph import write_atomic
from ..validate import Case, summarize
from ._devices_bar import Bar

__all__ = ["PAGE", "page", "write"]

PAGE = Path("reports/devices.md")
_WORST = 5
# What the tables say of their own repeats: no predictor can be seen to be better.
_NOISE = {
    "i9-10940X": "two torch versions of the table differ by 5 % median, 22 % at p90",
    "ncnn": "minimum of 8 runs; the spread of a row's repeats is 1 to 3 %",
    "ncnn, A76-class": "855+ and AGX Orin at equal clocks differ by 4 % median, by 13 to 32 % on nets that read DRAM",
    "ncnn, threads": "the serial share of boards of one core differs by up to 0.35, which no rule can know",
    "Pi 4": "mean of 20 steps, reading images included; no repeats",
    "NeuSight": "mean of the best 5 of 25",
    "timm": "one value a row",
    "AGX Xavier": "wall power averaged over a run",
    "Quamba2": "one value a cell",
}


def write(bars: Sequence[Bar], cases: Sequence[Case], skipped: Mapping[str, str], path: Path = PAGE) -> Path:
    """Write the page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomic(path, page(bars, cases, skipped).encode())


def page(bars: Sequence[Bar], cases: Sequence[Case], skipped: Mapping[str, str]) -> str:
    """The page as Markdown."""
    lines = [
        "# Devices that are not here",
        "",
        "Written by `costmodel validate --suite devices` from the published tables in `../shared/reference` "
        "(`COSTMODEL_REFERENCE`), which are not part of the project; one table by `--part NAME`. Every figure leaves "
        "out the family of models or the device that it predicts; profiles are taken as they were before any run of "
        "the device (`Device.before_fit`). The roofline has its one constant from all rows of the other families or "
        "devices, also where the fit had fewer. τ counts pairs within a factor of two.",
        "",
        "| figure | split | n | MAPE | median | p90 | τ | roofline MAPE, median | bar |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    groups = {bar.group: [c for c in cases if c.group == bar.group] for bar in bars}
    lines += [_line(bar, groups[bar.group]) for bar in bars if groups[bar.group]]
    lines += ["", "## Noise of the tables", ""] + [f"* {table}: {what}." for table, what in _NOISE.items()]
    lines += ["", "## Largest misses", ""]
    for bar in bars:
        worst = sorted(groups[bar.group], key=lambda c: -abs(c.error))[:_WORST]
        lines.append(f"* **{bar.group}**: " + "; ".join(f"{_name(c)} {100 * c.error:+.0f} %" for c in worst) + ".")
    notes = list(dict.fromkeys(c.note for c in cases if c.note and "serial" in c.note))
    if notes:
        lines += ["", "## Serial share of a thread's compute, board by board", ""] + [f"* {note}" for note in notes]
    lines += ["", "## Left out", ""]
    lines += [f"* {n} rows: {why}." for why, n in Counter(skipped.values()).most_common()] or ["Nothing."]
    lines += ["", "## Numbers of the shipped profiles that are guesses", ""] + _guesses()
    return "\n".join(lines) + "\n"


def _line(bar: Bar, cases: Sequence[Case]) -> str:
    s = summarize(cases)
    error = np.abs([c.error for c in cases])
    base = [abs(c.baseline / c.truth - 1.0) for c in cases if c.baseline is not None]
    roofline = f"{_percent(float(np.mean(base)))}, {_percent(float(np.median(base)))}" if base else "–"
    tau = "–" if s.kendall_tau is None else f"{s.kendall_tau:.2f}"
    got = {"mape": s.mape, "median": s.median_ape, "worst": s.worst}[bar.statistic]
    verdict = "none"
    if bar.goal is not None:
        verdict = f"{bar.statistic} ≤ {_percent(bar.goal)}: {'met' if got <= bar.goal else '**missed**'}"
    return (
        f"| {bar.group} | {bar.split} | {s.n} | {_percent(s.mape)} | {_percent(s.median_ape)} | "
        f"{_percent(float(np.quantile(error, 0.9)))} | {tau} | {roofline} | {verdict} |"
    )


def _name(case: Case) -> str:
    where = case.device.split("(")[0].split(",")[0].strip()
    return " ".join(filter(None, (case.model, case.method or case.mode, case.size, f"×{case.threads}", where)))


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _guesses() -> list[str]:
    lines = []
    for name in devices():
        try:
            device = load_device(name)
        except FileError:
            continue
        if name == "host" or any(n.kind == "measured" and n.source == "peaks" for _, n in device.numbers()):
            continue  # a machine that was calibrated here
        lines.append(f"* `{name}`: {_guesses_of(device)}")
    return lines


def _guesses_of(device: Device) -> str:
    """Guesses of the hardware by name, those of runtimes counted."""
    hardware = [place for place, number in device.numbers() if number.kind == "guess" and "runtime" not in place]
    runtimes = Counter(place.split(".")[1] for place, n in device.numbers() if n.kind == "guess" and "runtime" in place)
    said = ", ".join(f"{place}" for place in hardware) or "no hardware number"
    return f"{said}; in runtimes: " + (", ".join(f"{n} of {name}" for name, n in runtimes.items()) or "none") + "."
