"""A profile laid over what it starts from: the board that it names as ``base``, and the cores of its clusters."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import FileError

__all__ = ["inherit", "read_toml"]


def inherit(path: Path, document: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    """The whole profile of `path`, whose own part is `document`; `folders` hold others, and cores in ``cores/``."""
    whole = _inherit_base(path, document, folders)
    _inherit_cores(path, whole, folders)
    return whole


def read_toml(path: Path) -> dict[str, Any]:
    """A document of at most 16 MiB."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > 1 << 24:
                raise FileError(path, "", "is larger than 16 MiB; not a profile")
            return tomllib.load(file)
    except FileNotFoundError:
        raise FileError(path, "", "no such file") from None
    except (ValueError, OSError, RecursionError) as error:  # not TOML, not UTF-8, or a path with a null byte
        raise FileError(path, "", f"is not TOML: {error}") from None


def _inherit_base(
    path: Path, document: dict[str, Any], folders: Sequence[Path], above: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Lay a profile over the one it names as ``base``: a power mode of a board says only what it changes."""
    base = document.pop("base", None)
    if base is None:
        return document
    found = [f / f"{base}.toml" for f in (path.parent, *folders)]
    source = next((p for p in found if isinstance(base, str) and "/" not in base and os.path.isfile(p)), None)
    if source is None:
        raise FileError(path, "base", f"there is no profile {base!r} to start from; there are {_names(folders)}")
    if base in above or source.resolve() == path.resolve():
        raise FileError(path, "base", f"{base!r} leads back to itself; name a profile without a base")
    lower: dict[str, Any] = _laid_over(_inherit_base(source, read_toml(source), folders, (*above, path.stem)), document)
    return lower


def _laid_over(base: Any, own: Any) -> Any:
    """Tables merge key by key and lists of tables entry by entry; anything else of `own` replaces `base`."""
    if isinstance(base, dict) and isinstance(own, dict):
        return base | {key: _laid_over(base[key], value) if key in base else value for key, value in own.items()}
    if isinstance(base, list) and isinstance(own, list) and all(isinstance(item, dict) for item in base + own):
        return [_laid_over(b, o) for b, o in zip(base, own)] + base[len(own) :] + own[len(base) :]
    return own


def _names(folders: Sequence[Path]) -> str:
    return ", ".join(dict.fromkeys(p.stem for folder in folders for p in sorted(folder.glob("*.toml"))))


def _inherit_cores(path: Path, document: dict[str, Any], folders: Sequence[Path]) -> None:
    """Fill each cluster from `cores/<core>.toml`, so that a board says only what is its own."""
    clusters = document.get("cpu")
    if not isinstance(clusters, list):
        return
    for cluster in clusters:
        core = cluster.get("core") if isinstance(cluster, dict) else None
        if not isinstance(core, str):
            continue
        found = [f / "cores" / f"{core}.toml" for f in (path.parent, *folders)]
        source = next((p for p in found if "/" not in core and "\\" not in core and os.path.isfile(p)), None)
        if source is None:
            raise FileError(path, "cpu.core", f"there is no {core!r} in cores/; give name, flops_per_cycle and cache")
        shared = read_toml(source)
        for key, value in shared.get("core", {}).items():
            if key == "cache":
                cluster["cache"] = _caches_laid_over(value, cluster.get("cache", []))
            else:
                cluster.setdefault(key, value)
        _rates_of_caches(cluster)
        sources = document.setdefault("sources", {})
        if isinstance(sources, dict):
            for key, value in shared.get("sources", {}).items():
                sources.setdefault(key, value)


def _caches_laid_over(shared: Any, own: Any) -> Any:
    """A board's cache levels over those of its core, level by level: most boards differ only in the size of L2."""
    if not (isinstance(shared, list) and isinstance(own, list)):
        return own
    if not all(isinstance(c, dict) and isinstance(c.get("level"), int) for c in shared + own):
        return own
    levels = {entry.get("level"): entry for entry in shared}
    for entry in own:
        levels[entry.get("level")] = levels.get(entry.get("level"), {}) | entry
    return list(levels.values())


def _rates_of_caches(cluster: dict[str, Any]) -> None:
    """Turn ``read_bytes_per_cycle`` of a cache (what a core's file knows) into bytes a second at the board's clock."""
    clock, caches = cluster.get("clock_hz"), cluster.get("cache")
    for entry in caches if isinstance(caches, list) else ():
        for way in ("read", "write"):
            number = entry.get(f"{way}_bytes_per_cycle") if isinstance(entry, dict) else None
            if not (isinstance(number, dict) and isinstance(clock, dict)):
                continue  # the schema names what is wrong with it
            del entry[f"{way}_bytes_per_cycle"]
            try:
                rate = number | {"value": float(number["value"]) * float(clock["value"])}
            except (KeyError, TypeError, ValueError, OverflowError):
                rate = number
            entry.setdefault(f"{way}_bytes_per_s", rate)
