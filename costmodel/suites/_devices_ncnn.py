"""ncnn's table: other boards of a core, thread counts, and clusters of unlike cores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..core.table import F8
from ..device import Device, Number, load_device
from ..validate import Case
from . import Progress
from ._devices_bar import Bar

if TYPE_CHECKING:
    from ..measure.published import Table
    from ..runs import Run

FILE = "ncnn_benchncnn.csv.gz"


@dataclass(frozen=True)
class Board:
    """A board of the table: `mark` is in what the file calls it, `like` the profile with its cores.

    `clock_hz` is of its clusters, the fastest first, as the file gives them. `power` is ncnn's power save mode of its
    rows (2 is the big cores only, 0 all of them).
    """

    mark: str
    like: str
    clock_hz: float | tuple[float, ...]
    cores: int
    power: str = "0"

    def device(self) -> Device:
        """The board by what is known of its cores: no run of it."""
        from ..measure.published import at_clock

        profile = load_device(self.like).before_fit("ncnn")
        bare = profile.runtime["ncnn"].model_copy(update={"class_scale": {}})
        profile = profile.model_copy(update={"runtime": {**profile.runtime, "ncnn": bare}})
        return at_clock(profile, self.clock_hz, self.cores if len(profile.cpu) == 1 else None)


# The first of a core is the one that is fitted.
CORES: dict[str, tuple[Board, ...]] = {
    "Cortex-A53": (
        Board("Raspberry Pi 3 Model B+", "raspberry-pi-3b-plus", 1.4e9, 4),
        Board("Raspberry Pi Zero 2 W", "raspberry-pi-3b-plus", 1.0e9, 4),
        Board("Rockchip RK3228H", "raspberry-pi-3b-plus", 1.3e9, 4),
        Board("Snapdragon 410", "raspberry-pi-3b-plus", 1.2e9, 4),
        Board("AXERA AX630C", "raspberry-pi-3b-plus", 1.2e9, 2),
        Board("Arduino UNO Q", "raspberry-pi-3b-plus", 2.0e9, 4),
    ),
    "Cortex-A72": (
        Board("Raspberry Pi 4 Model B", "raspberry-pi-4b", 1.8e9, 4),
        Board("Rockchip RK3399 (", "rk3399", (1.8e9, 1.5e9), 2, "2"),
    ),
    "Cortex-A76": (
        Board("Snapdragon 855+", "snapdragon-855", (2.96e9, 2.42e9, 1.8e9), 1, "2"),
        Board("Jetson AGX Orin", "jetson-agx-orin", 2.2e9, 12),
    ),
    # its table is of an ncnn before fp16 arithmetic: what one of the other two says of it is off by the arithmetic
    "Cortex-A76, fp32 from fp16": (
        Board("Snapdragon 855+", "snapdragon-855", (2.96e9, 2.42e9, 1.8e9), 1, "2"),
        Board("Snapdragon 675", "raspberry-pi-5", 2.0e9, 2),
    ),
    "Cortex-A57": (
        Board("NVIDIA Jetson Nano", "jetson-nano", 1.43e9, 4),
        Board("Snapdragon 810", "jetson-nano", 2.0e9, 4, "2"),
    ),
    "Carmel": (Board("Jetson AGX Xavier", "jetson-agx-xavier", 2.2e9, 8),),
}


def board_table(board: Board, threads: int, serial: float, progress: Progress, power: str | None = None) -> Table:
    """Rows of a board at a thread count, priced with so much of a thread's compute that threads do not speed up."""
    from ..measure.published import table_of

    device = board.device()
    runtime = device.runtime["ncnn"]
    share = {"default": Number(value=serial, kind="guess", source=runtime.overhead_s.source)}
    device = device.model_copy(
        update={"runtime": {**device.runtime, "ncnn": runtime.model_copy(update={"serial": share})}}
    )
    mode = f"ps={board.power if power is None else power};"

    def keep(run: Run) -> bool:
        return (
            board.mark in run.device
            and run.threads == threads
            and run.dtype == "auto"
            and run.meta.get("accel") == "cpu"
            and run.meta.get("note", "").startswith(mode)
        )

    return table_of(FILE, device, "ncnn", keep, minimum=True, progress=progress)


