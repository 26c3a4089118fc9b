"""A validation as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from .. import units
from ..validate import Case, Summary, Validation
from ._table import Cell, Column, Table, cell

__all__ = ["cases_tables", "form_of", "signed_percent", "skipped_table", "summary_table", "verdict"]

_FORMS: dict[str, Callable[[float], str]] = {"_s": units.seconds, "_bytes": units.size, "_j": units.joules}


def form_of(quantity: str) -> Callable[[float], str]:
    """The formatter of a quantity, by the unit in its name."""
    if quantity == "flops":
        return units.flops
    return next((form for end, form in _FORMS.items() if quantity.endswith(end)), lambda v: f"{v:.4g}")


def title_of(quantity: str) -> str:
    """``peak_live_bytes`` as people say it."""
    return {"latency_s": "latency", "energy_j": "energy", "flops": "FLOPs"}.get(
        quantity, quantity.removesuffix("_bytes").replace("_", " ")
    )


def _percent(value: float | None) -> Cell:
    return cell(None) if value is None else cell(units.percent(value), value)


def signed_percent(value: float) -> str:
    """
    >>> signed_percent(-0.0512)
    '−5.1 %'
    """
    return f"{100 * value:+.1f} %".replace("-", "−")


def _signed(value: float) -> Cell:
    return cell(signed_percent(value), abs(value))


def verdict(validation: Validation) -> str:
    """The validation in one sentence."""
    s = validation.summary.get("latency_s")
    group = f"{validation.cases[0].group} " if validation.cases and validation.cases[0].group else ""
    parts = []
    if s is not None:
        beside = [] if s.noise_floor is None else [f"noise floor {units.percent(s.noise_floor)}"]
        if s.baseline_mape is not None:
            beside.append(f"one-constant roofline {units.percent(s.baseline_mape)}")
        parts.append(
            f"Latency is off by {units.percent(s.mape)} on average over {s.n} {group}case{'s' if s.n != 1 else ''}"
            + (f" ({', '.join(beside)})" if beside else "")
        )
    live = validation.summary.get("peak_live_bytes")
    if live is not None:
        parts.append(f"peak live bytes by {units.percent(live.mape, 2)}, at worst {units.percent(live.worst, 2)}")
    if not parts:
        parts = [f"{q}: off by {units.percent(s.mape)} over {s.n}" for q, s in validation.summary.items()]
    skipped = f" {len(validation.skipped)} skipped." if validation.skipped else ""
    return ("; ".join(parts) + "." if parts else "No cases.") + skipped


def summary_table(validation: Validation) -> Table:
    """Errors by quantity, beside the noise of the measurements and the roofline with one constant."""
    return Table(
        "Errors by quantity",
        (
            Column("quantity"), Column("cases", True), Column("MAPE", True), Column("median", True),
            Column("within 10 %", True), Column("worst", True), Column("Kendall τ", True),
            Column("in interval", True), Column("noise floor", True), Column("roofline MAPE", True),
        ),
        tuple(_summary_row(q, s) for q, s in validation.summary.items()),
        note="In interval: share of cases whose measured value lies inside the predicted interval. Kendall's τ counts "
        "pairs within a factor of two. The roofline has one constant a device, fitted on the other cases.",
    )  # fmt: skip


def _summary_row(quantity: str, s: Summary) -> tuple[Cell, ...]:
    return (
        cell(title_of(quantity)),
        cell(s.n, s.n),
        _percent(s.mape),
        _percent(s.median_ape),
        _percent(s.within_10),
        _percent(s.worst),
        cell(None) if s.kendall_tau is None else cell(f"{s.kendall_tau:.2f}", s.kendall_tau),
        _percent(s.interval_coverage),
        _percent(s.noise_floor),
        _percent(s.baseline_mape),
    )


def cases_tables(validation: Validation, most: int | None = None) -> list[Table]:
    """One table a quantity, a row a case; columns that no case fills are left out.

    Of more cases than `most`, those that are off most are shown.
    """
    tables = []
    for quantity in validation.summary:
        cases = [c for c in validation.cases if c.quantity == quantity and c.scored]
        shown = cases if most is None or len(cases) <= most else sorted(cases, key=lambda c: -abs(c.error))[:most]
        tables.append(_cases_table(quantity, shown, len(cases) - len(shown)))
    return tables


def _cases_table(quantity: str, cases: list[Case], left_out: int) -> Table:
    form = form_of(quantity)
    grouped = len({c.group for c in cases}) > 1
    devices = len({(c.device, c.runtime) for c in cases}) > 1
    has = {
        k: any(getattr(c, k) is not None for c in cases)
        for k in ("baseline", "noise", "published", "measured", "processor")
    }
    truth = "measured" if not has["published"] else "published" if not has["measured"] else "measured or published"
    columns = [Column("case")]
    if grouped:
        columns.append(Column("part"))
    if devices:
        columns.append(Column("device"))
    columns += [
        Column("predicted", True), Column("interval", True), Column(truth, True), Column("error", True),
        Column("inside"),
    ]  # fmt: skip
    if has["processor"]:
        columns.append(Column("processor", True))
    if has["noise"]:
        columns.append(Column("noise", True))
    if has["baseline"]:
        columns.append(Column("roofline", True))
    rows = []
    for c in cases:
        threads = f" ×{c.threads} threads" if c.threads > 1 and not c.setting else ""
        row = [cell(c.name.removesuffix(f" {quantity}") + threads)]
        if grouped:
            row.append(cell(c.group))
        if devices:
            row.append(cell(f"{c.device}, {c.runtime}"))
        row += [
            cell(form(c.predicted), c.predicted),
            cell(f"{form(c.low)} – {form(c.high)}", c.high - c.low),
            cell(form(c.truth), c.truth),
            _signed(c.error),
            cell("yes" if c.low <= c.truth <= c.high else "no"),
        ]
        if has["processor"]:
            row.append(cell(None) if c.processor is None else cell(form(c.processor), c.processor))
        if has["noise"]:
            row.append(_percent(c.noise))
        if has["baseline"]:
            row.append(cell(None) if c.baseline is None or not c.truth else _signed(c.baseline / c.truth - 1.0))
        rows.append(tuple(row))
    notes = [f"{note} ({n} case{'s' if n > 1 else ''})" for note, n in Counter(c.note for c in cases if c.note).items()]
    if left_out:
        notes.insert(0, f"the {len(cases)} cases that are off most; {units.count(left_out)} more are nearer")
    return Table(f"Predicted against {truth}: {title_of(quantity)}", tuple(columns), tuple(rows), note="; ".join(notes))


def skipped_table(validation: Validation, most: int | None = None) -> Table | None:
    """What was not compared, and why; None where nothing was skipped. More than `most` are counted by reason."""
    skipped = validation.skipped
    if not skipped:
        return None
    if most is None or len(skipped) <= most:
        rows = tuple((cell(name), cell(why)) for name, why in skipped.items())
        return Table("Skipped", (Column("case"), Column("why")), rows)
    by_reason: dict[str, list[str]] = {}
    for name, why in skipped.items():
        by_reason.setdefault(why, []).append(name)
    counted = tuple(
        (cell(len(names), len(names)), cell(why), cell(", ".join(names[:3]) + (", …" if len(names) > 3 else "")))
        for why, names in sorted(by_reason.items(), key=lambda r: -len(r[1]))
    )
    return Table("Skipped", (Column("cases", True), Column("why"), Column("such as")), counted)
