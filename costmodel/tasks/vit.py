"""Task family vit: a small vision transformer of our own training, from five classes of Fashion-MNIST to all ten.

The ground of LBP-WHT (METHODS.md section 1): 28x28 images padded to 32x32, patches of 4, a grid of 8x8 tokens, one
Walsh-Hadamard tile. There are no published weights to be had for such a network, so the pretraining is ours and is
part of the task: classes 0 to 4 (T-shirt, trouser, pullover, dress, coat) with images drawn by a seed of its own,
then a fresh ten-way head, then fine-tuning on few images of all ten classes. Classes 5 to 9 (sandal, shirt, sneaker,
bag, boot) are new to the network. The checkpoint is kept in the user's cache. Without Fashion-MNIST on the machine
the same is done on scikit-learn's digits, and says so.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

from costmodel.graph import write_atomic
from costmodel.methods import apply_method
from costmodel.models._compat import require
from costmodel.runs import locked
from costmodel.tasks.data import Images, images
from costmodel.tasks.result import SEEDS, Budget, Progress, Scalar, TaskResult, cache_folder, key_of, widened
from costmodel.tasks.train import ImageTask, Recipe, Stage, accuracy, fit, run_arm, train_split, val_split

__all__ = ["ARMS", "SEEDS", "build", "grid", "run"]

SIZE, PATCH, DIM, DEPTH, HEADS = 32, 4, 96, 5, 3
OLD_CLASSES = (0, 1, 2, 3, 4)
_PRETRAIN_SEED = 20_000
_LRS = (1e-3, 4e-3, 1.6e-2)

ARMS: dict[Budget, tuple[str, ...]] = {
    "demo": ("full", "last_layer", "lora", "lbp_wht:order=4"),
    "quick": ("full", "last_layer", "last_stage", "lora", *(f"lbp_wht:order={o}" for o in (1, 2, 4, 8))),
    "full": (
        "full",
        "last_layer",
        "last_stage",
        "lora",
        *(f"lbp_wht:order={o}" for o in range(1, 9)),
        *(f"lbp_wht:order={o},stage=last" for o in range(1, 9)),
    ),
}
ARMS["wide"] = ARMS["full"]
RECIPES: dict[Budget, Recipe] = {
    "demo": Recipe(train=512, search_train=0, val=0, test=1000, epochs=3, batch=32, lrs=(2e-3,)),
    "quick": Recipe(train=1000, search_train=500, val=500, test=2000, epochs=3, batch=32, lrs=_LRS),
    "full": Recipe(train=3000, search_train=1500, val=2000, test=10_000, epochs=10, batch=32, lrs=_LRS),
}
PRETRAIN: dict[Budget, Recipe] = {
    "demo": Recipe(train=2000, search_train=0, val=500, test=0, epochs=1, batch=64, lrs=(1e-3,)),
    "quick": Recipe(train=20_000, search_train=0, val=1000, test=0, epochs=2, batch=64, lrs=(1e-3,)),
    "full": Recipe(train=27_000, search_train=0, val=1000, test=0, epochs=6, batch=64, lrs=(1e-3,)),
}


def grid(budget: Budget) -> list[tuple[str, int]]:
    """The points (arm, seed) of a budget, seed by seed, so that a run cut short has whole fronts."""
    return [(arm, seed) for seed in SEEDS[budget] for arm in ARMS[budget]]


def run(arm: str, *, seed: int, budget: Budget, progress: Progress | None = None) -> TaskResult:
    """Fine-tune by the arm and evaluate on the test split: accuracy, higher is better. Cached."""
    if budget == "wide":
        return widened(run(arm, seed=seed, budget="quick", progress=progress))
    return run_arm(_TASK, arm, seed, budget, images(), progress)


def build(arm: str, seed: int = 0, *, classes: int = 10) -> tuple[nn.Module, tuple[Tensor, ...], str]:
    """(model, inputs, mode) as `run` trains it: inputs are (32, 1, 32, 32) float32. The weights are drawn at random."""
    torch.manual_seed(seed)
    batch = RECIPES["quick"].batch
    return _adapt(_network(classes), arm, batch), _example(batch), "train"


def _example(batch: int) -> tuple[Tensor, ...]:
    return (torch.zeros(batch, 1, SIZE, SIZE),)


def _network(classes: int) -> nn.Module:
    """Pre-norm transformer of 5 layers of width 96, 64 tokens and no class token: the mean token is classified."""
    require("timm")
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=SIZE,
        patch_size=PATCH,
        in_chans=1,
        num_classes=classes,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        class_token=False,
        global_pool="avg",
    )
    return model


def _adapt(model: nn.Module, arm: str, batch: int) -> nn.Module:
    return apply_method(arm, model, _example(batch))


def _base(images: Images, _seed: int, budget: Budget) -> nn.Module:
    """The pretrained network with a fresh head for all classes."""
    fresh = torch.random.get_rng_state()  # pretraining or not, the head is drawn from the same numbers
    state, _ = _pretrained(images, budget)
    torch.random.set_rng_state(fresh)
    model: Any = _network(len(OLD_CLASSES))
    model.load_state_dict(state)
    model.reset_classifier(images.classes)
    return model


def _pretrained(images: Images, budget: Budget) -> tuple[dict[str, Tensor], float]:
    """Weights after pretraining on the old classes, and their accuracy there; trained once, kept in the cache."""
    recipe = PRETRAIN[budget]
    shape = (SIZE, PATCH, DIM, DEPTH, HEADS)
    key = key_of(version=1, data=images.digest, recipe=recipe.settings(), shape=shape, classes=OLD_CLASSES)
    file = cache_folder() / "checkpoints" / f"vit-{key}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file):  # another process may be at it
        if not file.is_file():
            torch.manual_seed(_PRETRAIN_SEED)
            model = _network(len(OLD_CLASSES))
            train = train_split(images, recipe.train, _PRETRAIN_SEED, OLD_CLASSES)
            fit(model, _stages(model), _prepare, train, recipe, recipe.lrs[0], _PRETRAIN_SEED)
            score = accuracy(model, _prepare, val_split(images, recipe.val, OLD_CLASSES))
            blob = io.BytesIO()
            torch.save({"weights": model.state_dict(), "accuracy": score}, blob)
            write_atomic(file, blob.getvalue())
    kept = torch.load(file, map_location="cpu", weights_only=True)
    return kept["weights"], kept["accuracy"]


def _stages(model: nn.Module) -> list[Stage]:
    """Patch embedding with positions, each block, norm and head."""
    m: Any = model
    if not hasattr(m, "patch_embed"):
        return [Stage(model, (model,))]

    def embed(x: Tensor) -> Tensor:
        return m.norm_pre(m.patch_drop(m._pos_embed(m.patch_embed(x))))

    def head(x: Tensor) -> Tensor:
        return m.forward_head(m.norm(x))

    return [
        Stage(embed, (m.patch_embed, m.pos_drop, m.patch_drop, m.norm_pre), (m.pos_embed,)),
        *(Stage(block, (block,)) for block in m.blocks),
        Stage(head, (m.norm, m.fc_norm, m.head_drop, m.head)),
    ]


def _prepare(x: Tensor) -> Tensor:
    """(n, 28, 28) uint8 to (n, 1, 32, 32), grey levels -1 to 1, two black pixels on each side."""
    return nn.functional.pad(x.unsqueeze(1).float() / 127.5 - 1.0, (2, 2, 2, 2), value=-1.0)


def _notes(images: Images, budget: Budget) -> dict[str, Scalar]:
    recipe = PRETRAIN[budget]
    classes = "-".join(str(c) for c in (OLD_CLASSES[0], OLD_CLASSES[-1]))
    return {
        "size": SIZE,
        "pretrained": f"by this task: classes {classes} of {images.name}, up to {recipe.train} images, "
        f"{recipe.epochs} epochs, batch {recipe.batch}, lr {recipe.lrs[0]:g}",
    }


_TASK = ImageTask(
    family="vit",
    version=1,
    model=f"timm ViT, width {DIM}, depth {DEPTH}, {HEADS} heads, patch {PATCH}, 10 classes, 1x32x32, batch 32",
    recipes=RECIPES,
    base=_base,
    adapt=_adapt,
    stages=_stages,
    prepare=_prepare,
    notes=_notes,
)
