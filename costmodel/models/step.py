"""One step of a model, as it is run: the same object is traced on fake tensors and timed on real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import CostmodelError, UnknownName

__all__ = ["MODES", "OPTIMIZERS", "Step", "as_call", "default_loss", "make_step"]

MODES = ("infer", "train", "prefill", "decode")
Loss = Callable[[Any, "Step"], Tensor]


def _sgd(params: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=1e-3)


def _momentum(params: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=1e-3, momentum=0.9)


def _adamw(params: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=1e-4)


OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adamw": _adamw,
}


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments from what people pass: a tensor, a tuple or list, or a dict.

    A pair ``(args, kwargs)`` of a tuple and a dict is taken as it is.
    """
    if isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
        return inputs
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def default_loss(output: Any, step: Step) -> Tensor:
    """The loss that people would use: the model's own, cross entropy on logits, else the mean square.

    Targets are data: they exist before the step, are made once and never traced.
    """
    own = getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own if own.dim() == 0 else own.mean()
    if isinstance(output, dict) and output and all(_is_float(t) and t.dim() == 0 for t in output.values()):
        return torch.stack(list(output.values())).sum()  # a detector in training: its losses by name
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, Tensor) and (output.dim() == 2 or step.reads_tokens):
        logits = output
    if isinstance(logits, Tensor) and logits.dim() >= 2:
        rows = logits.reshape(-1, logits.shape[-1]) if logits.dim() == 3 else logits
        # class index is dimension 1: (N, C) for classifiers and language models, (N, C, H, W) for segmentation
        target = step.constant("target", (rows.shape[0], *rows.shape[2:]))
        return nn.functional.cross_entropy(rows, target)
    floats = [t for t in pytree.tree_leaves(output) if _is_float(t) and t.requires_grad]
    if not floats:
        raise CostmodelError(
            "the model's output has no floating-point tensor that needs a gradient, so there is nothing to train on; "
            "pass loss=… or unfreeze a parameter"
        )
    total = floats[0].square().mean()
    for t in floats[1:]:
        total = total + t.square().mean()
    return total


@dataclass
class Step:
    """Model, inputs and what is done with them once.

    Attributes:
        model: the module, in the state (train or eval, frozen or not) in which it is run.
        args, kwargs: what the model is called with.
        mode: ``infer``, ``train``, ``prefill`` or ``decode``.
        optimizer: a torch optimizer in ``train``, else None.
        loss: output and step to a scalar, in ``train``.
        context: tokens in the cache before a ``decode`` step.
        accumulate: micro-batches, each the given inputs, whose gradients one ``train`` step adds up.
        keep_gradients: zero the gradients in place at the start of a step, instead of giving them back.
        pause: entered around what is data and not part of the step; capture sets it.
    """

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mode: str
    optimizer: torch.optim.Optimizer | None = None
    loss: Loss = default_loss
    pause: Callable[[], AbstractContextManager[Any]] = nullcontext
    context: int = 0
    accumulate: int = 1
    keep_gradients: bool = False
    constants: dict[str, Tensor] = field(default_factory=dict)

    @property
    def reads_tokens(self) -> bool:
        """Whether the first tensor is integer, as token ids are."""
        leaves = [t for t in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]
        return bool(leaves) and not leaves[0].is_floating_point()

    @property
    def batch(self) -> int:
        """Size of the first dimension of the first input tensor, images in a list of them; 1 if there is none."""
        first = next(iter(self.args), None)
        if isinstance(first, (list, tuple)) and first and all(isinstance(t, Tensor) and t.dim() == 3 for t in first):
            return len(first)
        for leaf in pytree.tree_leaves((self.args, self.kwargs)):
            if isinstance(leaf, Tensor) and leaf.dim():
                return int(leaf.shape[0])
        return 1

    def constant(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """An integer tensor of zeros that exists before the step: made at first use, outside the trace."""
        if name not in self.constants:
            with self.pause():
                self.constants[name] = torch.zeros(shape, dtype=torch.long)
        return self.constants[name]

    def forward(self) -> Any:
        """The model's output; in ``train`` the loss, a share of it if gradients are accumulated."""
        if self.optimizer is None:
            with torch.no_grad():
                return self.model(*self.args, **self.kwargs)
        loss = self.loss(self.model(*self.args, **self.kwargs), self)
        return loss / self.accumulate if self.accumulate > 1 else loss

    def clear(self) -> None:
        """Drop the gradients of the step before, or zero them in place."""
        assert self.optimizer is not None
        self.optimizer.zero_grad(set_to_none=not self.keep_gradients)

    def backward(self, loss: Tensor) -> None:
        """Gradients of every trained parameter."""
        loss.backward()

    def update(self) -> None:
        """One step of the optimizer."""
        assert self.optimizer is not None
        self.optimizer.step()

    def run(self) -> Any:
        """The whole step."""
        if self.optimizer is None:
            result = self.forward()
        else:
            self.clear()
            for _ in range(self.accumulate):
                result = self.forward()
                self.backward(result)
                result = result.detach()
            self.update()
        self.rewind()
        return result

    def rewind(self) -> None:
        """Put a growing cache back to where it was, so that every decode step reads the same context."""
        cache = self.kwargs.get("past_key_values")
        if self.mode == "decode" and cache is not None and hasattr(cache, "crop"):
            cache.crop(-1)  # transformers counts from the end: the one token of this step


def _cache_kwargs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], seq: int) -> dict[str, Any]:
    """Keyword arguments of one decode step after a context of `seq` tokens."""
    leaves = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and not t.is_floating_point()]
    if not leaves:
        raise CostmodelError("mode 'decode' needs a model that reads token ids (an integer input tensor)")
    token = leaves[0][:, :1]
    make_cache: Any = getattr(model, "init_cache", None)
    if make_cache is not None:  # our quantized and fused models: the state does not depend on the context
        return {"input_ids": token, "cache": make_cache(token.shape[0])}
    context = token.expand(token.shape[0], max(seq, 1)).contiguous()
    try:
        with torch.no_grad():
            output = model(input_ids=context, use_cache=True)
    except TypeError as error:
        raise CostmodelError(
            f"mode 'decode' calls the model as model(input_ids=…, use_cache=True), which {type(model).__name__} "
            f"does not take ({error}); pass the inputs of one step with its cache and mode='infer' instead"
        ) from error
    for name in ("cache_params", "past_key_values"):
        cache = getattr(output, name, None)
        if cache is not None:
            return {"input_ids": token, name: cache, "use_cache": True}
    raise CostmodelError(f"{type(model).__name__} returned no cache (cache_params or past_key_values) to decode with")


