"""A step: how inputs are passed, what the loss is, and that a mode leaves the model in the state that it needs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from costmodel.errors import CostmodelError
from costmodel.models.step import MODES, OPTIMIZERS, as_call, default_loss, make_step

X = torch.randn(4, 8)


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, 2), (X, 2), {}),
        ([X, 2], (X, 2), {}),
        ({"x": X}, (), {"x": X}),
        (((X,), {"y": 2}), (X,), {"y": 2}),
        ((), (), {}),
    ],
)
def test_inputs_as_people_pass_them(given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    found_args, found_kwargs = as_call(given)
    assert len(found_args) == len(args)
    assert all(a is b for a, b in zip(found_args, args))
    assert found_kwargs.keys() == kwargs.keys()


def test_modes_put_the_model_into_their_state() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout())
    assert not make_step(model, X, mode="infer").model.training
    assert make_step(model, X, mode="train").model.training
    assert set(MODES) == {"infer", "train", "prefill", "decode"}
    assert not make_step(model, X, mode="infer").run().requires_grad


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_step_trains(optimizer: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    frozen = model.bias.requires_grad_(False)
    before = model.weight.clone(), frozen.clone()
    step = make_step(model, X, mode="train", optimizer=optimizer)
    first = float(step.run().detach())
    for _ in range(5):
        last = float(step.run().detach())
    assert last < first
    assert not torch.equal(model.weight, before[0])
    assert torch.equal(frozen, before[1])
    assert step.batch == 4


def test_your_own_optimizer_and_loss() -> None:
    model = nn.Linear(8, 3)
    step = make_step(
        model, X, mode="train", optimizer=lambda p: torch.optim.Adagrad(p), loss=lambda out, _step: out.abs().sum()
    )
    assert float(step.run().detach()) == pytest.approx(float(model(X).detach().abs().sum()), rel=1.0)
    assert isinstance(step.optimizer, torch.optim.Adagrad)


def test_accumulating_micro_batches_is_one_large_batch() -> None:
    torch.manual_seed(0)
    a, b = nn.Linear(8, 3), nn.Linear(8, 3)
    b.load_state_dict(a.state_dict())
    make_step(a, X, mode="train").run()
    make_step(b, X, mode="train", accumulate=4).run()
    torch.testing.assert_close(a.weight, b.weight)


@pytest.mark.parametrize(
    ("output", "value"),
    [
        (torch.zeros(4, 10, requires_grad=True), torch.log(torch.tensor(10.0))),  # logits
        (torch.zeros(4, 10, 2, 2, requires_grad=True), torch.tensor(0.0)),  # an image: mean square
        ({"out": torch.full((4, 2, 2), 2.0, requires_grad=True)}, torch.tensor(4.0)),
        (SimpleNamespace(loss=torch.tensor(7.0)), torch.tensor(7.0)),  # the model's own
        (SimpleNamespace(loss=None, logits=torch.zeros(2, 3, 5, requires_grad=True)), torch.log(torch.tensor(5.0))),
    ],
)
def test_the_loss_that_people_would_use(output: Any, value: Tensor) -> None:
    step = make_step(nn.Linear(8, 8), X, mode="train")
    torch.testing.assert_close(default_loss(output, step), value)


def test_targets_are_made_once() -> None:
    step = make_step(nn.Linear(8, 3), X, mode="train")
    step.run()
    target = step.constants["target"]
    step.run()
    assert step.constants["target"] is target


class Cached(nn.Module):
    """A language model with a growing cache, as transformers has them."""

    class Cache:
        def __init__(self) -> None:
            self.keys = torch.zeros(1, 0, 4)

        def crop(self, n: int) -> None:
            self.keys = self.keys[:, :n]

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4), nn.Linear(4, 10)

    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        cache = past_key_values or self.Cache()
        x = self.embed(input_ids)
        cache.keys = torch.cat([cache.keys, x], 1)
        return SimpleNamespace(
            logits=self.head(x + cache.keys.mean(1, keepdim=True)), past_key_values=cache if use_cache else None
        )


def test_every_decode_step_reads_the_same_context() -> None:
    step = make_step(Cached(), {"input_ids": torch.zeros(1, 6, dtype=torch.long)}, mode="decode")
    assert step.context == 6
    assert step.kwargs["input_ids"].shape == (1, 1)
    for _ in range(3):
        step.run()
        assert step.kwargs["past_key_values"].keys.shape[1] == 6
    longer = make_step(Cached(), {"input_ids": torch.zeros(1, 6, dtype=torch.long)}, mode="decode", seq=9)
    assert longer.kwargs["past_key_values"].keys.shape[1] == 9


class NoCache(Cached):
    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.head(self.embed(input_ids)))


class OtherArguments(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NoCache, "NoCache returned no cache"),
        (OtherArguments, "which OtherArguments does not take.*mode='infer' instead"),
    ],
)
def test_what_cannot_decode_says_why(model: type[nn.Module], message: str) -> None:
    with pytest.raises(CostmodelError, match=message):
        make_step(model(), {"input_ids": torch.zeros(1, 6, dtype=torch.long)}, mode="decode")
