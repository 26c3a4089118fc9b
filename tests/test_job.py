"""Whole jobs: the core against its plain twin, what must be conserved, gaps by name, the command that prints them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import costmodel as cm
from costmodel.cli import app
from costmodel.core.job import decode_sum, epoch_seconds
from costmodel.device import Device, Energy, Number, load_device
from costmodel.errors import CostmodelError
from costmodel.estimate import Estimate, estimate
from costmodel.job import Request, TrainingJob, decode_contexts, request, request_of, state_grows, training_job
from costmodel.measure.job import Job
from costmodel.report import formats, render

from . import report_cases as cases
from .naive import job as naive

seconds = st.floats(1e-3, 1e3)


@given(st.integers(1, 60), seconds, st.floats(0, 1e3), st.integers(0, 7))
def test_an_epoch_takes_what_a_queue_of_batches_takes(steps: int, step_s: float, read_s: float, workers: int) -> None:
    ours = epoch_seconds(steps, step_s, read_s, workers)
    assert ours == pytest.approx(naive.epoch_seconds(steps, step_s, read_s, workers), rel=1e-9)
    assert ours >= steps * step_s * (1 - 1e-12)
    assert ours >= steps * read_s / max(workers, 1) * (1 - 1e-12)
    assert epoch_seconds(steps, step_s, read_s, workers + 1) <= ours * (1 + 1e-12)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=5, unique=True), st.data())
def test_a_decode_sum_is_a_loop_over_the_tokens(contexts: list[int], data: st.DataObject) -> None:
    contexts.sort()
    values = data.draw(st.lists(seconds, min_size=len(contexts), max_size=len(contexts)))
    first = data.draw(st.integers(1, 500))
    last = first + data.draw(st.integers(0, 300))
    ours = decode_sum(np.array(contexts), np.array(values), first, last)
    assert ours == pytest.approx(naive.decode_sum(contexts, values, first, last), rel=1e-9)
    middle = (first + last) // 2
    halves = [decode_sum(np.array(contexts), np.array(values), a, b) for a, b in ((first, middle), (middle + 1, last))]
    assert ours == pytest.approx(sum(halves), rel=1e-9)


@given(st.integers(1, 2000), st.integers(2, 500), seconds, st.floats(0, 1))
def test_a_decode_sum_of_a_straight_line_is_exact(prompt: int, generate: int, base: float, slope: float) -> None:
    at = decode_contexts(prompt, generate)
    ours = decode_sum(np.array(at), np.array([base + slope * c for c in at]), prompt, prompt + generate - 2)
    n = generate - 1
    exact = n * base + slope * (n * prompt + n * (n - 1) / 2)
    assert ours == pytest.approx(exact, rel=1e-9)


@cache
def with_energy() -> Device:
    """The Pi's profile with energy constants and start-up numbers of a test."""
    device = load_device("raspberry-pi-4b")

    def number(value: float) -> Number:
        return Number(value=value, kind="guess", source="test")

    memory = device.memory.model_copy(update={"storage_bytes_per_s": number(4e7)})
    runtime = device.runtime["torch-eager"].model_copy(update={"start_s": number(8.0), "first_op_s": number(1e-3)})
    return device.model_copy(
        update={
            "energy": Energy(idle_w=number(2.5), flop_j=number(1e-10), byte_j=number(1e-10)),
            "memory": memory,
            "runtime": {**device.runtime, "torch-eager": runtime},
            "sources": {**device.sources, "test": "made up by tests/test_job.py"},
        }
    )


@cache
def step(full: bool = False, threads: int = 2) -> Estimate:
    return estimate(cases.graph(), with_energy() if full else load_device("raspberry-pi-4b"), threads=threads)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 100_000), st.integers(0, 6), st.booleans())
def test_a_run_is_linear_in_its_epochs(epochs: int, samples: int, workers: int, full: bool) -> None:
    one = training_job(step(full), epochs=1, samples=samples, workers=workers, start_s=0)
    many = training_job(step(full), epochs=epochs, samples=samples, workers=workers, start_s=0)
    assert many.seconds.point == pytest.approx(epochs * one.seconds.point, rel=1e-9)
    assert many.steps == epochs * math.ceil(samples / 2)
    if full:
        assert many.energy_j is not None
        assert one.energy_j is not None
        assert many.energy_j.point == pytest.approx(epochs * one.energy_j.point, rel=1e-9)
    for part in many.parts:
        assert part.seconds.low <= part.seconds.point <= part.seconds.high
    assert many.seconds.low <= many.seconds.point <= many.seconds.high
    assert many.seconds.point == pytest.approx(sum(p.seconds.point for p in many.parts), rel=1e-12)


