"""What methods need to know of a model: which layers run on which shapes, its stages, its head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch._guards import detect_fake_mode

from ..errors import CostmodelError

__all__ = [
    "freeze_before",
    "head",
    "input_shapes",
    "is_pointwise",
    "last_stage",
    "replace",
    "run",
    "train_all",
    "train_only",
]

_MATMULS = (nn.Linear, nn.Conv2d)


def run(model: nn.Module, inputs: Any) -> Any:
    """Call the model with a tensor, a tuple of positional arguments or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def input_shapes(model: nn.Module, inputs: Any, kinds: tuple[type[nn.Module], ...]) -> dict[str, tuple[int, ...]]:
    """Shape of the input of each module of `kinds`, in the order of their first call: one forward in eval mode.

    Modules that a model holds but never calls (as `nn.MultiheadAttention` its projection) are not in it. Where the
    parameters are fake, so must the inputs be, and the forward is fake.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            shapes.setdefault(name, tuple(args[0].shape))

        return hook

    handles = [m.register_forward_pre_hook(note(n)) for n, m in model.named_modules() if isinstance(m, kinds)]
    modes = {m: m.training for m in model.modules()}
    fake = detect_fake_mode(list(model.parameters()))
    model.eval()
    try:
        with torch.no_grad(), fake or torch.no_grad():
            run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return shapes


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether a convolution is a linear layer at each position: 1×1, stride 1, one group, no padding."""
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a path inside the model."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def train_all(model: nn.Module, train: bool = True) -> None:
    """Let every floating-point parameter train, or none."""
    for parameter in model.parameters():
        parameter.requires_grad_(train and parameter.is_floating_point())


def train_only(model: nn.Module, names: set[str]) -> None:
    """Freeze all but the parameters of these names."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def head(model: nn.Module, inputs: Any) -> str:
    """Name of the layer that runs last (linear or convolution): the classifier."""
    names = list(input_shapes(model, inputs, _MATMULS))
    if not names:
        raise CostmodelError(f"{type(model).__name__} has no linear layer or convolution to train last")
    return names[-1]


def last_stage(model: nn.Module) -> str:
    """Name of the module at which the last stage begins.

    The stages are the children of the container with the most modules. A list of more than eight (the blocks of a
    ViT, the `features` of a torchvision MobileNet) is flat: it has no stages, and its last quarter stands for one.
    """
    containers = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(list(_with_parameters(module))) > 1
    ]
    if not containers:
        raise CostmodelError(f"{type(model).__name__} has no list of stages or blocks: use last_layer")
    name, container = max(containers, key=lambda item: sum(1 for _ in item[1].modules()))
    children = list(_with_parameters(container))
    first = len(children) - max(1, len(children) // 4) if len(children) > 8 else len(children) - 1
    return f"{name}.{children[first]}".lstrip(".")


def _with_parameters(container: nn.Module) -> Iterator[str]:
    return (name for name, child in container.named_children() if any(True for _ in child.parameters()))


def freeze_before(model: nn.Module, name: str) -> None:
    """Freeze every parameter that is registered before the module `name`; what follows trains."""
    reached = False
    for parameter_name, parameter in model.named_parameters():
        reached = reached or parameter_name.startswith(f"{name}.")
        parameter.requires_grad_(reached and parameter.is_floating_point())
