"""The op graph: what is saved loads equal, what cannot be is refused by name, and edges are where data flow."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import costmodel.graph as graph_file
from costmodel.capture import capture
from costmodel.errors import CostmodelError, FileError
from costmodel.graph import PHASES, ROLES, GraphMeta, OpGraph, load, read_bounded, write_atomic

from .fuzz.fuzz import graph as hand_made

COLUMNS = [name for name, _ in OpGraph()._columns()]


def same(a: OpGraph, b: OpGraph) -> bool:
    return a.meta == b.meta and all(list(getattr(a, c)) == list(getattr(b, c)) for c in COLUMNS)


LAYERS: tuple[Callable[[int], nn.Module], ...] = (
    lambda n: nn.Linear(n, n),
    lambda n: nn.Linear(n, n, bias=False),
    lambda _: nn.ReLU(),
    lambda n: nn.Sequential(nn.Linear(n, n), nn.ReLU(inplace=True)),
    lambda _: nn.GELU(),
    lambda n: nn.LayerNorm(n),
    lambda _: nn.Dropout(0.1),
    lambda n: nn.BatchNorm1d(n),
)


@st.composite
def models(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A chain of layers, some used twice, on [batch, 2 k]."""
    width = 2 * draw(st.integers(1, 8))
    made = [draw(st.sampled_from(LAYERS))(width) for _ in range(draw(st.integers(1, 5)))]
    order = draw(st.lists(st.sampled_from(made), min_size=1, max_size=6))
    return nn.Sequential(nn.Linear(width, width), *order), torch.zeros(draw(st.integers(2, 5)), width)


@given(models(), st.sampled_from(["infer", "train"]), st.sampled_from(["sgd", "momentum", "adamw"]))
@settings(max_examples=25, deadline=None)
def test_any_captured_graph_is_sound_and_loads_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[nn.Module, Tensor], mode: str, optimizer: str
) -> None:
    graph = capture(*made, mode=mode, optimizer=optimizer).check()
    path = graph.save(tmp_path_factory.mktemp("traces") / "t.json.gz")
    again = load(path)
    assert same(graph, again)
    assert again.save(path.with_name("again.json.gz")).read_bytes() == path.read_bytes(), "saving is deterministic"


def test_a_trace_can_be_empty_and_plain_json_is_read(tmp_path: Path) -> None:
    assert same(OpGraph(), load(OpGraph().save(tmp_path / "empty.json.gz")))
    plain = tmp_path / "plain.json"
    plain.write_bytes(gzip.decompress(hand_made().save(tmp_path / "t.json.gz").read_bytes()))
    assert same(load(plain), hand_made())


# Files


def test_a_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep" / "t.json.gz"
    hand_made().save(target)
    old = target.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        hand_made().save(target)
    assert target.read_bytes() == old
    assert [p.name for p in target.parent.iterdir()] == [target.name], "no temporary file is left"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    target, stop, broken = tmp_path / "t", threading.Event(), []
    write_atomic(target, b"0" * 100_000)

    def read() -> None:
        while not stop.is_set():
            data = target.read_bytes()
            if len(data) != 100_000 or len(set(data)) != 1:
                broken.append(len(data))

    reader = threading.Thread(target=read)
    reader.start()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        for digit in b"12":
            write_atomic(target, bytes([digit]) * 100_000)
    stop.set()
    reader.join()
    assert not broken


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileError, match=r"file/t\.json\.gz: cannot be written .*choose another path"):
        hand_made().save(tmp_path / "file" / "t.json.gz")


def test_an_archive_cannot_fill_the_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.json.gz"
    bomb.write_bytes(gzip.compress(b"0" * 5_000_000))
    with pytest.raises(FileError, match="holds more than 1,000,000 bytes"):
        read_bounded(bomb, 1_000_000)
    assert len(read_bounded(bomb, 5_000_000)) == 5_000_000
    assert graph_file.MAX_TRACE_BYTES <= 1 << 30


def document(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads(gzip.decompress(hand_made().save(tmp_path / "good.json.gz").read_bytes())))


Edit = Callable[[dict[str, Any]], Any]


def put(*place: Any) -> Edit:
    """An edit that puts the last of `place` where the others lead."""
    *path, key, value = place

    def edit(d: dict[str, Any]) -> None:
        for step in path:
            d = d[step]
        d[key] = value

    return edit


