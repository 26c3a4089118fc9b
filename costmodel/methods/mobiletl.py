"""MobileTL: the last inverted residual blocks train with one-bit activations, shift-only norms (arXiv 2212.03246)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import CostmodelError
from ..kernels.mobiletl import se_scale, shift_norm, shift_norm_act, signed_act, train_norm
from .structure import freeze_before, replace, train_all

__all__ = ["KeptNorm", "OneBit", "ShiftNorm", "SqueezeExcite", "apply", "inverted_residuals"]

_BLOCKS = ("InvertedResidual", "DepthwiseSeparableConv")
_ACTIVATIONS: dict[type[nn.Module], str] = {nn.Hardswish: "hardswish", nn.ReLU6: "relu6", nn.ReLU: "relu"}
# (reduce, activation, expand, gate) of the squeeze-and-excitation modules of timm and torchvision
_EXCITE = (("conv_reduce", "act1", "conv_expand", "gate"), ("fc1", "activation", "fc2", "scale_activation"))


class ShiftNorm(nn.Module):
    """A batch norm whose statistics and γ are frozen, with the activation that follows it, if any.

    Parameters and buffers are those of the norm that it replaces, under the same names; `train()` does not change
    it. Only β can train; its backward keeps one bit an element of the activation and nothing of the norm.
    """

    def __init__(self, norm: nn.BatchNorm2d, act: str, exact: bool, then: nn.Module | None = None) -> None:
        super().__init__()
        self.weight, self.bias, self.then = norm.weight.requires_grad_(False), norm.bias, then
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.eps, self.act, self.exact = norm.eps, act, exact

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        args = (self.weight, self.bias, self.running_mean, self.running_var, self.eps)
        if self.act:
            keep = torch.is_grad_enabled() and (x.requires_grad or self.bias.requires_grad)
            y: Tensor = shift_norm_act(x.contiguous(), *args, self.act, keep, self.exact)[0]
        else:
            y = shift_norm(x.contiguous(), *args)
        return y if self.then is None else self.then(y)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, act={self.act or 'none'}, exact={self.exact}"


class KeptNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, and the activation that timm's norms hold, that keeps its input and no statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape; batch statistics in training, running ones otherwise."""
        y = self._train(x.contiguous()) if self.training and torch.is_grad_enabled() else super().forward(x)
        act = getattr(self, "act", None)
        return y if act is None else act(y)

    def _train(self, x: Tensor) -> Tensor:
        y, mean, var = train_norm(x, self.weight, self.bias, self.eps)
        count, averages = self.num_batches_tracked, (self.running_mean, self.running_var)
        with torch.no_grad():
            if count is not None:
                count.add_(1)
            momentum = 1 / float(count) if self.momentum is None and count is not None else self.momentum or 0.0
            for running, batch in zip(averages, (mean, var)):
                if running is not None:
                    running.mul_(1 - momentum).add_(batch, alpha=momentum)
        out: Tensor = y
        return out


