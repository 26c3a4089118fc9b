"""Traces of published steps are kept as long as what they were made by, and rows are priced one by one."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from costmodel.device import load_device
from costmodel.measure import against, rebuild
from costmodel.measure.job import Job
from costmodel.models.inputs import make_on
from costmodel.runs import Run, Runs

NET = """import torch

def net(batch=1):
    return torch.nn.Sequential({layers}), torch.zeros(batch, 8)
"""


def test_a_trace_is_of_the_file_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSTMODEL_HOME", str(tmp_path / "home"))
    file = tmp_path / "net.py"
    file.write_text(NET.format(layers="torch.nn.Linear(8, 4)"))
    job = Job(f"{file}:net")
    first = rebuild.traced(job)
    assert len(rebuild.traced(job)) == len(first)
    assert len(list(rebuild.trace_cache().iterdir())) == 1
    file.write_text(NET.format(layers="torch.nn.Linear(8, 4), torch.nn.ReLU()"))
    os.utime(file, ns=(1, 1))
    assert len(rebuild.traced(job)) == len(first) + 1


def test_comments_do_not_make_traces_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(text: str) -> str:
        (tmp_path / "a.py").write_text(text)
        rebuild._code_of.cache_clear()
        return rebuild._code_of("a.py")

    monkeypatch.setattr(rebuild, "__file__", str(tmp_path / "measure" / "rebuild.py"))
    plain = digest('"""One."""\ndef f(x):\n    """Two."""\n    return x\n')
    assert digest('"""Other."""\n\ndef f(x):\n    return x  # the same\n') == plain
    assert digest("def f(x):\n    return x + 1\n") != plain
    rebuild._code_of.cache_clear()


def test_a_method_and_a_net_of_our_own_are_part_of_the_key() -> None:
    assert rebuild._made_by(Job("timm:resnet18")) == []
    assert len(rebuild._made_by(Job("mlp-small"))) == 1
    assert len(rebuild._made_by(Job("timm:resnet18", mode="train", method="last_layer"))) == 1
    assert rebuild._made_by(Job("timm:" + "x" * 5000)) == []  # no path, and no error


def test_estimates_are_let_go_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSTMODEL_HOME", str(tmp_path))
    runs = Runs(tuple(Run("mlp-small", "infer", 1e-3, batch=b, runtime="torch-eager", threads=1) for b in (1, 2, 3)))
    seen = []
    for _, estimate in against.price_runs(runs, load_device("raspberry-pi-4b"), {}):
        assert all(ref() is None for ref in seen[:-1])
        seen.append(weakref.ref(estimate))
    assert len(seen) == 3


def test_nothing_is_initialised_without_memory() -> None:
    ran = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            ran.append(func.name())
            return func(*args, **(kwargs or {}))

    with Watch():
        net = make_on("meta", lambda: nn.Linear(8, 4))
        table = make_on("meta", lambda: nn.Embedding(4, 2, padding_idx=0))
    assert net.weight.is_meta
    assert table.weight.is_meta
    assert not {name.partition(".")[0] for name in ran} & {"aten::uniform_", "aten::normal_", "aten::clamp_"}
    kept = make_on("meta", _Strided)
    assert isinstance(kept.steps, torch.Tensor)
    assert torch.equal(kept.steps, torch.tensor([2.0, 4.0]))  # what has values keeps them


class _Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = torch.ones(2).mul_(2.0)
        self.steps[1] = 4.0
