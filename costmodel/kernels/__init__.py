"""The real kernels, as torch custom ops in the namespace ``costmodel``: one file each, forward, fake and backward.

An op is defined with `register`, which is the cheapest of the forms that trace as **one** node with exact shapes
under `FakeTensorMode`, `torch.export` and `torch.compile`. A backward is an op of its own, registered the same way,
so that it is one node too. What an op does inside (torch calls, numba calls) is not seen by a dispatch mode.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["NAMESPACE", "register", "register_all"]

NAMESPACE = "costmodel"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # must outlive the ops


def register(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Any:
    """Define, implement and return the op ``costmodel::name``, to be called with positional arguments.

    Args:
        schema: ``name(Tensor x, int n) -> Tensor`` in torch's own notation.
        run: the op on real tensors; never called with fake ones. It must not return a view of an input.
        fake: the same signature, on fake tensors: allocates outputs of the right shape and dtype, computes nothing.
        backward: ``(ctx, *grads) -> grads of the inputs``; should call another registered op.
        setup_context: ``(ctx, inputs, output)``, saves what `backward` needs; plain Python numbers go on ``ctx``.
    """
    name = f"{NAMESPACE}::{schema[: schema.index('(')].strip()}"
    _LIBRARY.define(schema, tags=(torch.Tag.needs_contiguous_strides,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    op = getattr(torch.ops.costmodel, name.split("::")[1]).default
    if backward is not None:
        _LIBRARY.impl(name, _differentiable(op, backward, setup_context), "Autograd")
    return op


def _differentiable(
    op: Any, backward: Callable[..., Any], setup_context: Callable[..., None] | None
) -> Callable[..., Any]:
    """The op's kernel for autograd: what `torch.library.register_autograd` makes, without its search of a pytree.

    That search costs 10 µs a call, as much as a small kernel; our arguments are tensors and plain values only.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"{op._schema.name.split('::')[1]}_autograd", (torch.autograd.Function,), members)

    def kernel(*args: Any) -> Any:
        if torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, torch.Tensor) and arg.requires_grad:
                    return function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return kernel


def register_all() -> None:
    """Import every file of this folder, so that a saved program finds all ops (`torch.export.load`)."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
