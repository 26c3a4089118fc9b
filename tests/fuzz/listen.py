"""Did anything run? Python's own audit events, heard while a door reads its input."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["watched"]

_EVENTS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.connect",
           "shutil.rmtree", "os.mkdir", "os.rename", "os.remove", "ctypes.dlopen", "urllib.Request"}  # fmt: skip
# what torch and its friends load and make once, whatever the input
_LIBRARIES_OWN = (sys.prefix, str(Path(tempfile.gettempdir()) / "torchinductor_"))
_heard: list[str] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _heard is None:
        return
    if arguments and str(arguments[0]).startswith(_LIBRARIES_OWN):
        return
    if event in _EVENTS:
        _heard.append(f"{event} {arguments!r:.120}")
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        _heard.append(f"open {arguments!r:.120}")


@cache
def _install() -> None:
    sys.addaudithook(_listen)


@contextmanager
def watched() -> Iterator[list[str]]:
    """What starts a process, opens a socket, or writes a file while a door reads its input."""
    global _heard
    _install()
    _heard = []
    try:
        yield _heard
    finally:
        _heard = None
