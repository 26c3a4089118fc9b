"""compare between commits: a trace is read out of git, nothing is checked out, and what is not there is said."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from costmodel.cli import app
from costmodel.cli._committed import committed_trace, sides
from costmodel.errors import CostmodelError

from . import report_cases as cases


def git(folder: Path, *words: str) -> None:
    name = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two commits of one trace: a training step of batch 2, then an inference."""
    git(tmp_path, "init", "-q")
    (tmp_path / "traces").mkdir()
    for mode in ("train", "infer"):
        graph = cases.graph("mobilenet-v3-small", mode, 2)
        graph.save(tmp_path / "traces" / "step.json.gz")
        git(tmp_path, "add", "-A")
        git(tmp_path, "commit", "-q", "-m", mode)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> tuple[int, str, object]:
    result = CliRunner().invoke(app, ["compare", *words, "--device", "raspberry-pi-4b"])
    return result.exit_code, result.stdout, result.exception


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("git:HEAD~1", "traces/step.json.gz"),
        ("git:HEAD~1:traces/step.json.gz", "git:HEAD"),
        ("git:HEAD~1", "git:HEAD:traces/step.json.gz"),
    ],
)
def test_two_commits_are_set_side_by_side(checkout: Path, a: str, b: str) -> None:
    code, text, error = run(a, b, "--json")
    assert code == 0, error
    compared = json.loads(text.strip().splitlines()[-1])
    assert (compared["a"]["mode"], compared["b"]["mode"]) == ("train", "infer")
    assert compared["delta_s"] < 0
    assert compared["peak"][0]["bytes"] > compared["peak"][1]["bytes"]
    assert "@" in compared["a"]["model"]
    assert subprocess.run(["git", "status", "--porcelain"], cwd=checkout, capture_output=True).stdout == b""


def test_the_text_says_what_got_cheaper_and_where_the_peak_moved(checkout: Path) -> None:
    code, text, error = run("git:HEAD~1", "traces/step.json.gz")
    assert code == 0, error
    assert "less than mobilenet-v3-small@" in text.replace("\n", " ")
    assert "convolution_backward" in text


def test_a_committed_trace_is_the_one_that_was_saved(checkout: Path) -> None:
    graph = committed_trace(f"git:HEAD~1:{checkout / 'traces' / 'step.json.gz'}")
    ours = cases.graph("mobilenet-v3-small", "train", 2)
    assert graph.op_name == ours.op_name
    assert replace(graph.meta, model="") == replace(ours.meta, model="")


@pytest.mark.parametrize(
    ("side", "says"),
    [
        ("git:nowhere:traces/step.json.gz", "git rev-parse"),
        ("git:HEAD:traces/none.json.gz", "git show"),
        ("git:--output=x:traces/step.json.gz", "is not git:REV:path"),
        ("git:HEAD:traces/step.txt", "is not git:REV:path"),
        ("git:HEAD:/etc/step.json.gz", "outside this checkout"),
    ],
)
def test_what_is_not_committed_is_said(checkout: Path, side: str, says: str) -> None:
    with pytest.raises(CostmodelError, match=says):
        committed_trace(side)


def test_two_commits_need_a_path() -> None:
    with pytest.raises(CostmodelError, match="no trace"):
        sides("git:a", "git:b")
    assert sides("timm:x", "traces/y.json.gz") == ("timm:x", "traces/y.json.gz")
