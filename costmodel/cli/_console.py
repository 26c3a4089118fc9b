"""Where commands print: as wide as the terminal; wide enough for tables where nobody's terminal is asked (a pipe)."""

from __future__ import annotations

from rich.console import Console

__all__ = ["console"]

_PIPE_COLUMNS = 120


def console() -> Console:
    """A console on stdout."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=_PIPE_COLUMNS)
