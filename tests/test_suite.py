"""Real runs in fresh processes: what a worker answers, what a suite makes of it, and who dies alone."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodel.device import load_device
from costmodel.errors import CostmodelError
from costmodel.host import detect
from costmodel.measure.job import Job
from costmodel.measure.latency import Samples, disturbed_share, pinned_allocator, time_interleaved
from costmodel.measure.micro import GENERATORS, hash_seed, plan, read_points
from costmodel.measure.micro_ops import Shapes
from costmodel.measure.repeats import add_repeats, read_repeats, refuse_another_machine
from costmodel.measure.suite import QUICK, Measured, compare, measure_groups, measure_job, pairwise_noise, run_suite
from costmodel.measure.worker import Worker, Workers

JOB = Job("mlp-small", "infer", batch=2)
TRAIN = Job("mlp-small", "train", batch=2)


def test_a_job_is_words_and_comes_back() -> None:
    job = Job("conv-small", "train", batch=2, input_size="3x16x16", optimizer="adamw")
    assert Job(**json.loads(json.dumps(job.as_dict()))) == job
    assert job.name == "conv-small train b2 3x16x16 adamw"
    assert len({j.name for group in QUICK for j in group}) == sum(len(group) for group in QUICK), "names are unique"
    graph = job.trace()
    assert (graph.meta.model, graph.meta.mode, graph.meta.batch, graph.meta.optimizer) == (
        "conv-small",
        "train",
        2,
        "adamw",
    )


def test_the_quick_suite_is_the_eight_models_and_each_method_beside_its_twin() -> None:
    jobs = [j for group in QUICK for j in group]
    for wanted in (
        "mobilenetv2",
        "mobilenet-v3-small",
        "vit_small",
        "swin_tiny",
        "resnet18",
        "bert",
        "mamba-",
        "mamba2-",
    ):
        modes = {j.mode for j in jobs if wanted in j.model}
        assert "train" in modes, wanted
        assert modes & {"infer", "prefill"}, wanted
    methods = [j for j in jobs if j.method]
    assert {j.method.split(":")[0] for j in methods if j.method} == {"mobiletl", "lbp_wht", "quamba"}
    for group in QUICK:
        for job in group:
            if job.method:
                assert any(
                    (o.model, o.mode, o.batch, o.method) == (job.model, job.mode, job.batch, None) for o in group
                ), f"{job.name} has no twin in its process"
    assert all(j.threads == 1 for j in jobs)


@pytest.mark.slow
def test_a_worker_runs_jobs_and_outlives_a_bad_one() -> None:
    with Worker(1) as worker:
        with pytest.raises(CostmodelError, match="no model named 'no-such-model'"):
            worker.run([Job("no-such-model")], seconds=0.01)
        one, two = worker.run([JOB, TRAIN], seconds=0.05, memory=True)
    for answer in (one, two):
        assert len(answer["wall_s"]) == len(answer["cpu_s"]) == len(answer["preempted"]) >= 5
        assert all(0 < t < 60 for t in answer["wall_s"])
        assert answer["peak_live_bytes"] > 269_322 * 4
    assert two["peak_live_bytes"] > one["peak_live_bytes"]


@pytest.mark.slow
def test_every_request_runs_in_a_process_of_its_own_and_a_dead_worker_is_replaced() -> None:
    with Workers() as workers:
        one = workers.of(JOB)
        assert workers.of(JOB) is one
        assert workers.of(replace(JOB, allocator="default")) is not one
        first, second = (one.run([TRAIN], seconds=0.01, memory=True) for _ in range(2))
        assert first[0]["peak_live_bytes"] == second[0]["peak_live_bytes"], "the second finds nothing of the first"
        os.kill(one._process.pid, signal.SIGKILL)
        one._process.wait()
        assert workers.of(JOB) is not one
        assert workers.of(JOB).run([JOB], seconds=0.01)[0]["wall_s"]


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers"])
def test_a_worker_has_imported_the_library_before_it_forks(library: str) -> None:
    """In a process of its own: an import that fails there would be paid by every child, and nobody would notice."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    said = (
        "import sys; from costmodel.measure.worker import _preload; "
        f"_preload({{'jobs': [{{'model': '{library}:x'}}]}}, set()); print('{library}' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True", run.stderr


