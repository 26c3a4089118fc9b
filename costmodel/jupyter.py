"""``%load_ext costmodel.jupyter``: graphs, estimates, validations and fronts show themselves in a notebook."""

from __future__ import annotations

from typing import Any

__all__ = ["load_ipython_extension"]


def load_ipython_extension(ipython: Any) -> None:
    """Called by IPython; registers an HTML formatter for each type that `report.repr_html` draws."""
    from .compare import Comparison
    from .estimate import Estimate
    from .graph import OpGraph
    from .job import Request, TrainingJob
    from .pareto import Front
    from .report import repr_html
    from .validate import Validation

    html = ipython.display_formatter.formatters["text/html"]
    for kind in (OpGraph, Estimate, TrainingJob, Request, Validation, Front, Comparison):
        html.for_type(kind, repr_html)