def make_step(
    model: nn.Module,
    inputs: Any,
    *,
    mode: str = "infer",
    optimizer: str | Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer] = "sgd",
    loss: Loss | None = None,
    seq: int | None = None,
    accumulate: int = 1,
    keep_gradients: bool = False,
) -> Step:
    """Put `model` into the state that `mode` needs and say what one step is.

    Args:
        model: any module; ``train`` puts it into training mode and leaves frozen parameters frozen.
        inputs: a tensor, a tuple, or a dict of keyword arguments.
        mode: ``infer`` (no_grad), ``train`` (forward, loss, backward, optimizer), ``prefill`` (as infer, with its
            cache), ``decode`` (one token after a context).
        optimizer: ``sgd``, ``momentum``, ``adamw``, or a function from parameters to an optimizer.
        loss: function of (output, step); `default_loss` otherwise.
        seq: tokens of context in ``decode``; the length of the given tokens otherwise.
        accumulate: micro-batches a step (``train`` only).
        keep_gradients: ``zero_grad(set_to_none=False)`` (``train`` only).
    """
    if mode not in MODES:
        raise UnknownName("mode", mode, MODES)
    if accumulate < 1:
        raise CostmodelError(f"accumulate must be at least 1 micro-batch, not {accumulate}")
    if mode != "train" and (accumulate > 1 or keep_gradients):
        raise CostmodelError(f"mode {mode!r} has no gradients to accumulate or keep; use mode 'train'")
    args, kwargs = as_call(inputs)
    if mode == "train":
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        if not trained:
            raise CostmodelError("no parameter of the model needs a gradient; mode 'train' has nothing to train")
        if isinstance(optimizer, str):
            if optimizer not in OPTIMIZERS:
                raise UnknownName("optimizer", optimizer, OPTIMIZERS)
            optimizer = OPTIMIZERS[optimizer]
        return Step(
            model,
            args,
            kwargs,
            mode,
            optimizer(iter(trained)),
            loss or default_loss,
            accumulate=accumulate,
            keep_gradients=keep_gradients,
        )
    model.eval()
    if mode == "prefill" and hasattr(getattr(model, "config", None), "use_cache"):
        kwargs = {**kwargs, "use_cache": True}
    if mode == "decode":
        tokens = next((t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)), None)
        context = seq or (int(tokens.shape[-1]) if tokens is not None and tokens.dim() else 1)
        kwargs, args = _cache_kwargs(model, args, kwargs, context), ()
        return Step(model, args, kwargs, mode, context=context)
    return Step(model, args, kwargs, mode)