def test_workers_hide_reading_where_a_core_is_free() -> None:
    alone = training_job(step(threads=4), epochs=1, samples=64, workers=4)
    assert alone.seconds == training_job(step(threads=4), epochs=1, samples=64).seconds
    beside = training_job(step(), epochs=1, samples=64, workers=4)
    taking_turns = training_job(step(), epochs=1, samples=64)
    assert beside.seconds.point < taking_turns.seconds.point
    batch_s = 2 * step().device.runtime["torch-eager"].sample_s.value  # type: ignore[union-attr]
    assert beside.seconds.point == pytest.approx(32 * step().latency_s.point + batch_s, rel=1e-9)
    assert taking_turns.seconds.point == pytest.approx(32 * (step().latency_s.point + batch_s), rel=1e-9)


def test_what_a_profile_does_not_know_is_a_gap_and_not_a_number() -> None:
    job = training_job(step(), epochs=2, samples=10)
    assert set(job.gaps) == {"start-up"}
    assert "start_s" in job.gaps["start-up"]
    assert [p.name for p in job.parts] == ["steps", "data loading"]
    assert job.energy_j is None
    given = training_job(step(), epochs=2, samples=10, sample_s=0.0, start_s=30.0)
    assert not given.gaps
    assert given.seconds.point == pytest.approx(10 * step().latency_s.point + 30.0, rel=1e-12)
    elsewhere = estimate(cases.graph(), load_device("jetson-nano"))
    assert set(training_job(elsewhere, epochs=1, samples=1).gaps) == {"data loading", "start-up"}


def test_start_up_is_priced_by_its_numbers() -> None:
    job = training_job(step(True), epochs=1, samples=2)
    graph = step(True).graph
    held = sum(b for b, r in zip(graph.storage_bytes, graph.storage_role) if r in ("parameter", "buffer"))
    start = job.part("start-up")
    assert start.point == pytest.approx(8.0 + held / 4e7 + 1e-3 * len(graph), rel=1e-12)
    assert start.low < start.point < start.high
    assert set(job.gaps) == {"energy of data loading"}


def test_images_seconds_are_not_for_texts() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.Linear(8, 4))
    graph = cm.capture(model, (torch.zeros(2, 5, dtype=torch.long),), mode="train")
    job = training_job(estimate(graph, load_device("raspberry-pi-4b")), epochs=1, samples=4)
    assert "images" in job.gaps["data loading"]


@cache
def _graph(name: str, mode: str, tokens: int) -> cm.OpGraph:
    return Job(name, mode, seq=tokens).trace()


def _request(name: str, prompt: int, generate: int, device: Device | None = None) -> Request:
    asked: list[tuple[str, int]] = []

    def trace(mode: str, tokens: int) -> cm.OpGraph:
        asked.append((mode, tokens))
        return _graph(name, mode, tokens)

    target = device or load_device("raspberry-pi-4b")
    made = request_of(trace, lambda g: estimate(g, target), prompt=prompt, generate=generate)
    assert len(asked) == 1 + len(made.decodes)
    return made


def test_a_cache_grows_and_a_state_does_not() -> None:
    gpt, mamba = _request("transformers:gpt2-tiny", 24, 21), _request("transformers:mamba-tiny", 24, 21)
    assert gpt.grows
    assert gpt.contexts == (24, 33, 43)
    assert not mamba.grows
    assert mamba.contexts == (43,)
    assert state_grows(_graph("transformers:gpt2-tiny", "decode", 24), 24)
    first, *_, last = gpt.decodes
    assert last.flops > first.flops
    one = mamba.decodes[0].latency_s.point
    assert mamba.part("decode").point == pytest.approx(20 * one, rel=1e-9)
    assert mamba.token_s is not None
    assert mamba.token_s.point == pytest.approx(one, rel=1e-9)
    # tracing at the other contexts gives the same cost: one step does stand for all
    again = estimate(_graph("transformers:mamba-tiny", "decode", 24), load_device("raspberry-pi-4b"))
    assert again.latency_s.point == pytest.approx(one, rel=1e-9)


def test_a_request_is_its_prefill_and_a_step_a_token() -> None:
    whole = _request("transformers:gpt2-tiny", 24, 21, with_energy())
    steps = [estimate(_graph("transformers:gpt2-tiny", "decode", c), with_energy()) for c in range(24, 44)]
    assert whole.part("decode").point == pytest.approx(sum(s.latency_s.point for s in steps), rel=0.01)
    assert whole.energy_j is not None
    assert whole.step.energy_j is not None
    exact = whole.step.energy_j.point + sum(s.energy_j.point for s in steps if s.energy_j)
    assert whole.energy_j.point == pytest.approx(exact, rel=0.01)
    short = _request("transformers:gpt2-tiny", 24, 1, with_energy())
    assert short.seconds == short.step.latency_s == short.first_token_s
    assert short.token_s is None
    longer = request(whole.step, whole.decodes, prompt=24, generate=21, start_s=None)
    assert longer.seconds.point > whole.seconds.point
    assert "start-up" in [p.name for p in longer.parts]


