"""Train and evaluate image classifiers: one loop for every arm, a learning rate per arm, a test set held out.

What makes the comparison fair: every arm sees the same images in the same number of steps with the same optimizer
(AdamW, linear warm-up, cosine to zero); its learning rate is the best of the same short list by accuracy on a
validation split; the test split is read once, after training, by `run_arm` alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from costmodel.tasks.data import Images
from costmodel.tasks.result import Budget, Progress, Scalar, TaskResult, cached, cached_json, key_of

__all__ = [
    "ImageTask",
    "Recipe",
    "Split",
    "Stage",
    "Watch",
    "accuracy",
    "fit",
    "run_arm",
    "search_lr",
    "split_frozen",
    "test_split",
    "train_split",
    "val_split",
]

Prepare = Callable[[Tensor], Tensor]
"""uint8 images (n, h, w) to the float input of the model."""

_VAL_POOL = 5000
_BEYOND = 3  # rates tried beyond the list
SEARCH_SEED = 10_000
"""The search for a learning rate draws its images and its head apart from every seed that is reported."""


@dataclass(frozen=True)
class Recipe:
    """How much to train and on how many images; `lrs` are tried on the validation split, one alone is taken.

    A rate is tried with `search_train` images and as many epochs.
    """

    train: int
    search_train: int
    val: int
    test: int
    epochs: int
    batch: int
    lrs: tuple[float, ...]
    weight_decay: float = 0.01
    warmup: float = 0.1

    def settings(self) -> dict[str, str | int | float | bool | None]:
        """For a result: every field, the list of rates as text."""
        return {**asdict(self), "lrs": " ".join(f"{lr:g}" for lr in self.lrs), "optimizer": "adamw, cosine"}


@dataclass(frozen=True)
class Split:
    """Images (n, h, w) uint8 and their classes (n,) int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


