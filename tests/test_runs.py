"""Run files: what is read, what is skipped with which reason, and that writing loses nothing."""

from __future__ import annotations

import gzip
import multiprocessing
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.device import load_device
from costmodel.errors import FileError, UnknownName
from costmodel.runs import MAX_SKIPPED, Run, Skip, append_runs, read_runs, runtime_for, stream_runs

HEAD = "model,task,batch,input_size,dtype,device,framework,threads,latency_ms,note\n"
ROW = "resnet18,train,16,3x224x224,fp32,Raspberry Pi 4,torch 1.13.1 eager,4,{},mine\n"


@pytest.fixture
def write(tmp_path: Path):
    def writer(text: str, name: str = "runs.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return writer


def test_a_row_becomes_a_run(write) -> None:
    (run,) = read_runs(write(HEAD + ROW.format("10918.0"))).runs
    assert (run.model, run.mode, run.method, run.batch) == ("resnet18", "train", None, 16)
    assert run.latency_s == pytest.approx(10.918)
    assert (run.dtype, run.threads, run.runtime) == ("float32", 4, "torch 1.13.1 eager")
    assert run.meta["note"] == "mine"
    assert run.energy_j is None
    assert run.peak_live_bytes is None


def test_head_finetuning_is_training_of_the_last_layer(write) -> None:
    (run,) = read_runs(write(HEAD + ROW.format("1").replace("train", "finetune-head"))).runs
    assert (run.mode, run.method) == ("train", "last_layer")


def test_repeats_of_a_case_are_one_run(write) -> None:
    (run,) = read_runs(write(HEAD + "".join(ROW.format(x) for x in (10, 12, 11)))).runs
    assert run.latency_s == pytest.approx(0.011)
    assert sorted(run.repeats) == pytest.approx([0.010, 0.011, 0.012])
    assert run.noise == pytest.approx(1 / 11)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (ROW.format("0"), "above 0"),
        (ROW.format("-3"), "above 0"),
        (ROW.format("inf"), "finite"),
        (ROW.format(""), "empty"),
        (ROW.format('"12,5"'), "write 12.5"),
        (ROW.format("12,5"), "11 fields where the header has 10; a decimal comma?"),
        (ROW.format("12.5 ms"), "not a number"),
        (ROW.format("1").replace(",16,", ",1.5,"), "whole number"),
        (ROW.format("1").replace("train", "sing"), "did you mean infer"),
        (ROW.format("1").replace("train", "trian"), "did you mean train"),
        ("," + ROW.format("1").split(",", 1)[1], "model is empty"),
        ("resnet18,train\n", "2 fields"),
    ],
)
def test_a_bad_row_is_skipped_by_name_and_reason(write, row: str, why: str) -> None:
    if "sing" in row:
        why = "there are"
    runs = read_runs(write(HEAD + ROW.format("5") + row))
    assert len(runs.runs) == 1
    ((name, reason),) = runs.skipped.items()
    assert name.startswith("line 3: ")
    assert why in reason


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        (HEAD.replace(",", ";"), "not separated by commas"),
        (HEAD.replace("latency_ms", "latency_us"), "'latency_us' is in a unit that is not read, give milliseconds"),
        (HEAD.replace("model", "name"), "model: is not a column"),
        (HEAD.replace("note", "model"), "names two columns"),
        (HEAD, "no run that can be used"),
        (HEAD + ROW.format("0"), "no run that can be used"),
        (HEAD + '"never closed,train', "is not CSV"),
        (HEAD + ROW.format("1") + ROW.format("2").replace("Pi 4", "Pi 5"), "is of 2 devices"),
    ],
)
def test_a_bad_file_is_one_line(write, text: str, why: str) -> None:
    path = write(text)
    with pytest.raises(FileError) as caught:
        read_runs(path)
    assert str(caught.value).startswith(str(path))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_text_and_not_there(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(FileError):
        read_runs(tmp_path / "binary.csv")
    with pytest.raises(FileError, match="no such file"):
        read_runs(tmp_path / "none.csv")
    with pytest.raises(FileError, match="folder"):
        read_runs(tmp_path)


def test_a_device_keeps_its_own_rows(write) -> None:
    path = write(HEAD + ROW.format("1") + ROW.format("2").replace("Pi 4", "Pi 5"))
    runs = read_runs(path, load_device("raspberry-pi-4b"))
    assert [r.device for r in runs.runs] == ["Raspberry Pi 4"]
    assert "another device" in next(iter(runs.skipped.values()))
    with pytest.raises(FileError, match="is none that h100 goes by"):
        read_runs(path, load_device("h100"))
    # one device that goes by none of the names: the caller says what it is
    assert len(read_runs(write(HEAD + ROW.format("1"), "one.csv"), load_device("h100")).runs) == 1


def test_packed_files_and_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv.gz"
    path.write_bytes(gzip.compress(("\ufeff" + HEAD + ROW.format("7")).encode()))
    assert read_runs(path).runs[0].latency_s == pytest.approx(0.007)


def test_a_million_rows_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "million.csv"
    with open(path, "w") as file:
        file.write(HEAD)
        for i in range(60_000):
            file.write(ROW.format(1 + i % 7 if i % 2 else 0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runs = read_runs(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert len(runs.runs) == 1
    assert len(runs.runs[0].repeats) == 30_000
    assert MAX_SKIPPED < len(runs.skipped) <= MAX_SKIPPED + 20
    assert grown < 40_000  # KiB
    assert sum(isinstance(item, Skip) for item in stream_runs(path)) == 30_000


def test_frameworks_map_to_runtimes() -> None:
    pi = load_device("raspberry-pi-4b")
    assert runtime_for(pi, "torch 1.13.1 eager (timm 0.9.10)") == "torch-eager"
    assert runtime_for(pi, "torch-eager") == "torch-eager"
    with pytest.raises(UnknownName, match="torch-eager"):
        runtime_for(pi, "caffe")
    assert runtime_for(load_device("i9-10940x"), "torch 2.4.0 inductor") == "torch-inductor"
    assert runtime_for(load_device("h100"), "PyTorch 2.1.0 CUDA eager") == "torch-cuda"
    assert runtime_for(load_device("jetson-nano"), "torch 1.10 eager", "cpu") == "torch-eager"
    assert runtime_for(load_device("jetson-nano"), "torch 1.10 eager", "GPU") == "torch-cuda"
    with pytest.raises(UnknownName, match="on its gpu"):
        runtime_for(pi, "ncnn", "gpu")


names = st.text("abc-_:=,+é\"' \n;", min_size=1, max_size=12).filter(lambda s: s.strip() == s and s)
seconds = st.floats(1e-9, 1e6)
runs_of_any_kind = st.builds(
    Run,
    model=names,
    mode=st.sampled_from(["infer", "train", "prefill", "decode"]),
    latency_s=seconds,
    method=st.none() | names,
    batch=st.none() | st.integers(1, 1 << 40),
    input_size=st.sampled_from(["", "3x224x224", "seq512"]),
    dtype=st.sampled_from(["float32", "bfloat16", "amp-fp16"]),
    device=st.just("host"),
    runtime=st.sampled_from(["torch-eager", ""]),
    threads=st.none() | st.integers(1, 64),
    cpu_s=st.none() | seconds,
    noise=st.none() | st.floats(0, 1),
    peak_live_bytes=st.none() | st.integers(1, 1 << 50),
    peak_rss_bytes=st.none() | st.integers(1, 1 << 50),
    energy_j=st.none() | seconds,
    repeats=st.lists(seconds, max_size=3).map(tuple),
    meta=st.dictionaries(names, names, max_size=2),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(runs_of_any_kind, min_size=1, max_size=4, unique_by=lambda r: r.case))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, runs: list[Run]) -> None:
    path = tmp_path_factory.mktemp("runs") / "host" / "runs.csv"
    append_runs(path, runs[:1])
    append_runs(path, runs[1:])
    back = [item for item in stream_runs(path) if isinstance(item, Run)]
    assert len(back) == len(runs)
    for one, other in zip(runs, back):
        assert other.latency_s == pytest.approx(one.latency_s, rel=1e-12)
        assert other.cpu_s == (None if one.cpu_s is None else pytest.approx(one.cpu_s, rel=1e-12))
        assert other.energy_j == (None if one.energy_j is None else pytest.approx(one.energy_j, rel=1e-12))
        assert other.case == one.case
        assert (other.noise, other.repeats, dict(other.meta)) == (one.noise, one.repeats, dict(one.meta))
        assert (other.peak_live_bytes, other.peak_rss_bytes) == (one.peak_live_bytes, one.peak_rss_bytes)


def _append(path: Path, who: int) -> None:
    for i in range(20):
        append_runs(path, [Run(f"m{who}-{i}", "infer", 1e-3, device="host")])


def test_two_processes_append_without_loss(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    workers = [multiprocessing.get_context("fork").Process(target=_append, args=(path, who)) for who in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {r.model for r in read_runs(path).runs} == {f"m{who}-{i}" for who in range(2) for i in range(20)}


def test_a_file_with_other_columns_is_not_touched(write) -> None:
    path = write(HEAD + ROW.format("1"))
    with pytest.raises(FileError, match="other columns"):
        append_runs(path, [Run("m", "infer", 1.0)])
    assert path.read_text() == HEAD + ROW.format("1")


def test_a_million_names_are_refused_and_not_kept(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("costmodel.runs.MAX_CASES", 3)
    names = "".join(ROW.format("1").replace("resnet18", f"net{i}") for i in range(5))
    with pytest.raises(FileError, match="more than 3 different steps, each of which is traced; give a part of it"):
        read_runs(write(HEAD + names))
    assert len(read_runs(write(HEAD + names.partition("net3")[0].rpartition("\n")[0] + "\n")).runs) == 3
