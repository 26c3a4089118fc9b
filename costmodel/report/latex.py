r"""Tables for papers: LaTeX with booktabs, nothing else needed.

Put ``\usepackage{booktabs}`` into the preamble and ``\input`` the file; each table has a caption and a label
``tab:costmodel-…`` made from its title.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ._listing import listing
from ._table import Row, Table

if TYPE_CHECKING:
    from . import Report

__all__ = ["render"]

SUFFIX = ".tex"
_MARKS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "–": "--", "−": "$-$", "×": r"$\times$", "±": r"$\pm$", "≤": r"$\leq$", "·": r"$\cdot$", "µ": r"$\mu$",
    "τ": r"$\tau$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "ε": r"$\varepsilon$", "…": r"\ldots{}",
}  # fmt: skip


def render(report: Report) -> str:
    """Every table of the report, each a float of its own."""
    seen: dict[str, int] = {}
    parts = ["% \\usepackage{booktabs}"]
    for heading, sentence, tables in listing(report):
        parts.append("\n".join(f"% {line}" for line in (heading, sentence)))
        parts += [_table(t, heading, seen) for t in tables]
    return "\n\n".join(parts) + "\n"


def tex(text: str) -> str:
    r"""`text` with what LaTeX would read as commands escaped.

    >>> print(tex("50 % of w_1"))
    50 \% of w\_1
    """
    return "".join(_MARKS.get(c, c) for c in text)


def _table(table: Table, heading: str, seen: dict[str, int]) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", f"{heading} {table.title}".lower()).strip("-")
    seen[label] = seen.get(label, 0) + 1
    label += f"-{seen[label]}" if seen[label] > 1 else ""
    caption = table.title if table.title == heading else f"{table.title}: {heading}"
    note = f" {table.note}" if table.note else ""
    lines = [
        "\\begin{table}",
        "  \\centering\\small\\setlength{\\tabcolsep}{4pt}",
        f"  \\caption{{{tex(caption)}.{tex(note)}}}",
        f"  \\label{{tab:costmodel-{label}}}",
        f"  \\begin{{tabular}}{{{''.join(_columns(table))}}}",
        "    \\toprule",
        f"    {' & '.join(tex(c.title) for c in table.columns)} \\\\",
        "    \\midrule",
        *(f"    {_line(row)}" for row in table.rows),
    ]
    if table.total:
        lines += ["    \\midrule", f"    {_line(table.total)}"]
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}"])


def _columns(table: Table) -> list[str]:
    """Numbers to the right, words to the left, long texts broken."""
    kinds = []
    for i, column in enumerate(table.columns):
        longest = max((len(row[i].text) for row in table.rows), default=0)
        kinds.append("r" if column.numeric else "l" if longest <= 42 else "p{0.5\\linewidth}")
    return kinds


def _line(row: Row) -> str:
    return " & ".join(tex(c.text) for c in row) + " \\\\"