def _pools(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the training file: (to train on, to choose by), disjoint, the same for every seed and arm."""
    order = np.random.default_rng(0).permutation(len(images.train_y))
    held = min(_VAL_POOL, len(order) // 5)
    return order[held:], order[:held]


def _split(x: np.ndarray, y: np.ndarray) -> Split:
    return Split(torch.from_numpy(x.copy()), torch.from_numpy(y.copy()))


def train_split(images: Images, n: int, seed: int, classes: Sequence[int] | None = None) -> Split:
    """`n` training images drawn by the seed (all there are, if fewer), of `classes` alone when given."""
    pool, _ = _pools(images)
    if classes is not None:
        pool = pool[np.isin(images.train_y[pool], classes)]
    taken = np.random.default_rng([seed, 1]).permutation(pool)[:n]
    return _split(images.train_x[taken], images.train_y[taken])


def val_split(images: Images, n: int, classes: Sequence[int] | None = None) -> Split:
    """`n` images of the training file that no `train_split` draws, the same for all seeds."""
    _, pool = _pools(images)
    if classes is not None:
        pool = pool[np.isin(images.train_y[pool], classes)]
    return _split(images.train_x[pool[:n]], images.train_y[pool[:n]])


def test_split(images: Images, n: int) -> Split:
    """The first `n` images of the test file (it is in no order), the same for all seeds."""
    return _split(images.test_x[:n], images.test_y[:n])


@dataclass(frozen=True)
class Stage:
    """A piece of a model: what runs, the modules it uses, and the parameters it uses that are in none of them."""

    run: Callable[[Tensor], Tensor]
    modules: tuple[nn.Module, ...]
    loose: tuple[nn.Parameter, ...] = ()

    @property
    def fixed(self) -> bool:
        """True if what comes out for an image cannot change in training: nothing trains or depends on the mode."""
        owned = (p for module in self.modules for p in module.parameters())
        if any(p.requires_grad for p in (*owned, *self.loose)):
            return False
        return not any(depends_on_mode(part) for module in self.modules for part in module.modules())


def depends_on_mode(module: nn.Module) -> bool:
    """True for a leaf that computes something else in training than in evaluation, and is in training."""
    if not module.training:
        return False
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    rate = getattr(module, "p", getattr(module, "drop_prob", 0.0))
    return "drop" in type(module).__name__.lower() and bool(rate)


def split_frozen(stages: Sequence[Stage]) -> tuple[list[Stage], list[Stage]]:
    """(frozen, live): the leading stages that are fixed, and the rest; for a model in training mode.

    The frozen ones run once per image, which changes no result and saves most of the time.
    """
    live_from = next((i for i, stage in enumerate(stages) if not stage.fixed), len(stages))
    return list(stages[:live_from]), list(stages[live_from:])


def _through(stages: Sequence[Stage], x: Tensor) -> Tensor:
    for stage in stages:
        x = stage.run(x)
    return x


def _same(model: nn.Module, stages: Sequence[Stage], x: Tensor) -> bool:
    """Whether the stages one after the other are the model (a method may have given it another forward)."""
    was = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        same = torch.allclose(_through(stages, x), model(x), rtol=1e-4, atol=1e-4)
    for module, training in was.items():
        module.training = training
    return same


def fit(
    model: nn.Module,
    stages: Sequence[Stage],
    prepare: Prepare,
    train: Split,
    recipe: Recipe,
    lr: float,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Train `model` in place, on what requires a gradient.

    `stages` are the model cut in pieces that run one after the other; the leading frozen ones run once per image.
    The order of the images is drawn from the seed. The learning rate of step t of T is
    lr · min(1, t/(warmup·T)) · (1 + cos(π t/T))/2.
    """
    model.train()
    frozen, live = split_frozen(stages)
    if frozen and not _same(model, stages, prepare(train.x[:4])):
        frozen, live = [], [Stage(model, (model,))]
    x = train.x
    if frozen:
        with torch.no_grad():
            x = torch.cat([_through(frozen, prepare(part)) for part in train.x.split(128)])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=recipe.weight_decay)
    shuffle = np.random.default_rng([seed, 2])
    per_epoch = len(train) // recipe.batch
    steps = recipe.epochs * per_epoch
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.from_numpy(shuffle.permutation(len(train)))
        at = (step % per_epoch) * recipe.batch
        picked = order[at : at + recipe.batch]
        warm = min(1.0, (step + 1) / max(1.0, recipe.warmup * steps))
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        inputs = x[picked] if frozen else prepare(x[picked])
        logits = _through(live, inputs) if frozen else model(inputs)
        loss = nn.functional.cross_entropy(logits, train.y[picked])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None and step % 8 == 0:
            progress(step / steps, f"step {step}/{steps}")


@torch.no_grad()
def accuracy(model: nn.Module, prepare: Prepare, split: Split, batch: int = 128) -> float:
    """Share of the split's images whose class has the highest logit, in evaluation mode."""
    model.eval()
    right = 0
    for x, y in zip(split.x.split(batch), split.y.split(batch), strict=True):
        right += int((model(prepare(x)).argmax(1) == y).sum())
    return right / len(split)


def search_lr(trial: Callable[[float], float], lrs: Sequence[float]) -> tuple[float, dict[float, float]]:
    """Best learning rate by `trial` (lr to validation accuracy), and what each gave.

    Tries all of `lrs` (rising, a constant factor apart), and while the best lies at an end, one more beyond that end,
    three times at most. Of equals the smallest wins. A single rate is not tried.

    >>> search_lr(lambda lr: -abs(lr - 9), (1, 2, 4))[0]
    8.0
    """
    if len(lrs) == 1:
        return lrs[0], {}
    scores = {lr: trial(lr) for lr in lrs}
    factor = lrs[1] / lrs[0]
    for _ in range(_BEYOND):
        best = max(sorted(scores), key=lambda lr: scores[lr])
        beyond = {min(scores): best / factor, max(scores): best * factor}.get(best)
        if beyond is None:
            break
        scores[beyond] = trial(beyond)
    return max(sorted(scores), key=lambda lr: scores[lr]), scores


