"""`costmodel largest`: the largest batch and the longest sequence that fit, as a user asks for them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from costmodel.cli import app
from costmodel.errors import CostmodelError

RUN = CliRunner()


def ask(*arguments: str) -> dict[str, object]:
    result = RUN.invoke(app, ["largest", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    return dict(json.loads(result.stdout))


def upper_peak(*arguments: str) -> float:
    result = RUN.invoke(app, ["estimate", *arguments, "--json"], catch_exceptions=False)
    return float(json.loads(result.stdout)["memory_bytes"]["peak_rss"]["high"])


def test_largest_batch_fits_and_the_next_does_not() -> None:
    what = ("conv-small", "--mode", "train", "--device", "raspberry-pi-4b")
    found = ask(*what, "--within", "512MiB")
    size = int(str(found["size"]))
    assert size > 2
    assert found["bound_by"] == "memory"
    assert upper_peak(*what, "--batch", str(size)) <= 512 * 2**20 < upper_peak(*what, "--batch", str(size + 1))
    assert abs(float(str(found["error"]))) < 0.05


def test_text_says_the_answer_and_what_was_traced() -> None:
    result = RUN.invoke(app, ["largest", "conv-small", "-d", "raspberry-pi-4b", "--within", "450MiB"])
    assert result.exit_code == 0
    assert "of conv-small fits in 450 MiB" in result.stdout
    assert "was off by" in result.stdout


def test_nothing_fits() -> None:
    assert ask("conv-small", "-d", "raspberry-pi-4b", "--within", "1MiB")["size"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("conv-small", "--vary", "width"), "width"),
        (("conv-small", "--within", "much"), "not a limit"),
        (("trace.json.gz",), "saved trace"),
    ],
)
def test_questions_that_make_no_sense(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(CostmodelError, match=message):
        RUN.invoke(app, ["largest", *arguments], catch_exceptions=False)