def test_a_worker_that_dies_is_reported() -> None:
    worker = Worker(1)
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(CostmodelError, match=r"the measuring process died \(status -9\)"):
        worker.run([JOB])


@pytest.mark.slow
def test_a_suite_predicts_measures_and_skips_by_name() -> None:
    said: list[tuple[int, int, str]] = []
    kept: dict[str, Measured] = {}
    bad = Job("mlp-small", "decode")
    validation = run_suite(
        [(JOB, TRAIN), (bad,)],
        load_device("raspberry-pi-4b"),
        processes=1,
        seconds=0.05,
        progress=lambda *a: said.append(a),
        keep=lambda job, m: kept.update({job.name: m}),
    )
    assert list(validation.skipped) == [bad.name]
    assert set(kept) == {JOB.name, TRAIN.name}
    quantities = [(c.mode, c.quantity) for c in validation.cases]
    assert sorted(quantities) == [
        ("infer", "latency_s"), ("infer", "peak_live_bytes"), ("train", "latency_s"), ("train", "peak_live_bytes"),
    ]  # fmt: skip
    for case in validation.cases:
        if case.quantity == "peak_live_bytes":
            assert abs(case.error) < 0.01, "peak live bytes are within 1 %"
        else:
            assert case.measured == kept[f"mlp-small {case.mode} b2"].latency_s
            assert case.baseline is not None
    assert [total for _, total, _ in said] == [2 + 3] * len(said), "two groups to run, three jobs to price"
    assert [done for done, _, _ in said] == sorted(done for done, _, _ in said)


@pytest.mark.slow
def test_measuring_one_job_makes_a_run(tmp_path: Path) -> None:
    from costmodel.runs import append_runs, read_runs

    run = measure_job(JOB, processes=2, seconds=0.05)
    assert run.latency_s > 0
    assert run.noise is not None
    assert run.noise >= 0
    assert run.peak_live_bytes is not None
    assert len(run.repeats) >= 10
    assert {"torch", "python", "machine", "date", "allocator"} <= set(run.meta)
    (again,) = read_runs(append_runs(tmp_path / "runs.csv", [run])).runs
    assert again.latency_s == pytest.approx(run.latency_s)
    assert (again.model, again.mode, again.batch, again.threads) == ("mlp-small", "infer", 2, 1)


def raw(*wall: float, live: int | None = None) -> dict[str, Any]:
    return {"wall_s": wall, "cpu_s": wall, "preempted": [False] * len(wall), "peak_live_bytes": live}


def test_the_calmest_process_counts_and_their_spread_is_the_noise() -> None:
    m = Measured.of([raw(2.0, 2.0, 2.0), raw(1.0, 1.0, 9.0, live=7), raw(1.5, 1.5, 1.5)])
    assert m.latency_s == 1.0
    assert m.noise == pytest.approx((math.log(2) + math.log(1.5) + math.log(2 / 1.5)) / 3)
    assert m.spread == pytest.approx(0.5), "the median process is 1.5 times the calmest"
    assert m.peak_live_bytes == 7
    assert m.as_run(JOB).repeats == (2.0, 2.0, 2.0, 1.0, 1.0, 9.0, 1.5, 1.5, 1.5)


def spun(*wall: float, spin: float) -> dict[str, Any]:
    return {**raw(*wall), "spin_s": [spin] * len(wall)}


def test_seconds_are_told_at_the_speed_of_the_reference_spin() -> None:
    """One process in the machine's slow state, half as fast, spin and step alike."""
    m = Measured.of([spun(1.0, 1.0, 1.0, spin=1e-3), spun(2.0, 2.0, 2.0, spin=2e-3), spun(1.1, 1.1, 1.1, spin=1e-3)])
    assert m.spin_s == pytest.approx(1e-3)
    assert m.latency_s == pytest.approx(1.0), "the median of 1.0, 1.0 and 1.1"
    assert (m.wall_s, m.processor_s) == (1.0, 1.0)
    assert m.noise == pytest.approx(2 * math.log(1.1) / 3)
    assert m.as_run(JOB).latency_s == m.wall_s, "a run is kept as it passed"
    mixed = Measured.of([spun(1.0, 1.0, 1.0, spin=1e-3), raw(2.0, 2.0, 2.0)])
    assert (mixed.spin_s, mixed.latency_s) == (None, 1.0), "without a spin in each, the smallest as it passed"