class OneBit(nn.Module):
    """An activation that keeps one bit an element (where no norm stands before it to fuse with)."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.act = act

    def forward(self, a: Tensor) -> Tensor:
        """Any shape to the same shape."""
        y: Tensor = signed_act(a.contiguous(), self.act, torch.is_grad_enabled() and a.requires_grad)[0]
        return y

    def extra_repr(self) -> str:
        return self.act


class SqueezeExcite(nn.Module):
    """x·hardsigmoid(expand(relu(reduce(mean x)))): keeps its input map and the inputs of its small layers only.

    The two convolutions keep the names that they have in the module that this one replaces.
    """

    def __init__(self, module: nn.Module, names: tuple[str, str, str, str]) -> None:
        super().__init__()
        self.reduce, activation, self.expand, _ = names
        self.add_module(self.reduce, module.get_submodule(self.reduce))
        self.act = module.get_submodule(activation)
        self.add_module(self.expand, module.get_submodule(self.expand))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        squeezed = self.get_submodule(self.reduce)(x.mean((2, 3), keepdim=True))
        y: Tensor = se_scale(x.contiguous(), self.get_submodule(self.expand)(self.act(squeezed)))
        return y


def apply(
    model: nn.Module,
    inputs: Any,  # noqa: ARG001  # every method takes the inputs
    *,
    blocks: int | Literal["all"] = 3,
    exact: bool = False,
) -> nn.Module:
    """Freeze all before the last inverted residual blocks and train those, and what follows, the MobileTL way.

    In a trained block the inner norms train β only and the activations keep one bit an element; the norm after
    the projection trains as usual. All that is frozen stays in eval mode whatever `train()` says. The state dict is
    that of the unmodified model. Modifies the model in place and returns it.

    Args:
        model: MobileNetV2, MobileNetV3, MnasNet, FBNet, ProxylessNAS, EfficientNet-Lite of timm or torchvision, or
            any model of modules called InvertedResidual or DepthwiseSeparableConv.
        inputs: example inputs (not used).
        blocks: how many of the last blocks train, or all (then what precedes them trains as well).
        exact: a forward bit-identical to the unmodified model in eval mode, instead of fused norms (within 1e-5).
    """
    names = inverted_residuals(model)
    count = len(names) if blocks == "all" else blocks
    if not 1 <= count <= len(names):
        raise CostmodelError(f"mobiletl: blocks={blocks}; {type(model).__name__} has 1 to {len(names)} of them, or all")
    trained = names[len(names) - count :]
    for name in trained:
        _check_activations(model, name)
    if blocks == "all":
        train_all(model)
    else:
        freeze_before(model, trained[0])
    inner = {norm for name in trained for norm in _norms(model, name)[:-1]}
    for name in _norms(model, ""):
        norm: Any = model.get_submodule(name)
        if norm.weight.requires_grad and name not in inner:
            _keep_input(model, name)
        else:
            _shift_only(model, name, exact)
    for name in trained:
        _save_bits(model, name)
    return model


def inverted_residuals(model: nn.Module) -> list[str]:
    """Names of the inverted residual blocks (the ones without expansion too), in the order of the network."""
    found = [name for name, module in model.named_modules() if type(module).__name__.endswith(_BLOCKS)]
    if not found:
        raise CostmodelError(
            f"mobiletl: {type(model).__name__} has no inverted residual blocks (modules called {' or '.join(_BLOCKS)})"
        )
    return found


def _norms(model: nn.Module, inside: str) -> list[str]:
    found = model.get_submodule(inside).named_modules(prefix=inside)
    return [name for name, module in found if isinstance(module, nn.BatchNorm2d)]


def _activations(model: nn.Module, block: str) -> Iterator[tuple[str, nn.Module]]:
    """Activations on maps: those of a squeeze-and-excitation act on vectors, its gate and its ReLU stay exact."""
    squeeze = tuple(f"{n}." for n, m in model.named_modules() if type(m).__name__.startswith("Squeeze"))
    for name, module in model.get_submodule(block).named_modules(prefix=block):
        if type(module).__module__ == "torch.nn.modules.activation" and not name.startswith(squeeze):
            yield name, module


def _check_activations(model: nn.Module, block: str) -> None:
    for name, module in _activations(model, block):
        if type(module) not in _ACTIVATIONS:
            known = ", ".join(kind.__name__ for kind in _ACTIVATIONS)
            raise CostmodelError(f"mobiletl: {name} is a {type(module).__name__}; a trained block may have {known}")


def _keep_input(model: nn.Module, name: str) -> None:
    twin = KeptNorm.__new__(KeptNorm)
    twin.__dict__ = model.get_submodule(name).__dict__
    replace(model, name, twin)


def _shift_only(model: nn.Module, name: str, exact: bool) -> None:
    """Replace a norm; the activation after it, in the norm itself (timm) or its next sibling, is fused into it."""
    norm: Any = model.get_submodule(name)
    own = getattr(norm, "act", None)
    follower = _next_sibling(model, name) if own is None else ""
    act = own if own is not None else model.get_submodule(follower) if follower else None
    kind = _ACTIVATIONS.get(type(act), "") if act is not None else ""
    if kind and follower:
        replace(model, follower, nn.Identity())
    left = own if not kind and not isinstance(own, nn.Identity) else None
    replace(model, name, ShiftNorm(norm, kind, exact, left))


def _next_sibling(model: nn.Module, name: str) -> str:
    parent, _, child = name.rpartition(".")
    names = [sibling for sibling, _ in model.get_submodule(parent).named_children()]
    after = names[names.index(child) + 1 :]
    return f"{parent}.{after[0]}".lstrip(".") if after else ""


def _save_bits(model: nn.Module, block: str) -> None:
    """What is left of a trained block: activations that follow no norm, and the product of squeeze-excitation."""
    for name, module in list(_activations(model, block)):
        replace(model, name, OneBit(_ACTIVATIONS[type(module)]))
    for name, module in list(model.get_submodule(block).named_modules(prefix=block)):
        children = dict(module.named_children())
        for names in _EXCITE:
            if all(n in children for n in names) and isinstance(children[names[-1]], nn.Hardsigmoid):
                replace(model, name, SqueezeExcite(module, names))
