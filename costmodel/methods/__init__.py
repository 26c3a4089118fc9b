"""Training and quantization methods: `apply_method("lbp_wht:order=4,padding=zero", model, inputs)`.

A method is a file of this folder with a function ``apply(model, inputs, *, option: type = default, …)``: its name is
the method's, its docstring describes it, its keyword-only arguments are the options, typed and with defaults. An
option is an int, a float, a bool (bare ``name`` is true), a `Literal`, a ``tuple[str, ...]`` (joined by ``+``) or a
``tuple[int, int]`` (``HxW``), any of them ``| None``.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

from ..errors import CostmodelError, UnknownName

__all__ = ["Method", "Option", "apply_method", "methods", "parse_spec"]


@dataclass(frozen=True)
class Option:
    """One ``key=value`` of a method: its annotation and default, as the function declares them."""

    name: str
    annotation: Any
    default: Any

    @property
    def allowed(self) -> str:
        """What may be written after ``=``, in words."""
        return " or ".join(_describe(kind) for kind in _alternatives(self.annotation))


@dataclass(frozen=True)
class Method:
    """A method that `apply_method` knows."""

    name: str
    description: str
    options: Mapping[str, Option]
    apply: Callable[..., nn.Module]


@cache
def methods() -> dict[str, Method]:
    """Every method by name, read from the files of this folder."""
    found = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
        module = importlib.import_module(f"{__name__}.{info.name}")
        function = getattr(module, "apply", None)
        if function is None or function.__module__ != module.__name__:
            continue
        hints = get_type_hints(function)
        options = {
            p.name: Option(p.name, hints[p.name], p.default)
            for p in inspect.signature(function).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }
        first_line = (module.__doc__ or "").strip().split("\n")[0]
        found[info.name] = Method(info.name, first_line, types.MappingProxyType(options), function)
    return found


def apply_method(spec: str, model: nn.Module, inputs: Any) -> nn.Module:
    """A copy of `model` that trains or runs by the method; the model that was given is left as it is.

    Args:
        spec: ``name`` or ``name:key=value,…``; lists are joined by ``+``, grids are ``HxW``.
        model: any module; for the training methods its parameters may be on the meta device.
        inputs: what the model is called with: a tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        UnknownName: no such method or option.
        CostmodelError: a value that is not allowed, or a model that the method cannot work on.

    >>> import torch
    >>> tuned = apply_method("last_layer", nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4)), torch.ones(1, 2))
    >>> tuned[0].weight.requires_grad, tuned[1].weight.requires_grad
    (False, True)
    """
    method, options = parse_spec(spec)
    return method.apply(copy.deepcopy(model), inputs, **options)


def parse_spec(spec: str) -> tuple[Method, dict[str, Any]]:
    """The method and the checked values of its options.

    >>> method, options = parse_spec("lbp_wht:order=4,padding=reflect,grid=7x9")
    >>> method.name, options
    ('lbp_wht', {'order': 4, 'padding': 'reflect', 'grid': (7, 9)})
    """
    name, _, tail = spec.partition(":")
    known = methods()
    if name not in known:
        raise UnknownName("method", name, known)
    method, options = known[name], {}
    for item in filter(None, tail.split(",")):
        key, equals, text = item.partition("=")
        if key not in method.options:
            raise UnknownName(f"option of method {name}", key, method.options)
        if key in options:
            raise CostmodelError(f"{name}: {key} is given twice")
        options[key] = _value(name, method.options[key], text if equals else None)
    return method, options


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if union else (annotation,)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "HxW" if get_args(kind) == (int, int) else "names joined by +"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a name", type(None): "none"}
    return words[kind]


def _value(method: str, option: Option, text: str | None) -> Any:
    for kind in _alternatives(option.annotation):
        try:
            return _parse(kind, text)
        except ValueError:
            continue
    given = f"{option.name}={text}" if text is not None else f"{option.name} without a value"
    raise CostmodelError(f"{method}: {given}; {option.name} is {option.allowed}")


def _parse(kind: Any, text: str | None) -> Any:
    """The text as a value of the kind; `ValueError` where it is none."""
    if text is None:
        text = "true" if kind is bool else ""
    if get_origin(kind) is Literal:
        return {str(value): value for value in get_args(kind)}[text] if text in map(str, get_args(kind)) else _no()
    if get_args(kind) == (int, int):
        height, width = text.split("x")
        return int(height), int(width)
    if get_origin(kind) is tuple:
        return tuple(text.split("+")) if text and all(text.split("+")) else _no()
    if kind is bool:
        return {"true": True, "false": False}[text] if text in ("true", "false") else _no()
    if kind is type(None):
        return None if text == "none" else _no()
    return kind(text) if text else _no()


def _no() -> Any:
    raise ValueError
