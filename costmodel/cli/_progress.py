"""Progress on stderr, for anything over a second; silent where nobody looks (a pipe, CI)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["bar", "telling", "working"]

_ERR = Console(stderr=True)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner while one thing is done."""
    if not _ERR.is_terminal:
        yield
        return
    with _ERR.status(what):
        yield


@contextmanager
def telling(what: str) -> Iterator[Callable[[str], None]]:
    """What is going on while the number of steps is not known: a spinner whose text changes, or a line a step."""
    if not _ERR.is_terminal:
        _ERR.print(what, highlight=False)
        yield lambda step: _ERR.print(f"  {step}", highlight=False)
        return
    with _ERR.status(what) as status:
        yield lambda step: status.update(f"{what}: {step}")


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar; call it with the number done, the total, and what is next."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[next]}"),
    )
    if not _ERR.is_terminal:
        last = [""]

        def line(done: int, total: int, what: str) -> None:
            if what != last[0]:
                last[0] = what
                _ERR.print(f"{title} {done}/{total} {what}", highlight=False)

        yield line
        return
    with Progress(*columns, console=_ERR, transient=True) as progress:
        task = progress.add_task(title, total=None, next="")

        def update(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, next=what)

        yield update