def test_a_calibrated_device_is_held_against_seconds_at_its_own_speed() -> None:
    device = load_device("epyc-zen4-vm-2c")
    eager = device.runtime["torch-eager"]
    fits = tuple(f.model_copy(update={"spin_s": 2e-3}) for f in eager.fit)
    known = device.model_copy(
        update={"runtime": {**device.runtime, "torch-eager": eager.model_copy(update={"fit": fits})}}
    )
    measured = Measured.of([spun(1.0, 1.0, 1.0, spin=1e-3)])
    (case, *_), (unknown, *_) = (compare(JOB, measured, d, "torch-eager") for d in (known, device))
    assert (case.measured, case.wall) == (pytest.approx(2.0), 1.0)
    assert unknown.measured == 1.0, "a calibration without a spin says nothing of speed"
    (as_passed, *_) = compare(JOB, Measured.of([raw(1.0, 1.0, 1.0)]), known, "torch-eager")
    assert (as_passed.measured, as_passed.wall) == (1.0, None), "runs without a spin are not called at speed"


def test_the_spin_is_run_beside_every_repeat() -> None:
    order: list[int] = []
    (samples,) = time_interleaved([lambda: order.append(0)], seconds=0.01, spin=True)
    assert len(samples.spin_s) == len(samples.wall_s)
    assert min(samples.spin_s) > 0
    assert len(order) == 2 + 2 * len(samples.wall_s), "a short step finds its caches again after the spin"


def test_preempted_repeats_do_not_count_if_enough_are_left() -> None:
    calm = Samples((1.0, 1.0, 1.0, 0.1), (1.0,) * 4, (False, False, False, True))
    assert calm.latency_s == 1.0
    busy = Samples((1.0, 0.5, 0.5), (1.0, 0.5, 0.5), (False, True, True))
    assert busy.latency_s == pytest.approx(0.5), "with fewer than three calm ones all count"
    assert Samples((1.0, 2.0, 3.0), (1.0,) * 3, (False,) * 3).spread == pytest.approx(0.25)


def test_steps_are_timed_in_turn() -> None:
    order: list[int] = []
    first, second = time_interleaved(
        [lambda: order.append(0), lambda: time.sleep(2e-3) or order.append(1)], seconds=0.02
    )
    assert order[:4] == [0, 0, 1, 1], "each is warmed up twice"
    assert order[4:] == [0, 0, 1, 1] * len(first.wall_s), "then in turn, a short one after a run that finds its caches"
    assert len(first.wall_s) == len(second.wall_s) >= 5
    assert second.latency_s > 2e-3
    assert second.processor_s < second.latency_s, "sleeping is not computing"
    with pytest.raises(CostmodelError, match="cores; measure with at most as many threads"):
        time_interleaved([lambda: None], threads=10_000)


def test_two_threads_are_not_measured_on_one_core() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        with pytest.raises(CostmodelError, match="this process may use 1 cores; measure with at most as many threads"):
            time_interleaved([lambda: None], threads=2)
    finally:
        os.sched_setaffinity(0, before)


def test_settings_of_glibc_are_plain_integers() -> None:
    assert all(v.isdigit() for v in pinned_allocator().values())
    assert 0 <= disturbed_share(spins=20) <= 1


def test_more_processes_do_not_widen_the_spread() -> None:
    one = Measured.of([raw(1.0, 1.0, 1.0)])
    assert (one.noise, one.spread) == (None, None)
    noisy = [raw(1.0, 1.0, 1.0), raw(1.01, 1.01, 1.01), raw(1.02, 1.02, 1.02), raw(3.0, 3.0, 3.0)]
    assert Measured.of(noisy).spread == pytest.approx(0.015), "one contended process does not cost the case"
    assert pairwise_noise(np.array([2.0, 2.0, 2.0])) == 0.0


# Raw repeats on disk


