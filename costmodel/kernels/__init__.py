"""The real kernels, as torch custom ops in the namespace ``costmodel``: one file each, forward, fake and backward.

An op is defined with `register`, which is the cheapest of the forms that trace as **one** node with exact shapes
under `FakeTensorMode`, `torch.export` and `torch.compile`. A backward is an op of its own, registered the same way,
so that it is one node too. What an op does inside (torch calls, numba calls) is not seen by a dispatch mode.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

__all__ = ["NAMESPACE", "Weights", "register", "register_all"]

NAMESPACE = "costmodel"
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # must outlive the ops


def register(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    direct: bool = False,
) -> Any:
    """Define, implement and return the op ``costmodel::name``, to be called with positional arguments.

    Args:
        schema: ``name(Tensor x, int n) -> Tensor`` in torch's own notation.
        run: the op on real tensors; never called with fake ones. It must not return a view of an input.
        fake: the same signature, on fake tensors: allocates outputs of the right shape and dtype, computes nothing.
        backward: ``(ctx, *grads) -> grads of the inputs``; should call another registered op.
        setup_context: ``(ctx, inputs, output)``, saves what `backward` needs; plain Python numbers go on ``ctx``.
        direct: return a function that calls `run` itself where nothing watches the dispatcher, which costs more
            than a small kernel (9 µs, 15 with a gradient); the op is its attribute ``op``.
    """
    name = f"{NAMESPACE}::{schema[: schema.index('(')].strip()}"
    _LIBRARY.define(schema, tags=(torch.Tag.needs_contiguous_strides,))
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=_LIBRARY)
    op = getattr(torch.ops.costmodel, name.split("::")[1]).default

    def below_autograd(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    if backward is not None:
        function = _function(op, below_autograd, backward, setup_context)
        _LIBRARY.impl(name, _differentiable(function.apply, below_autograd), "Autograd")
    if not direct:
        return op
    grown = op if backward is None else _function(op, run, backward, setup_context).apply
    return _direct(op, run, grown)


def _function(
    op: Any, forward: Callable[..., Any], backward: Callable[..., Any], setup_context: Callable[..., None] | None
) -> Any:
    """`torch.autograd.Function` of an op: what `torch.library.register_autograd` makes, without its search of a pytree.

    That search costs 10 µs a call, as much as a small kernel; our arguments are tensors and plain values only.
    """

    def run(ctx: Any, *args: Any) -> Any:
        output = forward(*args)
        if setup_context is not None:
            setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(run), "backward": staticmethod(backward)}
    return type(f"{op._schema.name.split('::')[1]}_autograd", (torch.autograd.Function,), members)


def _differentiable(grown: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """`grown` where a gradient will be wanted, else `plain`."""

    def kernel(*args: Any) -> Any:
        if torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, torch.Tensor) and arg.requires_grad:
                    return grown(*args)
        return plain(*args)

    return kernel


class Weights(list[Tensor]):
    """Tensors that an op takes as a list, and their addresses, which are asked for once."""

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        return tuple([t.data_ptr() for t in self])

    def __reduce__(self) -> tuple[type[Weights], tuple[list[Tensor]]]:
        return Weights, (list(self),)  # a copy's tensors lie elsewhere: the addresses are not copied


_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter))
_VALUES = frozenset((bool, float, int, str, list, tuple, Weights, type(None)))
# What may watch the dispatcher: dispatch and function modes, transforms (vmap, grad), torch.jit's tracer, a profiler.
_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._is_torch_function_mode_enabled
_transforms, _tracer = torch._C._functorch.peek_interpreter_stack, torch._C._get_tracing_state
_profiler, _compiler = torch._C._autograd._profiler_enabled, torch.compiler.is_compiling
_functional, _grad_mode = torch._is_functional_tensor, torch.is_grad_enabled


def _direct(op: Any, run: Callable[..., Any], grown: Callable[..., Any]) -> Callable[..., Any]:
    """What `op` runs, with a gradient (`grown`) or without (`run`); through the dispatcher only if somebody watches."""

    def call(*args: Any) -> Any:
        watched = _compiler() or _modes() or _function_modes() or _profiler()
        if watched or _transforms() is not None or _tracer() is not None:
            return op(*args)
        wanted, grad_mode = False, _grad_mode()
        for arg in args:
            kind = type(arg)
            if kind in _TENSORS:
                if _functional(arg):
                    return op(*args)
                wanted = wanted or (grad_mode and arg.requires_grad)
            elif kind not in _VALUES:  # a tensor of a subclass
                return op(*args)
        return grown(*args) if wanted else run(*args)

    call.op, call.name = op, op.name  # type: ignore[attr-defined]
    return call


def register_all() -> None:
    """Import every file of this folder, so that a saved program finds all ops (`torch.export.load`)."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
