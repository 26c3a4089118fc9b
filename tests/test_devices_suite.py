"""The devices suite: what is predicted was never seen, tables say what they are, and bad files are one line."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from costmodel.device import load_device
from costmodel.fewshot import _NAMES, Row
from costmodel.measure import published, rebuild
from costmodel.measure.published import Table, at_clock, cases, held_out, one_constant, reference, without_families
from costmodel.runs import Run
from costmodel.suites import Options
from costmodel.suites import devices as suite
from costmodel.suites._devices_bar import Bar
from costmodel.suites._devices_ncnn import Threaded
from costmodel.suites._devices_page import page
from costmodel.validate import summarize

from .test_cli import cli, fails

N = len(_NAMES)
HEAD = "model,task,batch,input_size,dtype,device,framework,threads,latency_ms\n"
ROW = "mlp-small,infer,1,,fp32,Raspberry Pi 4,torch 1.13.1 eager,1,{}\n"


def table(n: int = 40, factor: float = 2.0, odd: str = "") -> Table:
    """Rows of five families, all `factor` times slower than the profile says; family `odd` three times more."""
    rng = np.random.default_rng(0)
    rows, roofline = [], []
    for i in range(n):
        family = ("resnet", "vit", "swin", "mixer", "vgg")[i % 5]
        seconds = rng.dirichlet(np.full(N, 0.5)) * math.exp(rng.normal())
        measured = seconds.sum() * factor * (3.0 if family == odd else 1.0)
        rows.append(Row(Run(f"{family}{i}", "infer", measured), seconds))
        roofline.append(measured / 5.0)
    return Table(load_device("raspberry-pi-4b"), "torch-eager", tuple(rows), np.array(roofline), {})


def test_a_family_is_predicted_without_itself() -> None:
    honest = table(odd="vit")
    predicted, spread = held_out(honest, None)
    ratio = predicted / honest.measured
    odd = np.array([f == "vit" for f in honest.families])
    assert ratio[odd] == pytest.approx(np.full(odd.sum(), 1 / 3), rel=0.1)
    assert (spread > 0).all()
    for train, test in without_families(honest.families):
        assert not {honest.families[i] for i in train} & {honest.families[i] for i in test}
    assert sorted(i for _, test in without_families(honest.families) for i in test) == list(range(40))


def test_many_families_are_held_out_in_eighths() -> None:
    parts = list(without_families([f"net{c}" for c in map(chr, range(97, 123))] + [f"x{i}" for i in range(30)]))
    assert all(set(train).isdisjoint(test) for train, test in parts)
    assert sum(len(test) for _, test in parts) == 56


def test_the_roofline_has_its_constant_from_others() -> None:
    assert one_constant(table()) == pytest.approx(table().measured, rel=1e-6)
    skewed = table(odd="vit")
    # its own rows would have given another constant; here all are measured / 5
    assert one_constant(skewed) == pytest.approx(skewed.measured, rel=1e-6)


def test_a_board_at_another_clock() -> None:
    pi = load_device("raspberry-pi-4b")
    slow = at_clock(pi, 0.75e9, 2)
    assert slow.cpu[0].clock_hz.value == 0.75e9
    assert slow.cores == 2
    old, new = pi.cpu[0].cache[-1].read_bytes_per_s, slow.cpu[0].cache[-1].read_bytes_per_s
    assert old is not None
    assert new is not None
    assert new.value == pytest.approx(old.value / 2)
    assert slow.memory == pi.memory


def test_a_serial_share_is_found_again() -> None:
    rows = table()
    parallel, serial = rows.measured / 4.0, rows.measured * 1.0
    true = 0.25
    measured = [
        Row(Run(r.run.model, "infer", float(t)), r.seconds) for r, t in zip(rows.rows, 0.75 * parallel + 0.25 * serial)
    ]
    truth = Table(rows.device, rows.runtime, tuple(measured), rows.roofline, {})
    threaded = Threaded(suite_board(), 4, truth, parallel, serial, rows.roofline)
    assert threaded.best() == pytest.approx(true)
    assert threaded.at(true) == pytest.approx(truth.measured)


def suite_board():  # type: ignore[no-untyped-def]
    from costmodel.suites._devices_ncnn import CORES

    return CORES["Cortex-A53"][0]


def test_the_page_says_what_was_met_and_missed() -> None:
    rows = table()
    predicted = rows.measured * 1.2
    found = cases(rows, "a", predicted, rows.measured) + cases(rows, "b", rows.measured * 1.01, rows.measured)
    text = page([Bar("a", "split a", "mape", 0.1), Bar("b", "split b", "median", 0.1)], found, {"x": "why not"})
    assert "| a | split a | 40 | 20.0 % |" in text
    assert "mape ≤ 10.0 %: **missed**" in text
    assert "median ≤ 10.0 %: met" in text
    assert "1 rows: why not" in text
    assert "`rk3588`: " in text
    assert "cpu[0].clock_hz" in text


def test_only_named_tables() -> None:
    if not reference().is_dir():
        pytest.skip("published tables are not part of the project")
    with pytest.raises(Exception, match="there is no table 'pi5' in this suite; there are pi4, i9"):
        suite.run(load_device("raspberry-pi-4b"), Options(part="pi5"), lambda *_: None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD.replace("latency_ms", "latency_us") + ROW.format(5), r"'latency_us' is in a unit that is not read"),
        (HEAD + ROW.format(0), "no run that can be used .*above 0"),
        (HEAD + ROW.format('"12,5"'), "decimal comma .*write 12.5"),
        (HEAD + ROW.format("12,5"), "10 fields where the header has 9; a decimal comma"),
        (HEAD + ROW.format("12 ms"), "not a number in the column's own unit"),
        (
            HEAD + ROW.format(5).replace("Pi 4", "Pi 5") + ROW.format(6).replace("Pi 4", "Pi 3"),
            "is none that raspberry-pi-4b",
        ),
        (HEAD.replace(",", ";"), "not separated by commas"),
    ],
)
@pytest.mark.parametrize("command", [("validate", "--against"), ("calibrate", "--from")])
def test_a_bad_file_is_one_line(command: tuple[str, str], text: str, message: str, tmp_path: Path) -> None:
    import re

    path = tmp_path / "runs.csv"
    path.write_text(text)
    said = fails(*command, str(path), "--device", "raspberry-pi-4b")
    assert re.search(message, said), said


def test_rows_of_other_devices_and_bad_rows_are_skipped(tmp_path: Path) -> None:
    import json

    path = tmp_path / "runs.csv"
    path.write_text(HEAD + ROW.format(5) + ROW.format(0) + ROW.format('"1,5"') + ROW.format(6).replace("Pi 4", "Pi 5"))
    done = cli("validate", "--against", str(path), "--device", "raspberry-pi-4b", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [c["model"] for c in result["cases"]] == ["mlp-small"]
    whys = " ".join(result["skipped"].values())
    assert all(part in whys for part in ("above 0", "decimal comma", "another device"))


def test_runs_of_one_machine_move_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSTMODEL_HOME", str(tmp_path))
    path = tmp_path / "mine.csv"
    path.write_text(HEAD.replace("latency_ms", "latency_ms") + ROW.format(5).replace("Raspberry Pi 4", "my laptop"))
    done = cli("calibrate", "--from", str(path), "--device", "intel-n100", "--measured-on", "i9-10940x")
    assert done.returncode == 0, done.stderr
    moved, own = load_device("intel-n100"), None
    runtime = moved.runtime["torch-eager"]
    monkeypatch.setenv("COSTMODEL_HOME", str(tmp_path / "none"))
    own = load_device("intel-n100").runtime["torch-eager"]
    assert runtime.overhead_s.value == own.overhead_s.value
    assert runtime.class_scale["gemm"].value != 1.0
    assert runtime.interval["infer"].high > 0.9  # wider than a fit on its own runs, and than a guess


def test_many_rows_take_constant_memory(tmp_path: Path) -> None:
    """In a process of its own: its peak grows by less than a quarter of the file (8 bytes a repeat are kept)."""
    path = tmp_path / "many.csv"
    with open(path, "w") as file:
        file.write(HEAD)
        for i in range(100_000):
            file.write(ROW.format(0 if i % 3 == 0 else 1 + i % 7))
    code = (
        "import resource, sys; from costmodel.runs import read_runs\n"
        "read_runs(sys.argv[2]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read_runs(sys.argv[1]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    small = tmp_path / "few.csv"
    small.write_text(HEAD + ROW.format(1))
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(small)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 0.25 * path.stat().st_size + 4e6


def test_quamba2_has_its_bar_and_a_batch_left_out() -> None:
    (bar, found, skipped), (_, left_out, _) = suite.TABLES["quamba2"](lambda *_: None)
    assert (bar.statistic, bar.goal) == ("worst", 0.15)
    assert {c.mode for c in found} == {"decode", "prefill"}
    assert summarize(found).worst <= 0.15
    assert len(skipped) == 3  # one batch each: both of the Orin's precisions, and Quamba's on the A5000
    assert len(left_out) == 10
    assert all(c.baseline for c in left_out)
    assert summarize(left_out).worst > summarize([c for c in found if c.mode == "decode"]).worst


def test_tables_of_the_same_models_share_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []
    priced = rebuild.estimate_of_run

    def watch(run: Run, device: object, runtime: str) -> object:
        drawn[-1].append(run.model)
        return priced(Run("mlp-small", "infer", 1e-3, threads=1), device, runtime)  # type: ignore[arg-type]

    monkeypatch.setenv("COSTMODEL_HOME", str(tmp_path))
    monkeypatch.setattr(published, "estimate_of_run", watch)
    names = [f"net{i}" for i in range(40)]
    for order in (names, names[::-1]):
        file = tmp_path / f"{order[0]}.csv"
        file.write_text(HEAD + "".join(ROW.format(5).replace("mlp-small", n) for n in order))
        drawn.append([])
        published.table_of(file, load_device("raspberry-pi-4b"), "torch-eager", sample=10)
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 10
    assert drawn[0] != names[:10]


def test_a_board_has_the_clock_of_each_cluster() -> None:
    board = at_clock(load_device("rk3399"), (1.8e9, 1.5e9))
    assert [c.clock_hz.value for c in board.cpu] == [1.8e9, 1.5e9]
    assert [c.clock_hz.value for c in at_clock(load_device("rk3399"), 0.9e9).cpu] == [0.9e9, 0.7e9]


@pytest.mark.slow
@pytest.mark.skipif(not reference().is_dir(), reason="published tables are not part of the project")
@pytest.mark.skipif(not find_spec("timm"), reason="needs costmodel[models]")
def test_the_bars_of_the_raspberry_pi() -> None:
    for bar, found, _ in suite.pi4(lambda *_: None):
        summary = summarize(found)
        assert summary.n == 28
        assert bar.goal is None or summary.mape <= bar.goal, bar.group
        assert summary.baseline_mape is not None
        assert summary.mape < summary.baseline_mape
    assert published.reference().is_dir()
