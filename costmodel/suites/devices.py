"""Published runs on devices that are not here: every figure without the family or the device that it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from ..device import Device, load_device
from ..errors import CostmodelError
from ..runs import Run
from ..validate import Case, Validation
from . import Options, Progress
from ._devices_bar import Bar
from ._devices_energy import energy
from ._devices_ncnn import more_threads, other_boards
from ._devices_page import write
from ._devices_quamba import quamba2


def run(device: Device, options: Options, progress: Progress) -> Validation:
    """`device` is not used; ``--part`` names tables of `TABLES`. All of them write ``reports/devices.md``.

    Some 600 steps are traced, and each trace is kept as it comes (`rebuild.trace_cache`): stopped and run again, it
    goes on where it was.
    """
    from ..measure.published import reference

    del device
    if not reference().is_dir():
        raise CostmodelError(
            f"{reference()} is missing: the published tables are not part of the project; say where they are with "
            "COSTMODEL_REFERENCE"
        )
    names = list(TABLES) if options.part == "all" else options.part.split(",")
    unknown = [n for n in names if n not in TABLES]
    if unknown:
        raise CostmodelError(f"there is no table {unknown[0]!r} in this suite; there are {', '.join(TABLES)}")
    found: list[Case] = []
    bars: list[Bar] = []
    skipped: dict[str, str] = {}
    for i, name in enumerate(names):
        for bar, cases, left_out in TABLES[name](partial(_of_table, progress, name, i, len(names))):
            bars.append(bar)
            found += cases
            skipped |= left_out
    if options.part == "all":
        write(bars, found, skipped)
    return Validation(tuple(found), skipped)


def _of_table(progress: Progress, name: str, i: int, n: int, done: int, total: int, what: str) -> None:
    progress(100 * i + 100 * done // max(total, 1), 100 * n, f"{name}, row {done + 1} of {total}: {what}")


Found = Iterator[tuple[Bar, list[Case], dict[str, str]]]


def pi4(progress: Progress) -> Found:
    """Training and head finetuning by torch 1.13, batches of 16."""
    from ..measure.published import cases, held_out, one_constant, table_of

    device = load_device("raspberry-pi-4b").before_fit("torch-eager")
    table = table_of("torch_train_rpi4.csv", device, "torch-eager", progress=progress)
    base = one_constant(table)
    zero = np.array([row.predicted for row in table.rows])
    of = "Pi 4 torch training"
    yield (
        Bar(f"{of}, 0 rows", "no row of this device", "mape", 0.30),
        cases(table, f"{of}, 0 rows", zero, base),
        table.skipped,
    )
    for k, goal in ((3, 0.15), (8, 0.10), (None, None)):
        name = f"{of}, {'all' if k is None else k} rows"
        split = f"{'all rows' if k is None else f'{k} rows chosen among those'} of other families; each family left out"
        predicted, spread = held_out(table, k)
        yield Bar(name, split, "mape", goal), cases(table, name, predicted, base, spread), {}


def i9(progress: Progress) -> Found:
    """Inference by torch 2.4 inductor on 14 cores; 320 rows drawn from the 1,435."""
    from ..measure.published import cases, held_out, one_constant, table_of

    device = load_device("i9-10940x").before_fit("torch-inductor")
    table = table_of(
        "timm_cpu_i9_10940x.csv.gz",
        device,
        "torch-inductor",
        lambda run: "2.4.0" in run.runtime,
        sample=320,
        progress=progress,
    )
    base = one_constant(table)
    of = "i9-10940X inductor"
    zero = np.array([row.predicted for row in table.rows])
    yield (
        Bar(f"{of}, 0 rows", "no row of this device", "median", None),
        cases(table, f"{of}, 0 rows", zero, base),
        table.skipped,
    )
    for k, goal in ((10, 0.15), (None, None)):
        name = f"{of}, {'all' if k is None else k} rows"
        split = f"{'all rows' if k is None else f'{k} rows chosen among those'} of other families, an eighth left out"
        predicted, spread = held_out(table, k)
        yield Bar(name, split, "median", goal), cases(table, name, predicted, base, spread), {}


def neusight(progress: Progress) -> Found:
    """Whole transformers, eager fp32, four cards."""
    from ..fewshot import fit_table
    from ..measure.published import cases, from_others, table_of

    cards = ("tesla-p100", "tesla-v100", "a100", "h100")
    tables = []
    for name in cards:
        card = load_device(name).before_fit("torch-cuda")
        aliases = [a.strip("*").lower() for a in card.aliases]
        tables.append(
            table_of(
                "neusight_transformer_e2e.csv",
                card,
                "torch-cuda",
                partial(_is_of, aliases),
                progress=progress,
            )
        )
    name = "NeuSight transformers, one run a card"
    found: list[Case] = []
    for table in tables:
        for i, row in enumerate(table.rows):
            test = [j for j, family in enumerate(table.families) if family != table.families[i]]
            if test:
                fit = fit_table([row])
                rest = table.picked(test)
                predicted = np.array([fit.seconds(r) for r in rest.rows])
                found += cases(rest, name, predicted, from_others(table, [i], test), note=f"fitted to {row.run.model}")
    yield Bar(name, "every choice of one run; models of other families, same card", "mape", 0.08), found, {}
    name = "NeuSight transformers, card left out"
    found = []
    for table in tables:
        others = [row for t in tables if t is not table for row in t.rows]
        fit = fit_table(others)
        constant = np.median([np.log(t.measured / t.roofline).mean() for t in tables if t is not table])
        predicted = np.array([fit.seconds(r) for r in table.rows])
        found += cases(table, name, predicted, table.roofline * np.exp(constant))
    yield Bar(name, "all rows of the three other cards", "mape", 0.15), found, {}


def timm(progress: Progress) -> Found:
    """timm on GPUs, AMP fp16, batches of 64 to 1024; 60 rows of each table."""
    from ..measure.published import cases, held_out, one_constant, table_of

    for file, device, runtime, mark, sample in (
        ("timm_gpu_infer.csv.gz", "rtx-4090", "torch-cuda", "2.9.1 eager", 60),
        ("timm_gpu_infer.csv.gz", "rtx-4090", "torch-cuda-inductor", "2.9.1 inductor", 60),
        ("timm_gpu_infer.csv.gz", "rtx-3090", "torch-cuda", "2.4.0 eager", 60),
    ):
        card = load_device(device).before_fit(runtime)
        table = table_of(file, card, runtime, partial(_ran, mark), sample=sample, progress=progress)
        name = f"timm on {card.title.removeprefix('NVIDIA GeForce ')}, {mark.split()[-1]}"
        base = one_constant(table)
        zero = np.array([row.predicted for row in table.rows])
        yield (
            Bar(f"{name}, 0 rows", "no row of this card", "median", None),
            cases(table, f"{name}, 0 rows", zero, base),
            table.skipped,
        )
        predicted, spread = held_out(table, None)
        split = "all rows of other families; an eighth of them left out"
        yield (
            Bar(f"{name}, all rows", split, "median", None),
            cases(table, f"{name}, all rows", predicted, base, spread),
            {},
        )


def _is_of(marks: list[str], run: Run) -> bool:
    return any(mark in run.device.lower() for mark in marks) and "CUDA eager" in run.runtime


def _ran(mark: str, run: Run) -> bool:
    return run.runtime.endswith(mark)


TABLES: dict[str, Callable[[Progress], Found]] = {
    "pi4": pi4, "i9": i9, "ncnn": other_boards, "threads": more_threads, "neusight": neusight, "timm": timm,
    "energy": energy, "quamba2": quamba2,
}  # fmt: skip
