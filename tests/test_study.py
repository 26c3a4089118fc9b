"""The host suite and what is made of it: how its frozen half was drawn, ablation, errors by class, the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodel.ablation import Measurement, ablate, variants
from costmodel.costs import Cost, formula_for, op, rewritten
from costmodel.device import load_device
from costmodel.errors import CostmodelError
from costmodel.estimate import estimate
from costmodel.graph import OpGraph
from costmodel.measure import host_draw, host_suite
from costmodel.measure.host_suite import DEVELOPMENT, FOURTH_ROUND, FROZEN, PARTS, host_groups, host_parts, repeats_file
from costmodel.measure.job import Job
from costmodel.measure.memory_suite import memory_cases
from costmodel.measure.op_times import measure_op_times, read_op_times, seconds_of_trace, time_ops
from costmodel.measure.repeats import add_repeats
from costmodel.measure.suite import QUICK
from costmodel.report import render
from costmodel.report._of_study import study_tables
from costmodel.suites import Options, run, suites
from costmodel.tasks.collect import validated_runs
from costmodel.validate import Ablated, Case, ClassError, Validation

ZEN = "epyc-zen4-vm-2c"
MLP = Job("mlp-small", "infer", batch=2)
CONV = Job("conv-small", "train", batch=2, input_size="3x16x16")


# The suite


def test_the_fourth_round_is_what_the_rule_gives() -> None:
    assert host_draw.draw() == FOURTH_ROUND
    assert host_draw.draw(seed=1) != FOURTH_ROUND
    assert set(host_draw.WANTED) == set(host_draw.POOLS)
    assert not {j.name for j in FOURTH_ROUND} & set(host_draw.REFUSED)


def test_each_half_is_as_large_as_the_other_and_they_share_no_model() -> None:
    for training, least in ((False, 36), (True, 16)):
        development = [j for j in DEVELOPMENT if (j.mode == "train") == training]
        for drawn in (FROZEN, FOURTH_ROUND):
            assert len([j for j in drawn if (j.mode == "train") == training]) >= max(least, len(development))
    assert len([j for j in (*FROZEN, *DEVELOPMENT) if j.mode == "train"]) >= 20
    seen = {j.model for j in (*DEVELOPMENT, *FROZEN, *host_suite.SECOND_ROUND)}
    seen |= {j.model.split(",")[0] for group in QUICK for j in group} | {j.model.split(",")[0] for j in memory_cases()}
    assert not {j.model for j in FOURTH_ROUND} & seen
    names = [j.name for j in (*FROZEN, *DEVELOPMENT)]
    assert len(set(names)) == len(names)
    assert len({j.model for j in FOURTH_ROUND}) == len(FROZEN), "no model is drawn twice"


def test_the_frozen_half_mixes_kinds_batches_and_sizes() -> None:
    assert {j.batch for j in FOURTH_ROUND} >= {1, 2, 4, 16, 32}
    assert len({j.input_size for j in FOURTH_ROUND}) >= 5
    assert {j.optimizer for j in FROZEN if j.mode == "train"} == {"sgd", "momentum", "adamw"}


def test_parts_by_name() -> None:
    assert host_parts("frozen,variants") == (
        "frozen", "bfloat16", "channels-last", "default-allocator", "two-threads",
    )  # fmt: skip
    assert host_parts("all") == ("development", "frozen")
    assert host_parts("frozen,all") == ("frozen", "development")
    with pytest.raises(CostmodelError, match="no part of the host suite named 'frozn'; did you mean frozen"):
        host_parts("frozn")
    assert repeats_file(Path("runs"), "frozen") == Path("runs/frozen.jsonl")
    assert repeats_file(Path("one.jsonl"), "frozen") == Path("one.jsonl")
    assert repeats_file(None, "frozen") is None


def test_a_variant_is_development_models_run_otherwise() -> None:
    plain = set(DEVELOPMENT)
    for part, usual in (
        ("bfloat16", {"dtype": "float32"}),
        ("channels-last", {"layout": "contiguous"}),
        ("default-allocator", {"allocator": "pinned"}),
        ("two-threads", {"threads": 1}),
    ):
        jobs = PARTS[part]
        assert 6 <= len(jobs) <= 8
        assert {"infer", "train"} == {j.mode for j in jobs}
        for job in jobs:
            assert job.setting
            assert replace(job, **usual) in plain, f"{job.name} has no twin"  # type: ignore[arg-type]
    assert {j.threads for (j,) in host_groups("frozen", threads=2)} == {2}
    assert {j.threads for (j,) in host_groups("two-threads")} == {2}


def test_suites_are_files_and_each_says_what_it_compares() -> None:
    found = suites()
    assert {"quick", "host", "memory", "papers"} <= set(found)
    assert all(text.endswith(".") for text in found.values())
    with pytest.raises(CostmodelError, match="no suite named 'hots'; did you mean host"):
        run("hots", load_device(ZEN), Options(), lambda *_: None)


# Recorded runs scored


@pytest.fixture(scope="module")
def graphs() -> dict[Job, OpGraph]:
    return {job: job.trace() for job in (MLP, CONV)}


def test_a_recorded_run_is_scored_without_running_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(host_suite.PARTS, "development", (MLP, CONV))
    device = load_device(ZEN)
    truth = {job: estimate(job.trace(), device).latency_s.point for job in (MLP, CONV)}
    for process in range(5):
        for job, t in truth.items():
            wall = [t * 1.1 * (1.0 + 0.01 * process)] * 4
            add_repeats(tmp_path / "development.jsonl", job, {"wall_s": wall, "cpu_s": wall, "preempted": [False] * 4})
    options = Options(part="development", into=tmp_path, ablation=True)
    found = run("host", device, options, lambda *_: None)
    assert [c.group for c in found.cases] == ["development", "development"]
    for case in found.cases:
        assert case.error == pytest.approx(1 / 1.1 - 1, rel=1e-4)
        assert case.spread == pytest.approx(0.02, rel=1e-3)
        assert case.noise == pytest.approx(np.mean([np.log((1 + j / 100) / (1 + i / 100)) for i in range(5) for j in range(i + 1, 5)]), rel=1e-3)  # fmt: skip  # noqa: E501
        assert case.scored
    assert found.provenance["processes a case"] == "5 to 5"
    rows = {(a.name, a.phase): a for a in found.ablation}
    assert rows["all terms", "infer"].mape == pytest.approx(1 - 1 / 1.1, rel=1e-3)
    json.dumps(found.as_dict(), allow_nan=False)
    text = str(render(found, "markdown"))
    assert "| development | training |" in text
    assert "without cache levels" in text


def test_kept_repeats_are_in_the_report_the_frozen_half_first(tmp_path: Path) -> None:
    wall = {"wall_s": [1e-3] * 3, "cpu_s": [1e-3] * 3, "preempted": [False] * 3}
    for part in ("development", "frozen"):
        add_repeats(tmp_path / ZEN / f"{part}.jsonl", MLP, wall)
    measure_op_times([], tmp_path / ZEN / "ops" / "development.jsonl")
    found, files = validated_runs(tmp_path)
    assert found is not None
    assert [c.group for c in found.cases] == ["frozen", "development"]
    assert found.summary["latency_s"].n == 1
    assert [Path(f.file).name for f in files] == ["frozen.jsonl", "development.jsonl"]


# Ablation


def test_a_term_taken_out_never_adds_time(graphs: dict[Job, OpGraph]) -> None:
    device = load_device(ZEN)
    measured = [Measurement(g, estimate(g, device).latency_s.point) for g in graphs.values()]
    found = {(a.name, a.phase): a for a in ablate(measured, device)}
    assert {p for _, p in found} == {"infer", "train"}
    assert found["all terms", "train"].mape == pytest.approx(0.0, abs=1e-9)
    for name in ("without cold code", "without cache levels"):
        assert found[name, "infer"].mape > 0.0
    assert not [n for n, _ in found if "fitted again" in n], "without the isolated ops these cannot be fitted"
    assert found["one-constant roofline", "infer"].free_mape is None, "one case has no others"


def test_formulas_are_rewritten_for_a_while() -> None:
    spec = op("aten::mm", [(2, 3), (3, 4)], [(2, 4)])
    formula = formula_for("aten::mm")
    assert formula is not None
    before = formula(spec)
    with rewritten(lambda cost: replace(cost, kind="everything")):
        inside = formula_for("aten::mm")
        assert inside is not None
        assert inside(spec) == replace(before, kind="everything")
    after = formula_for("aten::mm")
    assert after is not None
    assert after(spec) == before


def test_variants_change_costs_as_they_say() -> None:
    cost = Cost(100, "conv_1x1_backward", terms={"mnk": 50.0, "mn": 5.0}, work=120)
    changed = {v.name.split(" (")[0]: v.cost(cost) for v in variants() if v.cost is not None}
    assert changed["without algorithm branches"].kind == "conv_backward"
    assert changed["without algorithm branches"].terms == cost.terms
    assert changed["without the posynomial"].terms == {"work": 120.0}
    assert changed["without the posynomial"].kind == cost.kind


def test_a_device_without_a_calibration_has_no_ablation(graphs: dict[Job, OpGraph]) -> None:
    with pytest.raises(CostmodelError, match="raspberry-pi-4b has no calibration to take terms out of"):
        ablate([Measurement(graphs[MLP], 1.0)], load_device("raspberry-pi-4b"))


@pytest.mark.parametrize(("change", "wider"), [({"threads": 1}, 0.0), ({"threads": 2}, 0.1), ({"dtype": "int7"}, 0.8)])
def test_an_interval_is_wider_beyond_what_was_calibrated(
    graphs: dict[Job, OpGraph], change: dict[str, object], wider: float
) -> None:
    device = load_device(ZEN)
    runtime = device.runtime["torch-eager"]
    one = next(f for f in runtime.fit if (f.threads, f.dtype) == (1, "float32")).model_copy(update=change)
    other = device.model_copy(update={"runtime": {"torch-eager": runtime.model_copy(update={"fit": (one,)})}})
    found = estimate(graphs[MLP], other).latency_s
    usual = runtime.interval.get("infer") or runtime.interval["default"]
    assert np.log(found.high / found.point) == pytest.approx(usual.high + wider)
    assert np.log(found.low / found.point) == pytest.approx(usual.low - wider)


# Ops inside a step


def test_ops_of_a_real_step_pair_with_those_of_its_trace(graphs: dict[Job, OpGraph], tmp_path: Path) -> None:
    path = tmp_path / "ops.jsonl"
    assert measure_op_times([MLP, CONV], path) == {}
    first = path.read_text()
    assert measure_op_times([MLP, CONV], path) == {}
    assert path.read_text() == first, "what is there counts"
    for job, (names, seconds) in read_op_times(path).items():
        paired = seconds_of_trace(graphs[job], names, seconds)
        assert len(paired) == len(graphs[job])
        assert (paired > 0).all()
        assert paired.sum() == pytest.approx(seconds.sum(), rel=0.2)
    names, seconds = time_ops(MLP, repeats=2)
    with pytest.raises(CostmodelError, match=r"op \d+ is aten::\S+ in the step and aten::\S* in its trace"):
        seconds_of_trace(graphs[CONV], names, seconds)


def test_a_job_that_cannot_be_run_is_skipped_by_name(tmp_path: Path) -> None:
    bad = Job("mlp-small", "decode")
    assert list(measure_op_times([bad], tmp_path / "ops.jsonl")) == [bad.name]


# The report


def study() -> Validation:
    def case(model: str, mode: str, group: str, predicted: float, measured: float, **more: object) -> Case:
        values: dict[str, object] = {
            "model": model, "device": ZEN, "runtime": "torch-eager", "mode": mode, "method": None, "batch": 1,
            "threads": 1, "dtype": "float32", "quantity": "latency_s", "predicted": predicted, "low": 0.9 * predicted,
            "high": 1.1 * predicted, "measured": measured, "processor": 0.98 * measured, "noise": 0.01,
            "spread": 0.02, "baseline": 1.3 * measured, "group": group,
        }  # fmt: skip
        return Case(**(values | more))  # type: ignore[arg-type]

    return Validation(
        (
            case("a", "infer", "frozen", 0.0105, 0.01),
            case("b", "infer", "frozen", 0.018, 0.02),
            case("c", "infer", "frozen", 0.04, 0.03, spread=0.2),
            case("d", "train", "frozen", 0.5, 0.55),
            case("e", "infer", "bfloat16", 0.01, 0.01, setting="bfloat16"),
        ),
        ablation=(Ablated("all terms", "infer", 2, 0.075, 0.075, 1.0, 0.1, 0.06),),
        classes=(ClassError("gemm", "infer", 7, 0.6, 0.05, 0.1), ClassError("copy", "infer", 2, 0.001, 2.0, 2.0)),
        provenance={"torch and processor": "2.13.0 on <a> machine"},
    )


def test_the_tables_of_a_study_add_up() -> None:
    v = study()
    assert v.summary["latency_s"].n == 3, "the first part, scored"
    tables = {t.title: t for t in study_tables(v)}
    parts = {tuple(c.text for c in r[:3]): r for r in tables["Latency by part of the suite"].rows}
    wall, processor = parts["frozen", "inference", "wall"], parts["frozen", "inference", "processor"]
    assert [c.text for c in wall[3:5]] == ["2 of 3", "7.5 %"]
    assert processor[4].value == pytest.approx(((0.0105 / 0.0098 - 1) + (1 - 0.018 / 0.0196)) / 2)
    assert ("bfloat16", "inference", "wall") in parts
    (listed,) = tables["Not scored: the measurement disagrees with itself"].rows
    assert listed[0].text == "c infer b1"
    assert listed[4].text == "+33.3 %"
    assert [r[0].text for r in tables["Error by class of op"].rows] == ["gemm"]
    assert "Left out: 1 of less than 0.2 %" in tables["Error by class of op"].note


def test_a_plain_validation_has_no_study() -> None:
    plain = Validation(tuple(replace(c, group="", spread=None) for c in study().cases))
    assert study_tables(plain) == []


def test_the_page_of_a_study_has_its_pictures_and_names_cannot_break_it() -> None:
    page = str(render(study(), "html"))
    for said in ("What each term buys", "Error by class of op", "Latency by part of the suite", "&lt;a&gt; machine"):
        assert said in page
    assert "<a> machine" not in page
    text = str(render(study(), "markdown"))
    assert text.count("| frozen | inference |") == 2
    assert "c infer b1" in text.split("Not scored")[1]
