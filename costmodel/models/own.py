"""Models of our own by bare name: a file of this folder with a ``MODELS`` dict, found by looking."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NoReturn

from torch import nn

from .. import models
from ..errors import CostmodelError
from .inputs import Loaded, Wanted, image, make_on, refuse, token_ids, unknown

__all__ = ["Own", "build", "names"]


@dataclass(frozen=True)
class Own:
    """A definition of our own.

    Attributes:
        build: keyword settings to a module.
        input_size: of one sample, such as (3, 224, 224); empty if it reads token ids.
        vocab: number of token ids that it reads; 0 if it reads images or vectors.
        seq: tokens if none are asked for.
    """

    build: Callable[..., nn.Module]
    input_size: tuple[int, ...] = (3, 224, 224)
    vocab: int = 0
    seq: int = 128


def names() -> list[str]:
    """Bare names that `costmodel.load_model` takes."""
    return sorted(_models())


def build(name: str, options: dict[str, Any], wanted: Wanted) -> Loaded:
    """The model of our own called `name`; an unknown one lists names of every kind that look alike."""
    own = _models().get(name)
    if own is None:
        _no_such_model(name)
    if not own.vocab:
        refuse(name, wanted, seq="reads no tokens", cache="reads no tokens")
    else:
        refuse(name, wanted, input_size="reads tokens")
    try:
        model = make_on(wanted.device, partial(own.build, **options))
    except TypeError as error:
        takes = ", ".join(inspect.signature(own.build).parameters) or "no settings"
        raise CostmodelError(f"{name} takes {takes}; given {options}: {error}") from error
    version = f"costmodel.models.{inspect.unwrap(own.build).__module__.rpartition('.')[2]}"
    if own.vocab:
        ids = token_ids(wanted, own.vocab, wanted.seq or own.seq)
        return Loaded(name, model, (), {"input_ids": ids}, "text", version)
    size = wanted.input_size or own.input_size
    if len(size) != len(own.input_size):
        raise CostmodelError(f"{name} takes inputs like {'x'.join(map(str, own.input_size))}")
    task = "image" if len(size) == 3 else "other"
    return Loaded(name, model, (image(wanted, *size),), {}, task, version)


@cache
def _models() -> dict[str, Own]:
    """Every entry of every ``MODELS`` dict in this folder.

    A file without one counts too if it has a function of its own name: ``mobilenet_v3_small.py`` with
    ``mobilenet_v3_small()`` is ``mobilenet-v3-small``, at 3x224x224.
    """
    found: dict[str, Own] = {}
    for info in iter_modules(models.__path__):
        if info.name == __name__.rpartition(".")[2]:
            continue
        module = import_module(f"{models.__name__}.{info.name}")
        entries = getattr(module, "MODELS", None)
        if entries is None:
            function = getattr(module, info.name, None)
            entries = {info.name.replace("_", "-"): Own(function)} if callable(function) else {}
        for name, own in entries.items():
            if name in found:
                raise AssertionError(f"two files define the model {name!r}")
            found[name] = own
    return found


def _no_such_model(name: str) -> NoReturn:
    """Near names of every kind, with their prefix: people forget ``timm:`` more often than they mistype."""
    from .load import FAMILIES, available

    listed = available()
    known = [n if family == "own" else f"{family}:{n}" for family in FAMILIES for n in listed[family]]
    same = [n for n in known if n.partition(":")[2] == name]
    if same:
        raise CostmodelError(f"no model of our own is named {name!r}; did you mean {' or '.join(same)}?")
    unknown("model", name, known, "")
