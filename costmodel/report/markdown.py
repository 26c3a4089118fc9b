"""Reports in GitHub's Markdown, for pull requests and issues."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ._listing import listing
from ._table import Row, Table

if TYPE_CHECKING:
    from . import Report

__all__ = ["markdown_table", "plain", "render"]

SUFFIX = ".md"


def render(report: Report) -> str:
    """A heading, a sentence and tables for each part."""
    blocks = []
    for heading, sentence, tables in listing(report):
        blocks += [f"### {plain(heading)}", f"**{plain(sentence)}**", *(markdown_table(t) for t in tables)]
    return "\n\n".join(blocks) + "\n"


def plain(text: str) -> str:
    """`text` as it is: what Markdown or HTML would read as marks is escaped."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", " ".join(text.split()))


def markdown_table(table: Table) -> str:
    """A table with its title above and its note below."""
    lines = [
        f"*{plain(table.title)}*",
        "",
        _line(tuple(plain(c.title) for c in table.columns)),
        _line(tuple("---:" if c.numeric else "---" for c in table.columns)),
        *(_line(_texts(row)) for row in table.rows),
    ]
    if table.total:
        lines.append(_line(tuple(f"**{t}**" if t != "–" else "" for t in _texts(table.total))))
    if table.note:
        lines += ["", plain(table.note)]
    return "\n".join(lines)


def _texts(row: Row) -> tuple[str, ...]:
    return tuple(plain(c.text) for c in row)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
