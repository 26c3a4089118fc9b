"""The walls: what may import what, how long a file may be, and that importing costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "costmodel"
FILES = sorted(PACKAGE.rglob("*.py"))

# The data flows down this page; a file imports only from rows above its own (DESIGN.md §1).
ROWS = (
    ("errors", "units", "toml"),
    ("core",),
    ("costs",),
    ("graph", "inplace"),
    ("device", "inherit", "runs", "host", "peaks", "sources"),
    ("calibrated",),
    ("lower", "fusion"),
    ("footprint", "fusion"),
    ("placement",),
    ("estimate",),
    ("job",),
    ("budget", "compare", "largest"),
    ("kernels",),
    ("methods",),
    ("fakes",),
    ("models",),
    ("capture",),
    ("validate", "pareto", "fewshot"),
    ("measure",),
    ("opfit", "calibrate", "ablation"),
    ("tasks",),
    ("suites",),
    ("report",),
    ("cli", "__main__", "jupyter"),
)
ROW_OF = {name: i for i, row in enumerate(ROWS) for name in row}
TORCH_ROOMS = {"kernels", "methods", "models", "fakes", "capture", "measure", "tasks"}
PLOTTERS = {"matplotlib", "plotly", "jinja2"}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_only: bool = False) -> list[tuple[str, int]]:
    """(dotted name, line) of every import, our own as ``costmodel.…``."""
    found: list[tuple[str, int]] = []
    tree = ast.parse(path.read_text())
    inside = path.relative_to(PACKAGE.parent).with_suffix("").parts
    parents = inside[:-1]
    for node in ast.iter_child_nodes(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(a.name, node.lineno) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module or "")))
            found += [(f"{module}.{a.name}" if module == "costmodel" else module, node.lineno) for a in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_from_rows_above(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    assert own in ROW_OF, f"{own} is in no row of the design: add it to ROWS where the data flow"
    for name, line in imports(path):
        if not name.startswith("costmodel."):
            continue
        other = name.split(".")[1]
        assert other == own or other not in ROW_OF or ROW_OF[other] <= ROW_OF[own], (
            f"{path.name}:{line}: {own} imports {other}, which is below it"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_outside_imports_stay_in_their_rooms(path: Path) -> None:
    own = room(path)
    for name, line in imports(path):
        top = name.split(".")[0]
        where = f"{path.relative_to(PACKAGE)}:{line}"
        if top == "torch":
            assert own in TORCH_ROOMS, f"{where}: torch is imported only by {sorted(TORCH_ROOMS)}"
        if top in PLOTTERS:
            assert own == "report", f"{where}: {top} is imported only by report/"
        if own == "core":
            assert top in {"numpy", "numba", "typing", "__future__", "costmodel", "math"}, (
                f"{where}: core/ imports numpy and numba only, not {top}"
            )
        if top in {"typer", "rich"}:
            assert own in {"cli", "report"}, f"{where}: {top} belongs to the command line"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_file_over_500_lines(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= 500, f"{path.name} has {lines} lines: the room is full, split it"


def test_no_drawer_for_odds_and_ends() -> None:
    assert not [p for p in FILES if p.stem in {"utils", "helpers", "common", "misc"}]


def test_importing_costs_no_torch_numba_or_matplotlib() -> None:
    heavy = ("torch", "numba", "matplotlib", "pandas", "plotly", "scipy", "networkx", "pydantic")
    code = f"import sys, costmodel; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
