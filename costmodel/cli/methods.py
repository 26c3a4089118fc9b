from __future__ import annotations


def methods() -> None:
    """List the methods that --method takes, with their options."""
    from rich.table import Table

    from ..methods import methods as known
    from ._console import console

    table = Table("method", "what it does", "options", box=None, pad_edge=False)
    for name, about in known().items():
        options = [f"{o.name}={o.allowed} (default {o.default})" for o in about.options.values()]
        table.add_row(name, about.description, "\n".join(options))
    console().print(table)