def test_jobs_that_cannot_be_are_refused() -> None:
    infer = cases.infer_estimate()
    for call, says in (
        (lambda: training_job(infer, epochs=1, samples=1), "mode 'infer'"),
        (lambda: training_job(step(), epochs=0, samples=1), "epochs must be at least 1"),
        (lambda: training_job(step(), epochs=1, samples=1, sample_s=-1.0), "sample_s"),
        (lambda: training_job(step(), epochs=1, samples=1, start_s=math.nan), "start_s"),
        (lambda: request(infer, [], prompt=4, generate=2), "0 decode estimates"),
        (lambda: request(infer, [infer], prompt=4, generate=2), "mode 'infer'"),
        (lambda: request(infer, [], prompt=0, generate=1), "prompt"),
    ):
        with pytest.raises(CostmodelError, match=says):
            call()


def jobs() -> tuple[TrainingJob, Request]:
    return training_job(step(True), epochs=3, samples=50_000), _request("transformers:gpt2-tiny", 24, 21)


@pytest.mark.parametrize("format", [f for f in formats() if f in ("text", "html", "markdown", "latex")])
def test_every_format_that_writes_shows_a_job_and_its_gaps(format: str) -> None:
    for job in jobs():
        drawn = render(job, format)
        assert isinstance(drawn, str)
        assert "whole job" in drawn
        for gap in job.gaps:
            assert gap in drawn


def test_printed_parts_add_up_to_the_printed_total() -> None:
    from costmodel.report._of_job import parts_table

    for job in jobs():
        table = parts_table(job)
        assert table.total is not None
        for column in [i for i, c in enumerate(table.columns) if c.title.startswith(("time", "energy"))]:
            printed = [float(row[column].text.replace(",", "")) for row in table.rows]
            assert sum(printed) == pytest.approx(float(table.total[column].text.replace(",", "")), abs=1e-9)


def test_a_job_is_an_object_of_json() -> None:
    run, asked = jobs()
    document = json.loads(json.dumps(run.as_dict(), allow_nan=False))
    assert document["schema"] == 1
    assert document["mode"] == "train"
    job = document["job"]
    assert job["kind"] == "training"
    assert job["steps"] == 75_000
    assert set(job["seconds"]) == {"low", "point", "high"}
    assert math.fsum(p["seconds"]["point"] for p in job["parts"]) == pytest.approx(job["seconds"]["point"])
    document = json.loads(json.dumps(asked.as_dict(), allow_nan=False))
    assert document["mode"] == "request"
    assert document["job"]["state_grows"] is True
    assert [d["context"] for d in document["decode"]] == [24, 33, 43]
    assert document["prefill"]["latency_s"] == document["job"]["first_token_s"]


@pytest.mark.parametrize(
    "words",
    [
        ["--mode", "train", "--batch", "2", "--epochs", "2", "--samples", "64", "--sample-seconds", "0.01"],
        ["--prompt", "16", "--generate", "4"],
    ],
)
def test_the_command_prints_a_job(words: list[str]) -> None:
    model = "conv-small" if "--epochs" in words else "transformers:gpt2-tiny"
    call = ["estimate", model, "--device", "raspberry-pi-4b", *words]
    shown = CliRunner().invoke(app, call)
    assert shown.exit_code == 0, shown.output
    assert "whole job" in shown.output
    printed = CliRunner().invoke(app, [*call, "--json"])
    assert json.loads(printed.stdout.strip().splitlines()[-1])["job"]["seconds"]["point"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--epochs", "2"], "go together"), (["--prompt", "2"], "go together"),
     (["--prompt", "2", "--generate", "2", "--epochs", "1", "--samples", "1"], "no training run"),
     (["--mode", "infer", "--epochs", "1", "--samples", "1"], "mode")],
)  # fmt: skip
def test_options_that_do_not_go_together(words: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["estimate", "conv-small", "--device", "raspberry-pi-4b", *words])
    assert result.exit_code != 0
    assert isinstance(result.exception, CostmodelError)
    assert says in str(result.exception)


def test_replace_keeps_a_job_frozen() -> None:
    job = training_job(step(), epochs=1, samples=2)
    with pytest.raises(AttributeError):
        job.epochs = 2  # type: ignore[misc]
    assert replace(job, epochs=1).seconds == job.seconds
