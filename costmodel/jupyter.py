"""Graphs, estimates, jobs, validations, fronts and comparisons show themselves in a notebook.

Importing costmodel where an IPython shell runs is enough; ``%load_ext costmodel.jupyter`` does the same by hand. What
is shown is registered by name, so that nothing is imported before it is used.
"""

from __future__ import annotations

from typing import Any

__all__ = ["SHOWN", "load_ipython_extension"]

SHOWN = {
    "OpGraph": "costmodel.graph",
    "Estimate": "costmodel.estimate",
    "TrainingJob": "costmodel.job",
    "Request": "costmodel.job",
    "Validation": "costmodel.validate",
    "Front": "costmodel.pareto",
    "Comparison": "costmodel.compare",
}
"""Types that have a picture in HTML, and the module of each."""


def load_ipython_extension(ipython: Any) -> None:
    """Called by IPython; registers an HTML formatter for each type of `SHOWN`."""
    html = ipython.display_formatter.formatters["text/html"]
    for name, module in SHOWN.items():
        html.for_type_by_name(module, name, _html)


def _html(what: Any) -> str:
    from .report import repr_html

    return repr_html(what)
