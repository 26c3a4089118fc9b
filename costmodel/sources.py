"""Where numbers come from: files of traces, runs and profiles, each with the digest of what was read."""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from .device import devices, profile_folders

__all__ = ["Source", "place_of", "profile_sources", "source_of"]

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Source:
    """A file that a number was read from.

    Attributes:
        file: its path from the checkout's root where it lies in the checkout, else the whole path.
        sha256: of its bytes, when it was read.
        what: what it holds, in words.
    """

    file: str
    sha256: str
    what: str


def place_of(path: str | os.PathLike[str]) -> str:
    """A path as reports name it: from the checkout's root, with slashes, where it lies in the checkout."""
    whole = Path(path).resolve()
    return whole.relative_to(_ROOT).as_posix() if whole.is_relative_to(_ROOT) else whole.as_posix()


def source_of(path: str | os.PathLike[str], what: str) -> Source:
    """The file at `path`, digested now."""
    return Source(place_of(path), hashlib.sha256(Path(path).read_bytes()).hexdigest(), what)


def profile_sources(name: str) -> tuple[Source, ...]:
    """The profile of a device by name, the profile that it is laid over, and the cores that it names.

    Empty for a device that is in no file that is found by name (detected, or given by a path).
    """
    path = devices().get(name)
    found: list[Path] = []
    while path is not None and path not in found:
        found.append(path)
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        cores = {c.get("core") for c in document.get("cpu", ()) if isinstance(c, dict)}
        found += [p for core in sorted(filter(None, cores)) if (p := _first(path.parent, f"cores/{core}.toml"))]
        path = _first(path.parent, f"{document['base']}.toml") if isinstance(document.get("base"), str) else None
    return tuple(source_of(p, f"profile of {name}") for p in found)


def _first(beside: Path, name: str) -> Path | None:
    return next((p for f in (beside, *profile_folders()) if (p := f / name).is_file()), None)
