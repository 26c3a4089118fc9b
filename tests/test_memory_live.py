"""Live bytes: what the trace predicts is what the allocator's events of a real step say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from costmodel.capture import capture
from costmodel.core.memory import live_bytes
from costmodel.errors import CostmodelError
from costmodel.host import detect
from costmodel.lower import lower
from costmodel.measure.memory import held_bytes, measure_live, measure_live_peak
from costmodel.measure.resident import MemoryJob
from costmodel.methods import apply_method
from costmodel.models.step import make_step


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10))


def predicted(model: nn.Module, x: Tensor, **options: object) -> int:
    m = lower(capture(model, x, **options), lanes=detect().lanes).memory  # type: ignore[arg-type]
    return int(live_bytes(m.bytes, m.birth, m.death, m.workspace).max())


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "infer"},
        {"mode": "train"},
        {"mode": "train", "optimizer": "momentum"},
        {"mode": "train", "optimizer": "adamw"},
        {"mode": "train", "keep_gradients": True},
        {"mode": "train", "accumulate": 3},
        {"mode": "train", "accumulate": 2, "keep_gradients": True, "optimizer": "adamw"},
    ],
    ids=lambda o: " ".join(map(str, o.values())),
)
def test_trace_predicts_the_measured_peak(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(64, 256)
    run = measure_live(make_step(model, x, **options))  # type: ignore[arg-type]
    assert predicted(model, x, **options) == pytest.approx(run.peak, rel=1e-4)
    assert run.drift == 0


def test_kept_gradients_do_not_change_what_runs() -> None:
    """The unseen run that makes the gradients leaves no trace; the traced one adds to them in place."""
    x = torch.randn(8, 256)
    plain = capture(mlp(), x, mode="train")
    kept = capture(mlp(), x, mode="train", keep_gradients=True)
    forward = [name for name, phase in zip(plain.op_name, plain.op_phase) if phase == "forward"]
    assert forward == [name for name, phase in zip(kept.op_name, kept.op_phase) if phase == "forward"]
    held = [r for r, b in zip(kept.storage_role, kept.storage_birth) if b < 0]
    assert held.count("gradient") == held.count("parameter")
    assert held.count("input") == 2  # and the target


def test_modes_order_as_they_must() -> None:
    model, x = mlp(), torch.randn(64, 256)
    peak = {
        name: measure_live_peak(make_step(mlp(), x, **options))  # type: ignore[arg-type]
        for name, options in {
            "infer": {"mode": "infer"},
            "sgd": {"mode": "train"},
            "momentum": {"mode": "train", "optimizer": "momentum"},
            "adamw": {"mode": "train", "optimizer": "adamw"},
            "kept": {"mode": "train", "keep_gradients": True},
        }.items()
    }
    parameters = sum(p.nbytes for p in model.parameters())
    assert peak["infer"] < peak["sgd"] < peak["momentum"] < peak["adamw"]
    assert peak["momentum"] - peak["sgd"] == parameters
    assert peak["kept"] > peak["sgd"]


def test_first_step_makes_the_optimizer_state() -> None:
    x = torch.randn(64, 256)
    step = make_step(mlp(), x, mode="train", optimizer="adamw")
    first = measure_live(step, first=True)
    steady = measure_live(step)
    state = sum(t.nbytes for s in step.optimizer.state.values() for t in s.values())  # type: ignore[union-attr]
    grads = sum(p.nbytes for p in step.model.parameters())
    assert steady.base - first.base == state + grads + step.constants["target"].nbytes
    assert first.live[-1] == held_bytes(step)
    with pytest.raises(CostmodelError, match="has run before"):
        measure_live(step, first=True)


def test_storages_are_counted_once() -> None:
    model = mlp()
    model[2].weight = model[2].weight  # registered again: still one storage
    tied = nn.ModuleDict({"a": model, "b": model})
    x = torch.randn(4, 256)
    step = make_step(tied["a"], (x,), mode="infer")
    assert held_bytes(step) == sum(p.nbytes for p in model.parameters()) + x.nbytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "infer", "accumulate": 2}, "no gradients"),
        ({"mode": "infer", "keep_gradients": True}, "no gradients"),
        ({"mode": "train", "accumulate": 0}, "at least 1"),
    ],
)
def test_settings_that_mean_nothing(options: dict[str, object], message: str) -> None:
    with pytest.raises(CostmodelError, match=message):
        make_step(mlp(), torch.randn(4, 256), **options)  # type: ignore[arg-type]


def test_checkpointing_trades_memory_for_the_same_gradients() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256)) for _ in range(8)))
    x = torch.randn(2048, 256)
    saving = apply_method("checkpoint", plain, x)
    before, after = (measure_live(make_step(m, x, mode="train")) for m in (plain, saving))
    assert after.peak < 0.7 * before.peak
    # each checkpoint keeps the generator's state, 5,056 bytes that no op makes and the trace does not see
    assert predicted(saving, x, mode="train") + 8 * 5056 == pytest.approx(after.peak, rel=1e-4)
    for model in (plain, saving):
        model.zero_grad()
        model(x).square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_nothing_to_checkpoint() -> None:
    with pytest.raises(CostmodelError, match="no sequence of blocks"):
        apply_method("checkpoint", nn.Linear(2, 2), torch.ones(1, 2))


def test_a_first_decode_step_gives_back_the_cache_that_it_replaces() -> None:
    """The cache was made before the profiler started, which does not see such blocks go."""
    pytest.importorskip("transformers")
    job = MemoryJob("transformers:llama-tiny", "decode", seq=64)
    found = measure_live(job.step(), first=True)
    assert found.drift == 0
    m = lower(job.trace(), lanes=detect().lanes).memory
    assert int(live_bytes(m.bytes, m.birth, m.death, m.workspace).max()) == pytest.approx(found.peak, rel=0.01)
