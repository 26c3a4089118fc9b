"""Pages of the docs are played: files are written and commands run as a reader would, on a copy of the checkout."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "reports" / "docs"
pytest.importorskip("torch")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("costmodel_docs", DOCS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["costmodel_docs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


# Commands of the pages that CI does not run, and why. Everything else that a page shows is run.
LEFT_OUT = {
    "git clone": "the checkout is there",
    "make demo": "makes an environment; .ci/run does",
    ". .venv/bin/activate": "the environment is there",
    "costmodel estimate timm:mobilenetv2_100": "traces 10 s each: COSTMODEL_PLAY_DOCS=1 runs these, and what is below",
    "costmodel estimate transformers:mamba-130m": "up to a minute each",
    "costmodel largest transformers:bert-small": "half a minute",
}
played = pytest.mark.skipif(
    not os.environ.get("COSTMODEL_PLAY_DOCS"), reason="minutes of tracing: COSTMODEL_PLAY_DOCS=1, after make docs"
)


def commands_of(build: ModuleType, text: str) -> list[str]:
    return [command for block in build.blocks(text) for command in (*block.commands, *block.lines)]


@pytest.mark.parametrize("page", ["../../README.md", "gallery.md", pytest.param("extend.md", marks=pytest.mark.slow)])
def test_every_command_of_a_page_runs(build: ModuleType, page: str) -> None:
    text = (DOCS / page).read_text()
    wanted = [c for c in commands_of(build, text) if not c.startswith(tuple(LEFT_OUT))]
    done = list(build.play(text, copy=page == "extend.md", left_out=LEFT_OUT))
    assert [command for _, command, _, _ in done] == wanted
    assert wanted
    for block, command, status, printed in done:
        silent = command.startswith("sed") and not printed.strip()
        right = status == 0 and "Traceback" not in printed and not printed.startswith("costmodel: ")
        assert right or silent, f"{page}: {command}\n{printed[-800:]}"
        shown = [line for line in block.body.splitlines() if line.strip() and not line.startswith("$ ")]
        assert shown or not printed.strip() or block.lines, f"{page}: {command}: no output on the page; run make docs"


def test_what_is_left_out_is_on_a_page(build: ModuleType) -> None:
    pages = [ROOT / "README.md", *DOCS.glob("*.md")]
    shown = [command for page in pages for command in commands_of(build, page.read_text())]
    assert len(shown) > 20
    assert [start for start in LEFT_OUT if not any(c.startswith(start) for c in shown)] == []


@played
@pytest.mark.parametrize("page", ["extend.md", "gallery.md"])
def test_every_command_of_a_page_does_what_it_says(build: ModuleType, page: str) -> None:
    text = (DOCS / page).read_text()
    done = list(build.play(text, copy=page == "extend.md"))
    assert len(done) == len(commands_of(build, text)) > 5
    for _, command, status, printed in done:
        assert status == 0, f"{page}: {command}\n{printed[-800:]}"
        assert "Traceback" not in printed


@pytest.mark.slow
def test_python_of_the_readme_runs(build: ModuleType) -> None:
    """The blocks of Python in order, in one namespace."""
    names: dict[str, Any] = {}
    code = [b.body for b in build.blocks((ROOT / "README.md").read_text()) if b.language == "python" and not b.file]
    assert len(code) == 2
    for body in code:
        exec(compile(body, "README.md", "exec"), names)
    assert names["est"].latency_s.point > 0
    assert names["errors"].summary["latency_s"].n == 1


@played
def test_what_the_readme_shows_is_what_is_printed(build: ModuleType, tmp_path: Path) -> None:
    """The first command of the README: its verdict has the same words, and figures within a factor of 1.5."""
    block = build.blocks((ROOT / "README.md").read_text())[0]
    (command,) = block.commands
    only = f"```console\n$ {command}\n```\n"
    ((_, _, status, printed),) = build.play(only)
    assert status == 0, printed[-800:]
    number = re.compile(r"\d[\d.,]*")
    shown, now = (" ".join(t.split("\n\n")[0].split()) for t in (block.body.partition("\n")[2], printed))
    assert number.sub("#", shown) == number.sub("#", now), "run make docs"
    for a, b in zip(number.findall(shown), number.findall(now)):
        x, y = (float(n.replace(",", "").rstrip(".")) for n in (a, b))
        assert x == pytest.approx(y, rel=0.5), f"{a} on the page, {b} now: run make docs"


def test_links_of_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *DOCS.glob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_files_named_in_pages_exist() -> None:
    """A page that names a file of the package names one that there is."""
    text = (DOCS / "theory.md").read_text()
    named = set(re.findall(r"`((?:core/)?\w+\.py|costs/)`", text))
    assert len(named) > 10
    assert [n for n in named if not (ROOT / "costmodel" / n).exists()] == []


def test_the_reference_has_every_public_name(build: ModuleType) -> None:
    import costmodel

    text = build.api()
    assert "\n# API reference" in "\n" + text
    for name in costmodel.__all__:
        assert f"`{name}`" in text
    for name in ("capture", "estimate", "Estimate", "Cost", "load_device", "render", "measure", "validate", "pareto"):
        assert f"### {name}\n" in text, name
