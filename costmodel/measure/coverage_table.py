"""Results of coverage as a page of Markdown: what is traced, what is priced, and why not."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from .coverage import CLASSES, LIBRARIES, MODES, Result

__all__ = ["page", "summary"]

TIME_BAR = 0.01  # share of the time of a step that an op without a formula may have


def summary(results: Sequence[Result]) -> list[dict[str, object]]:
    """A row a library and mode: cases, traced, priced, seconds."""
    rows: list[dict[str, object]] = []
    for library in LIBRARIES:
        for mode in MODES:
            own = [r for r in results if r.model.startswith(f"{library}:") and r.mode == mode]
            traced = [r for r in own if r.traced]
            if not own:
                continue
            rows.append(
                {
                    "library": library,
                    "mode": mode,
                    "cases": len(own),
                    "traced": len(traced),
                    "share": len(traced) / len(own),
                    "ops": _mean(r.priced_ops for r in traced),
                    "flops": _mean(r.priced_flops for r in traced),
                    "time": _mean(r.priced_time for r in traced),
                    "unpriced": sum(r.worst > TIME_BAR for r in traced),
                    "seconds": _mean(r.seconds for r in traced),
                }
            )
    return rows


def page(results: Sequence[Result], *, producer: str, device: str, command: str) -> str:
    """The whole report.

    Args:
        results: one a case.
        producer: versions of what was traced.
        device: whose profile priced the time.
        command: what wrote it.
    """
    lines = [
        "# Coverage",
        "",
        f"Written by `{command}`; {producer}; time shares as priced on {device}. Models are built without weights and",
        "traced on fake tensors; transformers classes have two layers a stack, at their own configuration's width,",
        "where they can be made so shallow.",
        "",
        _verdict(results),
        "",
        "| library | mode | cases | traced | share | ops priced | FLOPs priced | time priced |"
        " steps with an op over 1 % of the time by default | seconds a case |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['library']} | {row['mode']} | {row['cases']} | {row['traced']} | {row['share']:.1%} | "
        f"{row['ops']:.2%} | {row['flops']:.2%} | {row['time']:.2%} | {row['unpriced']} | {row['seconds']:.1f} |"
        for row in summary(results)
    ]
    lines += ["", "## Why not", ""]
    failures = Counter(r.failure for r in results if r.failure)
    if not failures:
        lines.append("Everything was traced.")
    for name, count in failures.most_common():
        lines += [f"* **{name}** ({count}): {CLASSES[name]}"]
    lines += ["", "| model | mode | class | why |", "|---|---|---|---|"]
    for why, failure, model, modes in _grouped(results):
        lines.append(f"| {model} | {modes} | {failure} | {why} |")
    lines += _assumed(results)
    gaps = _gaps(results)
    lines += ["", "## Ops without a formula", ""]
    if not gaps:
        lines.append("None.")
    else:
        lines += ["| op | steps | largest share of a step's time |", "|---|---|---|"]
        lines += [f"| {name} | {count} | {share:.2%} |" for name, count, share in gaps]
    lines += ["", "## Every case", "", "| model | mode | ops | GFLOP | seconds | result |", "|---|---|---|---|---|---|"]
    for r in sorted(results, key=lambda r: (r.model, r.mode)):
        said = r.failure or ("priced" if not r.unpriced else f"{r.priced_time:.1%} of the time priced")
        said += f", assumed: {_cell(r.assumed)}" if r.assumed else ""
        lines.append(f"| {r.model} | {r.mode} | {r.ops:,} | {r.flops / 1e9:,.2f} | {r.seconds:.1f} | {said} |")
    return "\n".join(lines) + "\n"


def _verdict(results: Sequence[Result]) -> str:
    """How many are traced, how many of the others for a reason of their own, and what is left to do."""
    traced = sum(r.traced for r in results)
    ours = sum(r.failure == "ours" for r in results)
    dear = sum(r.worst > TIME_BAR for r in results)
    return (
        f"**{traced:,} of {len(results):,} cases are traced ({traced / max(len(results), 1):.1%})**; "
        f"{len(results) - traced - ours} cannot be for the reasons below, {ours} for a bug of this tool; in {dear} an "
        f"op without a formula has more than {TIME_BAR:.0%} of the time."
    )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0


def _grouped(results: Sequence[Result]) -> list[tuple[str, str, str, str]]:
    """(why, class, model, modes) with both modes of a model in one row where they fail alike."""
    modes: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for r in results:
        if r.failure:
            modes[_cell(r.why), r.failure, r.model].append(r.mode)
    return sorted((why, failure, model, ", ".join(m)) for (why, failure, model), m in modes.items())


def _assumed(results: Sequence[Result]) -> list[str]:
    """How many traces take something for granted, by what: numbers of ops are left out of the words."""
    of_trace = [{_COUNT.sub("", part) for part in r.assumed.split("; ")} for r in results if r.assumed]
    count = Counter(part for parts in of_trace for part in parts)
    if not count:
        return []
    lines = ["", "## What traces take for granted", "", "| assumed | cases |", "|---|---|"]
    return lines + [f"| {_cell(part)} | {n} |" for part, n in count.most_common()]


_COUNT = re.compile(r" ×\d+")


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:200]


def _gaps(results: Sequence[Result]) -> list[tuple[str, int, float]]:
    count: Counter[str] = Counter()
    largest: dict[str, float] = {}
    for r in results:
        for name, _, share in r.unpriced:
            count[name] += 1
            largest[name] = max(share, largest.get(name, 0.0))
    return sorted(((n, c, largest[n]) for n, c in count.items()), key=lambda row: -row[2])
