"""Traces as they were committed: ``git:REV:path`` is read by ``git show``, nothing is checked out."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CostmodelError

if TYPE_CHECKING:
    from ..graph import OpGraph

__all__ = ["MARK", "committed_trace", "sides"]

MARK = "git:"


def sides(a: str, b: str) -> tuple[str, str]:
    """Both sides with their paths: a ``git:REV`` without one means the path of the other side.

    >>> sides("git:main~3", "traces/x.json.gz")
    ('git:main~3:traces/x.json.gz', 'traces/x.json.gz')
    >>> sides("git:v1:traces/x.json.gz", "git:HEAD")
    ('git:v1:traces/x.json.gz', 'git:HEAD:traces/x.json.gz')
    """
    paths = [_path(side) for side in (a, b)]
    if not any(paths) and MARK in (a[: len(MARK)], b[: len(MARK)]):
        raise CostmodelError(f"{a} and {b} name commits and no trace; write git:REV:path/to/trace.json.gz on one side")
    whole = [side if path else f"{side}:{other}" for side, path, other in zip((a, b), paths, paths[::-1], strict=True)]
    return whole[0], whole[1]


def _path(side: str) -> str:
    """The path that a side names; a model's name, too, is its own."""
    return side.removeprefix(MARK).partition(":")[2] if side.startswith(MARK) else side


def committed_trace(side: str) -> OpGraph:
    """The trace that ``git:REV:path`` names, the commit written behind the model's name.

    Raises:
        CostmodelError: no git, no such commit or no such file in it; FileError: not a trace of this version.
    """
    from ..graph import load

    revision, _, path = side.removeprefix(MARK).partition(":")
    if not revision or revision.startswith("-") or not path.endswith((".json", ".json.gz")):
        raise CostmodelError(f"{side} is not git:REV:path of a trace (.json.gz)")
    commit = _git("rev-parse", "--short", "--verify", f"{revision}^{{commit}}").decode().strip()
    inside = Path(path)
    if inside.is_absolute():
        top = Path(_git("rev-parse", "--show-toplevel").decode().strip()).resolve()
        if not inside.resolve().is_relative_to(top):
            raise CostmodelError(f"{path} lies outside this checkout ({top})")
        name = inside.resolve().relative_to(top).as_posix()
    else:
        name = f"./{inside.as_posix()}"
    content = _git("show", f"{commit}:{name}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / inside.name
        copy.write_bytes(content)
        graph = load(copy)
    graph.file = ""
    graph.meta = replace(graph.meta, model=f"{graph.meta.model}@{commit}")
    return graph


def _git(*words: str) -> bytes:
    try:
        return subprocess.run(["git", *words], capture_output=True, check=True).stdout
    except FileNotFoundError:
        raise CostmodelError("git is not installed; give two saved traces instead") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        raise CostmodelError(f"git {words[0]}: {said[-1] if said else 'failed'}") from None