BROKEN: dict[str, tuple[Edit, str]] = {
    "another schema": (put("schema", 2), r"schema: is 2, this version reads 1; trace again"),
    "no schema": (lambda d: d.pop("schema"), r"schema: is None"),
    "another kind": (put("kind", "budget"), r"kind: is not a trace of this tool"),
    "an unknown role": (put("storage_role", "values", 0, "boss"), r"storage_role\[\d+\]: 'boss' is none of parameter"),
    "an unknown phase": (put("op_phase", "values", 0, "sideways"), r"op_phase\[0\]: 'sideways' is none of forward"),
    "a negative size": (put("storage_bytes", 0, -4), r"storage_bytes\[0\]: -4 bytes is not a size"),
    "an absurd size": (put("storage_bytes", 0, 10**30), r"storage_bytes\[0\]: 10{30} bytes is not a size"),
    "a bool as a size": (put("storage_bytes", 0, True), r"storage_bytes: .*not an integer"),
    "a float as a size": (put("storage_bytes", 0, 4.0), r"storage_bytes: .*not an integer"),
    "a size that is text": (put("storage_bytes", 0, "4"), r"storage_bytes: .*not an integer"),
    "a tensor outside its storage": (put("tensor_offset", 0, 1), r"tensor_shape\[0\]: shape .* reaches outside"),
    "a tensor before its storage": (put("tensor_offset", 0, -1), r"tensor_shape\[0\]: shape .* reaches outside"),
    "a negative dimension": (put("tensor_shape", "values", 0, [-4, 3, 16, 16]), r"tensor_shape\[0\]: .*do not fit"),
    "dimensions without strides": (put("tensor_shape", "values", 0, [4, 3]), r"tensor_shape\[0\]: .*do not fit"),
    "a dimension that is a bool": (put("tensor_shape", "values", 0, [True]), r"tensor_shape: .*not an integer"),
    "an absurd shape": (put("tensor_shape", "values", 0, [10**40] * 4), r"tensor_shape\[0\]"),
    "an unknown dtype": (put("tensor_dtype", "values", 0, "float7"), r"tensor_dtype\[0\]: 'float7' is not a dtype"),
    "a storage that is not there": (put("tensor_storage", 0, 99), r"tensor_storage\[0\]: storage 99 does not exist"),
    "a tensor that is not there": (put("op_inputs", "values", 0, [99]), r"op_inputs\[0\]: tensor 99 does not exist"),
    "a negative tensor": (put("op_inputs", "values", 0, [-1]), r"op_inputs\[0\]: tensor -1 does not exist"),
    "a negative index": (put("op_name", "index", 0, -1), r"op_name: .*negative index"),
    "an index past the end": (put("op_name", "index", 0, 99), r"op_name: "),
    "a life that ends before it starts": (put("storage_death", 2, -1), r"storage_birth\[2\]: lives from 0 to -1"),
    "a use after death": (put("storage_death", 2, 1), r"op_inputs\[1\]: tensor 2 is not alive when op 1"),
    "a column that is missing": (lambda d: d.pop("op_attrs"), r"op_attrs: is missing"),
    "a column that is short": (lambda d: d["storage_name"]["index"].pop(), r"storage_name: has \d+ entries where"),
    "a column of another kind": (put("op_name", 3), r"op_name: cannot be used"),
    "a name that is a number": (put("op_name", "values", 0, 7), r"op_name: .*not a string"),
    "attributes that are a list": (put("op_attrs", "values", 0, []), r"op_attrs: .*not an object"),
    "a batch that is a bool": (put("meta", "batch", True), r"meta\.batch: True is not usable"),
    "a batch below nothing": (put("meta", "batch", -1), r"meta\.batch: -1 is not usable"),
    "a model that is a number": (put("meta", "model", 3), r"meta\.model: 3 is not usable"),
    "a key that nobody knows": (put("meta", "owner", "me"), r"meta: must have the keys model, mode"),
    "no meta": (lambda d: d.pop("meta"), r"meta: must have"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_trace_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    edit, message = BROKEN[name]
    broken = document(tmp_path)
    edit(broken)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(FileError, match=message) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    assert len(text) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a trace"),
        (b"\x1f\x8b", "cut off or not a trace"),
        (b"PK\x03\x04", "is not a trace"),
        (b"[1, 2]", "kind: is not a trace"),
        (b"\xff\xfe{}", "is not a trace"),
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"meta": {"batch": 1, "batch": 2}}', "'batch' stands twice"),
        (b"[" * 100_000, "is not a trace"),
        (b"9" * 10_000, "is not a trace"),
    ],
)
def test_bytes_that_are_no_trace(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json.gz"
    path.write_bytes(data)
    with pytest.raises(FileError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_trace_that_was_cut_off(tmp_path: Path) -> None:
    path = hand_made().save(tmp_path / "t.json.gz")
    whole = path.read_bytes()
    for keep in (1, 10, 30, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(FileError, match=r"t\.json\.gz: "):
            load(path)
    with pytest.raises(FileError, match="no such file"):
        load(tmp_path / "none.json.gz")
    with pytest.raises(FileError):
        load(tmp_path)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(literal: str, tmp_path: Path) -> None:
    text = json.dumps(document(tmp_path))
    path = tmp_path / "nan.json"
    path.write_text(text.replace('"storage_bytes":', f'"storage_bytes": [{literal}], "was":', 1))
    with pytest.raises(FileError, match=r"storage_bytes|is not a trace"):
        load(path)


def test_check_finds_what_load_finds() -> None:
    graph = capture(nn.Linear(4, 4), torch.zeros(2, 4))
    assert graph.check() is graph
    graph.storage_role[0] = "boss"
    with pytest.raises(CostmodelError, match=r"storage_role\[0\]: 'boss' is none of"):
        graph.check()
    graph.storage_role[0] = ROLES[0]
    graph.op_phase.append(PHASES[0])
    with pytest.raises(CostmodelError, match="op_phase: has 3 entries where the table has 2"):
        graph.check()


# The networkx view


class Branches(nn.Module):
    """x feeds two branches that meet; one reads a view, one is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        left = self.a(x)
        right = self.b(x)
        left.relu_()
        return left.view(8) * right.view(8)


def test_edges_are_exactly_where_data_flow() -> None:
    graph = capture(Branches(), torch.zeros(2, 4), mode="infer")
    nx = graph.nx
    name = {k: d["op"].split("::")[1].split(".")[0] for k, d in nx.nodes(data=True)}
    edges = {(name[u], name[v], nx.nodes[u]["module"], nx.nodes[v]["module"]) for u, v in nx.edges}
    assert edges == {
        ("t", "mm", "a", "a"),
        ("t", "mm", "b", "b"),
        ("mm", "relu_", "a", ""),
        ("relu_", "view", "", ""),
        ("mm", "view", "b", ""),
        ("view", "mul", "", ""),
    }
    assert nx.number_of_nodes() == len(graph) == 8
    assert nx.graph["model"] == "Branches"
    assert set(nx.nodes[0]) >= {"op", "phase", "module"}
    for u, v, data in nx.edges(data=True):
        assert u < v
        assert data["bytes"] == sum(graph.tensor_bytes(t) for t in data["tensors"]) > 0
        assert set(data["tensors"]) <= set(graph.op_inputs[v])


@given(models(), st.sampled_from(["infer", "train"]))
@settings(max_examples=10, deadline=None)
def test_every_edge_comes_from_the_last_writer(made: tuple[nn.Module, Tensor], mode: str) -> None:
    """Against a plain rule: an input that the step made has one edge, from an op before that touched its storage."""
    graph = capture(*made, mode=mode)
    for k in range(len(graph)):
        sources = {u for u, _ in graph.nx.in_edges(k)}
        for t in graph.op_inputs[k]:
            storage = graph.tensor_storage[t]
            touched = {
                j for j in range(k) for o in graph.op_outputs[j] if graph.tensor_storage[o] == storage
            }  # fmt: skip
            if graph.storage_birth[storage] >= 0:
                assert touched & sources, f"op {k} reads tensor {t}, which nobody wrote"
            if not touched:
                assert all(t not in graph.nx.edges[u, k]["tensors"] for u in sources)


def test_the_view_that_a_graph_shows_is_a_dag_with_the_meta() -> None:
    import networkx

    graph = capture(Branches(), torch.zeros(2, 4), mode="train", optimizer="adamw", name="branches", method="m")
    assert networkx.is_directed_acyclic_graph(graph.nx)
    assert graph.meta == GraphMeta(
        "branches", "train", "m", 2, "float32", "adamw", f"torch {torch.__version__}"
    )  # fmt: skip
    assert dict(graph.nx.graph) == graph.meta.as_dict()
    assert {d["phase"] for _, d in graph.nx.nodes(data=True)} == set(PHASES)
    assert "branches, train" in repr(graph)