def test_repeats_come_back_and_a_line_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "repeats.jsonl"
    other = Job("conv-small", "train", batch=2, input_size="3x16x16", optimizer="adamw", layout="channels_last")
    add_repeats(path, JOB, raw(1.23456789e-3, 2.0, 3.0, live=7))
    add_repeats(path, other, spun(0.5, 0.5, 0.5, spin=2e-3))
    with open(path, "a") as file:
        file.write('{"job":{"model":"mlp-sm')
    known = read_repeats(path)
    assert list(known) == [JOB, other]
    assert known[JOB][0]["wall_s"] == [1.23457e-3, 2.0, 3.0]
    assert known[JOB][0]["peak_live_bytes"] == 7
    assert known[other][0]["spin_s"] == [2e-3] * 3
    add_repeats(path, JOB, raw(4.0, 4.0, 4.0))
    again = read_repeats(path)
    assert [len(again[j]) for j in (JOB, other)] == [2, 1], "what was cut off is gone, what is added is whole"
    refuse_another_machine(path, again)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "is no measured job"),
        ("[1]", "is no measured job"),
        ('{"job":{"model":"m","colour":"red"},"wall_s":[1]}', "is no measured job"),
        ('{"job":{"model":"m"},"wall_s":[1],"cpu_s":[1,2],"preempted":[0]}', r"\[1, 2\] repeats"),
        ('{"job":{"model":"m"},"wall_s":[1],"cpu_s":[1],"preempted":[0],"spin_s":[1,2]}', r"\[1, 2\] repeats"),
        ('{"job":{"model":"m","layout":"diagonal"},"wall_s":[1],"cpu_s":[1],"preempted":[0]}', "layout"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "repeats.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(CostmodelError, match=message):
        read_repeats(path)


def test_repeats_of_another_machine_are_not_added_to(tmp_path: Path) -> None:
    path = tmp_path / "repeats.jsonl"
    add_repeats(path, JOB, raw(1.0, 1.0, 1.0))
    path.write_text(path.read_text().replace('"torch":"', '"torch":"0.'))
    with pytest.raises(CostmodelError, match=r"has runs of torch 0\..*; here is torch .*give another file"):
        measure_groups([[JOB]], processes=2, into=path)


@pytest.mark.slow
def test_a_stopped_measurement_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "repeats.jsonl"
    measure_groups([[JOB]], processes=1, seconds=0.02, into=path)
    (first,) = path.read_text().splitlines()
    found, skipped = measure_groups([[JOB], [TRAIN]], processes=1, seconds=0.02, into=path)
    assert not skipped
    assert path.read_text().splitlines()[0] == first, "what is there counts"
    assert {j: len(r) for j, r in found.items()} == {JOB: 1, TRAIN: 1}
    before = time.monotonic()
    measure_groups([[JOB], [TRAIN]], processes=1, into=path)
    assert time.monotonic() - before < 0.5, "nothing is left to run"
    more, _ = measure_groups([[JOB]], processes=2, seconds=0.02, into=path)
    assert len(more[JOB]) == 2


# Isolated ops


def test_a_plan_is_spread_so_that_a_part_of_it_has_some_of_each() -> None:
    whole = plan(400, train=True)
    assert len(set(whole)) == len(whole)
    assert {name for name, _ in whole} == set(GENERATORS)
    half = {name for name, _ in whole[: len(whole) // 2 + len(GENERATORS)]}
    assert half == set(GENERATORS)
    inference = {name for name, _ in plan(400, train=False)}
    assert inference == {n for n, (_, _, training) in GENERATORS.items() if not training}


def test_a_line_that_a_kill_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "points.jsonl"
    path.write_text('{"generator": "gemm_nt", "seed": 0}\n{"generator": "gemm_')
    assert read_points(path) == [{"generator": "gemm_nt", "seed": 0}]
    assert read_points(tmp_path / "none") == []


@pytest.mark.parametrize("name", GENERATORS)
def test_every_generator_makes_an_op_with_a_formula(name: str) -> None:
    import torch

    from costmodel.costs import formula_for
    from costmodel.measure.micro import _describe

    torch.manual_seed(0)
    described = _describe(GENERATORS[name][0](Shapes(hash_seed(name, 3), torch.float32)))
    assert described is not None, "one op"
    assert formula_for(described["op"]) is not None
    assert len(described["storage"]) == len(described["inputs"]) + len(described["outputs"])
    assert json.loads(json.dumps(described)) == described


def test_this_machine_is_a_device_that_prices() -> None:
    from costmodel.estimate import estimate

    host = detect()
    assert estimate(JOB.trace(), host).latency_s.point > 0
