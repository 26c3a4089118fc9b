from __future__ import annotations

from typing import Annotated

import typer


def models(
    family: Annotated[
        str | None, typer.Argument(help="own, transformers, timm or torchvision; all if left out.", show_default=False)
    ] = None,
    search: Annotated[str, typer.Option("--search", "-s", help="Only names that contain this.")] = "",
) -> None:
    """List the models that can be named; any other comes from path/file.py:function or a .pt2."""
    from ..models import available
    from ._progress import working

    with working("reading the registers"):
        found = available([family] if family else None)
    for group, names in found.items():
        prefix = "" if group == "own" else f"{group}:"
        for name in names:
            if search in name:
                print(f"{prefix}{name}")