def other_boards(progress: Progress) -> Iterator[tuple[Bar, list[Case], dict[str, str]]]:
    """One thread: fitted on one board of a core, other boards of it by their clock."""
    from ..fewshot import fit_table
    from ..measure.published import cases

    for core, boards in CORES.items():
        tables = [board_table(board, 1, 0.0, progress) for board in boards]
        pairs = [(tables[0], tables[1:])]
        if len(tables) == 2:
            pairs.append((tables[1], tables[:1]))
        if len(tables) < 2:
            continue
        name = f"ncnn {core}, other boards"
        found: list[Case] = []
        for fitted, others in pairs:
            fit = fit_table(fitted.rows)
            constant = np.exp(np.median(np.log(fitted.measured / fitted.roofline)))
            for table in others:
                predicted = np.array([fit.seconds(row) for row in table.rows])
                found += cases(table, name, predicted, constant * table.roofline)
        split = f"all rows of the {boards[0].mark}; boards: {', '.join(b.mark for b in boards[1:])}"
        goal = 0.15 if core in ("Cortex-A53", "Cortex-A72", "Cortex-A76") else None
        left_out = {f"ncnn {name}": why for table in tables for name, why in table.skipped.items()}
        yield Bar(name, split + (" and back" if len(pairs) > 1 else ""), "median", goal), found, left_out


@dataclass(frozen=True)
class Threaded:
    """Rows of a board at a thread count by a fit to its one-thread rows: seconds if nothing is serial, if all is.

    `roofline` has its one constant from the same one-thread rows.
    """

    board: Board
    threads: int
    table: Table
    parallel: F8
    serial: F8
    roofline: F8

    def at(self, share: float) -> F8:
        """Seconds with a serial share: compute is linear in it."""
        return (1.0 - share) * self.parallel + share * self.serial

    def best(self) -> float:
        """The share with the least median error."""
        error = [np.median(np.abs(np.log(self.at(s) / self.table.measured))) for s in _SHARES]
        return float(_SHARES[int(np.argmin(error))])


_SHARES = np.linspace(0.0, 0.6, 25)


def more_threads(progress: Progress) -> Iterator[tuple[Bar, list[Case], dict[str, str]]]:
    """2, 4, 6, 8 and 12 threads: scales from the board's own one-thread rows, the serial share from other boards."""
    from ..fewshot import fit_table
    from ..measure.published import cases

    found: dict[str, list[Threaded]] = {}
    for board in dict.fromkeys(board for boards in CORES.values() for board in boards):
        one = board_table(board, 1, 0.0, progress)
        fit = fit_table(one.rows)
        constant = float(np.exp(np.median(np.log(one.measured / one.roofline)))) if one.rows else 1.0
        for threads, power, label in (
            (2, board.power, "2"), (4, board.power, "4"), (8, board.power, "8"), (12, board.power, "12"),
            (4, "2", "mixed"), (6, "0", "mixed"), (8, "0", "mixed"),
        ):  # fmt: skip
            wide = len(load_device(board.like).cpu) > 1 and threads > board.cores
            if wide != (label == "mixed") or (not wide and threads > board.cores):
                continue
            tables = [board_table(board, threads, share, progress, power) for share in (0.0, 1.0)]
            if tables[0].rows:
                parallel, serial = (np.array([fit.seconds(row) for row in t.rows]) for t in tables)
                found.setdefault(label, []).append(
                    Threaded(board, threads, tables[0], parallel, serial, constant * tables[0].roofline)
                )
    for label, group in found.items():
        name = f"ncnn, {label} threads" if label != "mixed" else "ncnn, unlike cores at once"
        out: list[Case] = []
        for threaded in group:
            alike = found["4" if label == "mixed" or len(group) == 1 else label]
            others = [t.best() for t in alike if t.board != threaded.board]
            share = float(np.median(others))
            table = threaded.table
            own = threaded.best()
            note = f"{threaded.board.mark}: serial share {share:.2f} from other boards, its own best {own:.2f}"
            out += cases(table, name, threaded.at(share), threaded.roofline, note=note)
        whose = "boards of like cores at 4 threads" if label == "mixed" else "the other boards"
        split = f"class scales from the board's own 1-thread rows, serial share from {whose}"
        yield Bar(name, split, "median", None), out, {}
