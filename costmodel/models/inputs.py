"""What the user asked for, and example inputs of that size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import CostmodelError, UnknownName, near_names
from .step import MODES

__all__ = ["DTYPES", "Loaded", "Wanted", "image", "make_on", "parse_size", "refuse", "token_ids", "unknown"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
DEVICES = ("cpu", "meta")


@dataclass(frozen=True)
class Loaded:
    """A model and what to call it with.

    Attributes:
        name: the spec that it was loaded by.
        model: the module, in training mode for ``train`` and evaluation mode otherwise.
        args, kwargs: example inputs; ``model(*args, **kwargs)`` runs.
        task: ``image``, ``text`` or ``other``: what the first input is.
        source: where the definition comes from, with its version, such as ``timm 1.0.31``.
        assumed: what the example inputs leave out of what the model takes, to be said beside what it costs.
    """

    name: str
    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    task: str
    source: str
    assumed: str = ""

    @property
    def inputs(self) -> Any:
        """The example inputs in the form that `costmodel.capture` takes: keyword arguments if there are any."""
        if self.args and self.kwargs:
            return self.args, self.kwargs
        return self.kwargs if self.kwargs else self.args


@dataclass(frozen=True)
class Wanted:
    """The settings of one `load_model` call, checked.

    Attributes:
        mode: ``infer``, ``train``, ``prefill`` or ``decode``.
        batch: samples in the example inputs.
        input_size: C, H, W (or what the model takes) without the batch; None: the model's own.
        seq: tokens; None: the model's own.
        dtype: of parameters, buffers and inputs that are floating point.
        device: ``cpu``, or ``meta`` for shapes without memory.
        input_device: the same for the inputs: on ``cpu`` they have values, which may decide what runs.
    """

    mode: str = "infer"
    batch: int = 1
    input_size: tuple[int, ...] | None = None
    seq: int | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    input_device: str = "cpu"

    @classmethod
    def of(
        cls,
        mode: str,
        batch: int,
        input_size: str | None,
        seq: int | None,
        dtype: str,
        device: str,
        input_device: str | None = None,
    ) -> Wanted:
        """Check what the command line gives; raises with what is allowed."""
        if mode not in MODES:
            raise UnknownName("mode", mode, MODES)
        if dtype not in DTYPES:
            raise UnknownName("dtype", dtype, DTYPES, hint="(int8 and int4 are methods: --method quamba)")
        for place in (device, input_device or device):
            if place not in DEVICES:
                raise UnknownName("place to build a model", place, DEVICES)
        for name, value in (("batch", batch), ("seq", seq)):
            if value is not None and value < 1:
                raise CostmodelError(f"{name} must be at least 1, not {value}")
        size = None if input_size is None else parse_size(input_size)
        return cls(mode, batch, size, seq, DTYPES[dtype], device, input_device or device)


def parse_size(text: str) -> tuple[int, ...]:
    """``3x224x224`` to ``(3, 224, 224)``.

    >>> parse_size("3x16x112x112")
    (3, 16, 112, 112)
    """
    parts = text.lower().split("x")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise CostmodelError(f"input size {text!r} is not like 3x224x224 (channels x height x width, no batch)")
    return tuple(int(part) for part in parts)


def image(wanted: Wanted, *size: int) -> Tensor:
    """Normal noise of shape [batch, *size], float32 (`load_model` converts it)."""
    return torch.randn(wanted.batch, *size, device=wanted.input_device)


def token_ids(wanted: Wanted, vocab: int, seq: int) -> Tensor:
    """Uniform token ids, int64 [batch, seq]; [batch, 1] in ``decode``, where a step reads one token."""
    length = 1 if wanted.mode == "decode" else seq
    return torch.randint(vocab, (wanted.batch, length), device=wanted.input_device)


_MOST_REAL = 1 << 16  # elements up to which a tensor that a constructor fills has its values on ``meta`` too
_EMPTY = (torch.empty, torch.empty_strided, torch.rand, torch.randn)
_FILLED = (torch.zeros, torch.ones, torch.full, torch.eye)
# What initialisers do in place: nothing to a tensor without memory, but a third of the time of making it in Python
_INITIALISED = frozenset(
    getattr(Tensor, name) for name in ("add_", "clamp_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_")
)


class _Weightless(TorchFunctionMode):
    """What a constructor leaves to be initialised has no memory; the small tables that it fills keep their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _EMPTY and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        elif func in _FILLED and kwargs.get("device") is None:
            made: Tensor = func(*args, **{**kwargs, "device": "meta"})
            if made.numel() > _MOST_REAL:
                return made
        elif func in _INITIALISED or getattr(func, "__module__", "") == "torch.nn.init":
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, Tensor) and filled.is_meta:
                return filled
        return func(*args, **kwargs)


def make_on(device: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Call `make` so that its parameters are on `device`.

    On ``meta`` the small tensors that a constructor fills with values keep them: strides, position tables and
    schedules decide what runs. Constructors that mix them with weights are called wholly on ``meta``, and those that
    read a value of a weight in memory, which is then dropped.
    """
    if device == "meta":
        try:
            with _Weightless():
                return make()
        except (RuntimeError, NotImplementedError):
            pass
        try:
            with torch.device("meta"):
                return make()
        except (RuntimeError, NotImplementedError):
            return make().to("meta")
    return make()


def refuse(spec: str, wanted: Wanted, **not_taken: str) -> None:
    """Raise if `wanted` sets something that this model does not have: it would be ignored in silence.

    Args:
        not_taken: attribute of `wanted` to the reason, such as ``seq="reads images"``; ``cache=`` refuses the modes
            that need a cache.
    """
    for name, why in not_taken.items():
        if name == "cache" and wanted.mode in {"prefill", "decode"}:
            raise CostmodelError(f"{spec} {why}; mode {wanted.mode!r} needs a causal model with a cache: use 'infer'")
        if name != "cache" and getattr(wanted, name) is not None:
            option = "--" + name.replace("_", "-")
            raise CostmodelError(f"{spec} {why}: leave {option} out")


def unknown(what: str, given: str, names: Iterable[str], family: str) -> NoReturn:
    """Raise `UnknownName` with the near names, and no more than a handful if none is near."""
    known = list(names)
    near = near_names(given, known) or known[:8]
    hint = f"({len(known)} in all: {f'costmodel models {family}'.rstrip()})" if len(known) > len(near) else ""
    raise UnknownName(what, given, near, hint=hint)
