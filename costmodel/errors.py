"""The errors a user can meet: one class, few subclasses, each message with its fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["CaptureError", "CostmodelError", "FileError", "MissingExtra", "UnknownName", "near_names"]


class CostmodelError(Exception):
    """Anything that the user can put right. The command line prints it as one line and exits with 2."""


class FileError(CostmodelError):
    """A file that cannot be used: says which file, which key in it, and the fix."""

    def __init__(self, file: object, key: str, problem: str) -> None:
        where = f"{file}: {key}" if key else f"{file}"
        super().__init__(f"{where}: {problem}")


class UnknownName(CostmodelError, KeyError):
    """A name that does not exist: says what was given and the nearest names there are."""

    def __init__(self, what: str, given: str, allowed: Iterable[str], hint: str = "") -> None:
        names = sorted(allowed)
        near = near_names(given, names)
        known = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names) or 'none'}"
        super().__init__(f"no {what} named {given!r}; {known}{' ' + hint if hint else ''}")

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


def near_names(given: str, names: Iterable[str]) -> list[str]:
    """At most four names that may have been meant: spelt alike, or with the letters and digits of `given` in a row.

    >>> near_names("pi4", ["jetson-nano", "raspberry-pi-4b"]), near_names("latncy", ["latency_s", "energy_j"])
    (['raspberry-pi-4b'], ['latency_s'])
    """
    known, wanted = list(names), _squeezed(given)
    alike = get_close_matches(given, known, n=4, cutoff=0.6)
    within = [name for name in known if len(wanted) > 1 and wanted in _squeezed(name) and name not in alike]
    return [*alike, *within][:4]


def _squeezed(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


class MissingExtra(CostmodelError, ImportError):
    """A library that is optional and not installed: says the pip command that brings it."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed; run: pip install 'costmodel[{extra}]'")


class CaptureError(CostmodelError):
    """A step that cannot be traced: names the op or the module where it stopped."""
