"""`costmodel largest`: the largest batch and the longest sequence that fit, as a user asks for them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from costmodel.cli import app
from costmodel.errors import CostmodelError
from costmodel.largest import largest_that_fits

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
    found = ask("conv-small", "-d", "raspberry-pi-4b", "--within", "1MiB")
    assert (found["size"], list(dict(found["traced"]))) == (0, ["1"])  # type: ignore[call-overload]


def test_nothing_fits_is_said_with_what_is_needed_after_one_trace() -> None:
    result = RUN.invoke(app, ["largest", "conv-small", "-d", "raspberry-pi-4b", "--within", "10MiB"])
    assert result.exit_code == 0
    said = " ".join(result.stdout.split())
    assert "Nothing fits: batch 1 of conv-small takes up to" in said
    assert "before it holds a tensor" in said
    assert "line through" not in said


def test_what_it_does_is_told_while_it_works() -> None:
    result = RUN.invoke(app, ["largest", "conv-small", "-d", "raspberry-pi-4b", "--within", "10MiB"])
    told = [line.strip() for line in result.stderr.splitlines()]
    assert told[:2] == ["looking for the largest batch of conv-small in 10.0 MiB", "tracing batch 1"]
    assert told[2].endswith("does not fit")


def test_a_runtime_that_the_device_lacks() -> None:
    with pytest.raises(CostmodelError, match="torch-cuda"):
        RUN.invoke(app, ["largest", "conv-small", "-d", "raspberry-pi-4b", "--runtime", "torch-cuda"],
                   catch_exceptions=False)  # fmt: skip


def test_a_peak_that_bends_is_found_in_few_traces() -> None:
    """As of attention, whose scores grow with the square of the length."""
    asked: list[int] = []

    def peak(size: int) -> int:
        asked.append(size)
        return 1_000_000 + 2_000 * size + 8 * size * size

    found = largest_that_fits(peak, 20_000_000, (32, 128))
    assert len(asked) <= 12  # thousands where each guess crept up by one
    assert peak(found.size) <= 20_000_000 < peak(found.size + 1)


def test_sequences_are_looked_for_below_the_first_size() -> None:
    asked: list[int] = []

    def peak(size: int) -> int:
        asked.append(size)
        return 1000 + 100 * size

    assert largest_that_fits(peak, 3_050, (32, 128)).size == 20
    assert asked == [32, 1, 20, 21]
    asked.clear()
    assert largest_that_fits(peak, 1_050, (32, 128)).size == 0
    assert asked == [32, 1]


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