@dataclass(frozen=True)
class Watch:
    """Wall and CPU seconds since it was made."""

    wall: float
    cpu: float

    @classmethod
    def start(cls) -> Watch:
        return cls(time.perf_counter(), time.process_time())

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


@dataclass(frozen=True)
class ImageTask:
    """A family that fine-tunes one base model on images: what `run_arm` needs to know.

    `base(images, seed, budget)` gives the pretrained model with a fresh head drawn by the seed, `stages` cuts a model
    into pieces, `notes(budget)` goes into the result's settings. `version` is part of every key: raise it when a change
    of the code changes results.
    """

    family: str
    version: int
    model: str
    recipes: dict[Budget, Recipe]
    base: Callable[[Images, int, Budget], nn.Module]
    adapt: Callable[[nn.Module, str, int], nn.Module]
    stages: Callable[[nn.Module], list[Stage]]
    prepare: Prepare
    notes: Callable[[Images, Budget], dict[str, Scalar]]


def run_arm(
    task: ImageTask, arm: str, seed: int, budget: Budget, images: Images, progress: Progress | None = None
) -> TaskResult:
    """Train the arm at its own best learning rate and evaluate it once on the test split; cached by content."""
    recipe = task.recipes[budget]
    notes = task.notes(images, budget)
    content = {
        "family": task.family, "version": task.version, "arm": arm, "budget": budget, "recipe": asdict(recipe),
        "data": images.digest, "notes": notes,
    }  # fmt: skip

    def trained(n: int, lr: float, seed: int, report: Progress | None) -> tuple[nn.Module, Watch]:
        torch.manual_seed(seed)
        model = task.adapt(task.base(images, seed, budget), arm, recipe.batch)
        train = train_split(images, n, seed)
        watch = Watch.start()
        fit(model, task.stages(model), task.prepare, train, recipe, lr, seed, report)
        return model, watch

    def search() -> dict[str, Any]:
        held_out = val_split(images, recipe.val)

        def trial(lr: float) -> float:
            def score() -> dict[str, Any]:
                report = _under(progress, f"{arm}: trying lr {lr:g}")
                model, _ = trained(recipe.search_train, lr, SEARCH_SEED, report)
                return {"accuracy": accuracy(model, task.prepare, held_out)}

            return float(cached_json("trials", key_of(**content, trial=lr), score)["accuracy"])

        best, scores = search_lr(trial, recipe.lrs)
        return {"lr": best, "scores": {f"{lr:g}": round(score, 4) for lr, score in sorted(scores.items())}}

    def compute() -> TaskResult:
        found = cached_json("lr", key_of(**content), search)
        model, watch = trained(recipe.train, found["lr"], seed, _under(progress, f"{arm}: seed {seed}"))
        wall_s, cpu_s = watch.read()
        held_out = test_split(images, recipe.test)
        return TaskResult(
            family=task.family,
            arm=arm,
            seed=seed,
            budget=budget,
            metric=f"accuracy on {len(held_out):,} test images",
            value=accuracy(model, task.prepare, held_out),
            higher_is_better=True,
            train_s=round(wall_s, 3),
            train_cpu_s=round(cpu_s, 3),
            data=images.provenance,
            model=task.model,
            settings={
                **recipe.settings(),
                **notes,
                "lr": found["lr"],
                "lr_search": " ".join(f"{lr}:{score}" for lr, score in found["scores"].items()) or "none",
                "version": task.version,
            },
        )

    return cached(key_of(**content, seed=seed), compute)


def _under(progress: Progress | None, what: str) -> Progress | None:
    if progress is None:
        return None
    return lambda share, _step: progress(share, what)
