from __future__ import annotations

from typing import Annotated

import typer


def devices(
    name: Annotated[
        str | None, typer.Argument(help="Show every number of one device with its source.", show_default=False)
    ] = None,
) -> None:
    """List the devices there are profiles for, or one device's numbers and their sources."""
    from rich.table import Table

    from .. import units
    from ..device import devices as known
    from ..device import load_device
    from ._console import console

    out = console()
    if name is not None:
        device = load_device(name)
        table = Table("number", "value", "kind", "source", title=f"{device.name}: {device.title}", title_justify="left")
        for place, number in device.numbers():
            table.add_row(place, f"{number.value:g}", number.kind, device.sources[number.source])
        out.print(table)
        return
    table = Table("device", "what it is", "memory", "runtimes", "guessed", box=None, pad_edge=False)
    for key, path in {"host": None, **known()}.items():
        device = load_device(
            path or key
        )  # by its path a calibration may be of another machine: it is listed all the same
        numbers = device.numbers()
        guessed = sum(n.kind == "guess" for _, n in numbers)
        table.add_row(
            device.name,
            device.title,
            units.size(device.memory.bytes.value),
            ", ".join(device.runtime),
            f"{guessed} of {len(numbers)}",
        )
    out.print(table)
