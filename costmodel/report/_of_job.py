"""Whole jobs as sentences and tables."""

from __future__ import annotations

from .. import units
from ..estimate import Range
from ..job import Job, Request, TrainingJob
from ._of_estimate import fit_verdict, ranged
from ._table import Cell, Column, Table, cell, column_in, rows_of

__all__ = ["gaps_table", "job_answer", "job_facts", "job_name", "parts_table"]


def job_name(job: Job) -> str:
    """What is run and how much of it."""
    meta = job.step.graph.meta
    model = " ".join(filter(None, (meta.model or "the model", meta.method)))
    if isinstance(job, Request):
        batch = f", batch {meta.batch}" if meta.batch > 1 else ""
        return f"{model}, prompt {job.prompt:,}, {job.generate:,} generated{batch}"
    assert isinstance(job, TrainingJob)
    return f"{model}, {_epochs(job)} of {job.samples:,} samples, batch {meta.batch}"


def job_answer(job: Job) -> str:
    """The job in one sentence, with its interval, its energy and whether it fits."""
    step = job.step
    where = f"{step.device.title}, {step.device.runtime[step.runtime].title}"
    if step.device.runtime[step.runtime].engine == "cpu":
        where += f", {step.threads} thread{'s' if step.threads > 1 else ''}"
    energy = job.energy_j
    joules = "" if energy is None else f" and {ranged(energy, units.joules)}"
    lacks = f", without {' and '.join(job.gaps)} (not known)" if job.gaps else ""
    if isinstance(job, Request):
        token = job.token_s
        pace = "" if token is None else f", {units.seconds(token.point)} a token after it"
        detail = f"first token after {units.seconds(job.first_token_s.point)}{pace}"
        peak, start = job.peak, "A request"
    else:
        assert isinstance(job, TrainingJob)
        detail = f"{job.steps:,} steps of {units.seconds(step.latency_s.point)}"
        peak, start = step, "A run"
    fits, need, room = fit_verdict(peak)
    return (
        f"{start} of {job_name(job)} takes {ranged(job.seconds, units.duration)}{joules} on {where}{lacks}: {detail}; "
        f"its peak of {units.size(need.point)} {fits} in {units.size(room)}."
    )


def job_facts(job: Job) -> list[tuple[str, str]]:
    """Figures of a job, label and text."""
    energy = "no sourced constants" if job.energy_j is None else ranged(job.energy_j, units.joules)
    facts = [("whole job", ranged(job.seconds, units.duration)), ("energy", energy)]
    if isinstance(job, Request):
        facts.append(("first token", ranged(job.first_token_s)))
        if job.token_s is not None:
            facts.append(("a token after it", ranged(job.token_s)))
            facts.append(("tokens a second", _rate(job.token_s, job.step.graph.meta.batch)))
        state = "grows with the context" if job.grows else "does not grow with the context"
        facts.append(("state of a step", state))
    elif isinstance(job, TrainingJob):
        facts.append(("steps", f"{job.steps:,} in {_epochs(job)}"))
        facts.append(("samples a second", _rate(job.seconds, job.epochs * job.samples)))
    return facts


def parts_table(job: Job) -> Table:
    """Parts of the job; they add up to the printed total."""
    column, times, total = column_in("duration", "time", [p.seconds.point for p in job.parts])
    columns, totals = [Column("part"), column], [cell("whole job"), total]
    bodies = [[cell(p.name) for p in job.parts], times]
    columns.append(Column("interval", True))
    bodies.append([_interval(p.seconds) for p in job.parts])
    totals.append(_interval(job.seconds))
    joules = [p.energy_j.point for p in job.parts if p.energy_j is not None]
    if job.energy_j is not None:
        column, energies, total = column_in("energy", "energy", joules)
        columns.append(column)
        bodies.append(energies)
        totals.append(total)
    columns.append(Column("from"))
    bodies.append([cell(p.source) for p in job.parts])
    totals.append(cell(""))
    return Table(f"Parts of the job: {job_name(job)}", tuple(columns), rows_of(*bodies), tuple(totals))


def _interval(seconds: Range) -> Cell:
    return cell(f"{units.duration(seconds.low)} – {units.duration(seconds.high)}", seconds.high - seconds.low)


def gaps_table(job: Job) -> Table | None:
    """What is not in the total, or None."""
    if not job.gaps:
        return None
    rows = tuple((cell(name), cell(why)) for name, why in job.gaps.items())
    return Table("Not in this job's total", (Column("what"), Column("why, and what to give")), rows)


def _rate(seconds: Range, things: float) -> str:
    """Things a second: the fast end of the time is the high end."""
    form = "{:.3g}".format
    low, point, high = (things / s if s else float("inf") for s in (seconds.high, seconds.point, seconds.low))
    return f"{form(point)} ({form(low)} – {form(high)})"


def _epochs(job: TrainingJob) -> str:
    return f"{job.epochs:,} epoch{'s' if job.epochs > 1 else ''}"
