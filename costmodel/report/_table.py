"""The one table that every format draws: cells as people read them, with the values behind them for sorting.

Additive columns are printed in one unit with a fixed number of decimals, and rounded so that the printed cells add up
to the printed total: a reader who re-adds a column finds the total, to the last digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "Cell", "Column", "Row", "Scale", "Table", "adding_up", "before_and_after", "cell", "column_in", "rows_of",
    "share_column",
]  # fmt: skip

_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_IEC = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
_SI = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
UNITS = {
    "time": _TIME,
    "bytes": _IEC,
    "flops": tuple((factor, f"{prefix}FLOP") for factor, prefix in _SI),
    "count": ((1.0, ""),),
    "duration": ((3600.0, "h"), (60.0, "min"), *_TIME),
    "energy": ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ")),
}


@dataclass(frozen=True)
class Cell:
    """What is printed, and what it is sorted by (None sorts as the text)."""

    text: str
    value: float | None = None


Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Column:
    """A heading; numbers are set to the right."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under headings.

    Attributes:
        title: what it shows.
        columns: one a cell of each row.
        rows: the body.
        total: a last row that the additive columns add up to, or None.
        note: what a reader must know to read it, or empty.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    total: Row | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for row in (*self.rows, *((self.total,) if self.total else ())):
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: a row of {len(row)} cells under {len(self.columns)} headings")


def cell(text: object, value: float | None = None) -> Cell:
    """A cell of any text; None is a dash."""
    return Cell("–" if text is None or text == "" else str(text), value)


def adding_up(values: Sequence[float], decimals: int) -> list[int]:
    """Round to units of ``10**-decimals`` so that the rounded values add up to their rounded sum (largest remainder).

    Each answer is less than one unit away from its value.

    >>> adding_up([1 / 3, 1 / 3, 1 / 3], 2)
    [34, 33, 33]
    """
    scaled = [v * 10**decimals for v in values]
    answer = [math.floor(v) for v in scaled]
    missing = round(math.fsum(scaled)) - sum(answer)
    order = sorted(range(len(scaled)), key=lambda i: (answer[i] - scaled[i], i))
    for i in order[:missing]:
        answer[i] += 1
    return answer


@dataclass(frozen=True)
class Scale:
    """The one unit and the decimals that a column is printed in."""

    factor: float
    unit: str
    decimals: int

    @classmethod
    def of(cls, dimension: str, values: Sequence[float], digits: int = 4) -> Scale:
        """The unit of `UNITS` in which the largest of `values` and their sum has at least `digits` digits."""
        steps = UNITS[dimension]
        largest = max((abs(v) for v in (*values, math.fsum(values))), default=0.0)
        factor, unit = next((s for s in steps if largest >= s[0]), steps[-1])
        whole = len(str(int(largest / factor)))
        exact = factor == steps[-1][0] and dimension in ("bytes", "count")
        return cls(factor, unit, 0 if exact else max(digits - whole, 0))

    def heading(self, title: str) -> Column:
        return Column(f"{title} / {self.unit}" if self.unit else title, True)

    def rounded(self, values: Sequence[float]) -> list[int]:
        """`values` in units of the last decimal, adding up."""
        return adding_up([v / self.factor for v in values], self.decimals)

    def text(self, rounded: int) -> str:
        """
        >>> Scale(1.0, "s", 2).text(-1234567)
        '−12,345.67'
        """
        return f"{rounded / 10**self.decimals:,.{self.decimals}f}".replace("-", "−")


def column_in(dimension: str, title: str, values: Sequence[float], digits: int = 4) -> tuple[Column, list[Cell], Cell]:
    """An additive column in the one unit that gives its sum `digits` digits.

    Args:
        dimension: a key of `UNITS`.
        title: heading, without the unit.
        values: SI values, one a row.
        digits: of the sum; the unit and the decimals follow.

    Returns:
        The heading with its unit, a cell a value, and the cell of the total.
    """
    scale = Scale.of(dimension, values, digits)
    rounded = scale.rounded(values)
    cells = [Cell(scale.text(n), v) for n, v in zip(rounded, values)]
    return scale.heading(title), cells, Cell(scale.text(sum(rounded)), math.fsum(values))


def before_and_after(
    dimension: str, a: Sequence[float], b: Sequence[float], digits: int = 4
) -> list[tuple[Column, list[Cell], Cell]]:
    """Columns ``a``, ``b`` and ``b − a`` in one unit: they add up downwards, and each row subtracts to the digit."""
    scale = max(Scale.of(dimension, a, digits), Scale.of(dimension, b, digits), key=lambda s: s.factor)
    first, second = scale.rounded(a), scale.rounded(b)
    columns = []
    for title, rounded, values in (
        ("a", first, list(a)),
        ("b", second, list(b)),
        ("b − a", [y - x for x, y in zip(first, second)], [y - x for x, y in zip(a, b)]),
    ):
        cells = [Cell(scale.text(n), v) for n, v in zip(rounded, values)]
        columns.append((scale.heading(title), cells, Cell(scale.text(sum(rounded)), math.fsum(values))))
    return columns


def share_column(values: Sequence[float], title: str = "share") -> tuple[Column, list[Cell], Cell]:
    """Shares of the sum in per cent that add up to 100.0 (all 0.0 where the sum is 0)."""
    total = math.fsum(values)
    shares = [v / total if total else 0.0 for v in values]
    rounded = adding_up([100.0 * s for s in shares], 1)
    cells = [Cell(f"{n / 10:.1f}", s) for n, s in zip(rounded, shares)]
    return Column(f"{title} / %", True), cells, Cell(f"{sum(rounded) / 10:.1f}", math.fsum(shares))


def rows_of(*columns: Iterable[Cell]) -> tuple[Row, ...]:
    """Columns of cells to rows."""
    return tuple(zip(*columns, strict=True))
