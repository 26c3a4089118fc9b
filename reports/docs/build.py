"""Pages whose commands are run: ``make docs`` writes what they print now, and `tests/test_docs.py` runs them.

A fenced block of ``console`` holds commands after ``$``, each followed by what it printed. A block whose first line is
a comment with a path (``# costs/mine.py``) is that file: it is written before the commands below it are run. Pages
are played in a folder that sees the checkout's ``traces`` and ``hwprofiles``; a page that adds files to the package
is played in a copy of the checkout.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
PLAYED = ("../../README.md", "gallery.md", "extend.md")
API = (
    "capture", "graph", "device", "estimate", "job", "budget", "compare", "validate", "pareto", "runs", "costs",
    "costs.spec", "kernels", "methods", "models", "measure", "report", "errors",
)  # fmt: skip
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^(?:#|//) ([\w./-]+\.\w+)\n")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what is in it, and where that stands in the page."""

    language: str
    body: str
    start: int
    end: int

    @property
    def file(self) -> str | None:
        """The path that its first line names, if it is a file."""
        found = _FILE.match(self.body)
        return found[1] if found and self.language != "console" else None

    @property
    def commands(self) -> list[str]:
        """What stands after ``$``; a line that ends in a backslash goes on."""
        joined = self.body.replace("\\\n", "\\\0")
        return [
            line[2:].replace("\\\0", "\\\n")
            for line in joined.splitlines()
            if line.startswith("$ ") and self.language == "console"
        ]

    @property
    def lines(self) -> list[str]:
        """The commands of a block of ``sh``, which shows none of what they print."""
        said = (line.partition(" #")[0].strip() for line in self.body.splitlines())
        return [line for line in said if line] if self.language == "sh" else []


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [Block(m[1], m[2], m.start(2), m.end(2)) for m in _FENCE.finditer(text)]


def stage(folder: Path, copy: bool) -> dict[str, str]:
    """Make `folder` a place to play in and return the environment: links to the checkout, or a copy of it."""
    for name in ("costmodel", "hwprofiles", "traces", "tests", "pyproject.toml"):
        if not copy:
            (folder / name).symlink_to(CHECKOUT / name)
        elif (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("runs", "fuzz", "benchmarks"))
        else:
            shutil.copy2(CHECKOUT / name, folder / name)
    programs = folder / ".bin"
    programs.mkdir()
    for name, module in (("python", ""), ("costmodel", "-m costmodel"), ("pytest", "-m pytest")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "COSTMODEL_HOME": str(folder / ".home"),
        "COLUMNS": "110",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


def play(text: str, copy: bool = False, left_out: Collection[str] = ()) -> Iterator[tuple[Block, str, int, str]]:
    """Write the files of a page and run its commands: (block, command, exit status, what it printed).

    Commands that begin with one of `left_out` are not run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        environment = stage(folder, copy)
        for block in blocks(text):
            if block.file is not None:
                target = folder / block.file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.body)
            for command in (*block.commands, *block.lines):
                if command.startswith(tuple(left_out)):
                    continue
                done = subprocess.run(
                    ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
                )
                said = done.stdout if done.stdout.strip() else done.stderr
                said = said.replace(f"{folder}/", "")
                yield block, command, done.returncode, said.rstrip() + "\n"


def rewritten(text: str, copy: bool = False) -> str:
    """A page with what its commands print now."""
    printed: dict[int, str] = {}
    ends: dict[int, int] = {}
    for block, command, _, output in play(text, copy):
        if block.lines:
            continue
        tidy = "".join(line.rstrip() + "\n" for line in output.splitlines()) if output.strip() else ""
        printed[block.start] = printed.get(block.start, "") + f"$ {command}\n{tidy}"
        ends[block.start] = block.end
    for start in sorted(printed, reverse=True):
        text = text[:start] + printed[start] + text[ends[start] :]
    return text


def api() -> str:
    """One page of the public names, from their signatures and docstrings."""
    parts = [
        "# API reference\n",
        "Built from docstrings by `make docs`. The names of `import costmodel as cm` are "
        f"{', '.join(f'`{n}`' for n in import_module('costmodel').__all__)}; each is documented where it lives.\n",
    ]
    for name in API:
        module = import_module(f"costmodel.{name}")
        parts.append(f"## costmodel.{name}\n\n{inspect.getdoc(module) or ''}\n")
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            own = getattr(value, "__module__", "").startswith(module.__name__)
            if own and (inspect.isclass(value) or inspect.isfunction(value)):
                parts.append(_entry(public, value))
    return "\n".join(parts)


def _entry(name: str, value: object) -> str:
    """A heading with the signature, then the docstring as it is written."""
    try:
        signature = str(inspect.signature(value))  # type: ignore[arg-type]
    except ValueError:
        signature = ""
    signature = signature if len(signature) < 400 else "(…)"
    about = inspect.getdoc(value) or ""
    lines = [f"### {name}\n", f"```python\n{name}{signature}\n```\n", f"```text\n{about}\n```\n"]
    if inspect.isclass(value):
        for key, member in vars(value).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if key[0] == "_" or not inspect.isfunction(function) or not function.__doc__:
                continue
            head = key if isinstance(member, property) else f"{key}{inspect.signature(function)}"
            lines.append(f"* `{head}`: {' '.join((inspect.getdoc(function) or '').split(chr(10) * 2)[0].split())}")
        lines.append("")
    return "\n".join(lines)


def main(pages: list[str]) -> None:
    """Play and write the pages named, or all of them and the API reference."""
    sys.path.insert(0, str(CHECKOUT))
    for name in pages or [*PLAYED, "api.md"]:
        path = (HERE / name).resolve()
        text = api() if name == "api.md" else rewritten(path.read_text(), copy=name == "extend.md")
        path.write_text(text)
        print(f"wrote {path.relative_to(CHECKOUT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
