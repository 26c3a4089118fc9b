"""From the name of a model to the module and its example inputs."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import CostmodelError, MissingExtra, UnknownName
from .inputs import Loaded, Wanted, unknown

__all__ = ["FAMILIES", "architectures", "available", "load_model"]

# A family is a file of this folder with `build(name, options, wanted)` and `names()`.
FAMILIES = {"transformers": "transformers_zoo", "timm": "timm_zoo", "torchvision": "torchvision_zoo", "own": "own"}
# Where a library's every architecture is listed, with `names()` and `family_of(name)`.
REGISTERS = {"timm": "timm_zoo", "torchvision": "torchvision_zoo", "transformers": "transformers_classes"}


def load_model(
    spec: str,
    *,
    mode: str = "infer",
    batch: int = 1,
    input_size: str | None = None,
    seq: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    device: str = "cpu",
    input_device: str | None = None,
) -> Loaded:
    """The model that `spec` names, with random weights, and inputs to call it with.

    Args:
        spec: ``transformers:NAME``, ``timm:NAME``, ``torchvision:NAME``, ``path/file.py:function``, ``program.pt2``,
            ``model.onnx``,
            a checkpoint folder as ``transformers:/path``, or the bare name of a model of our own. Settings of the
            constructor follow after commas: ``timm:mobilenetv2_100,num_classes=10``.
        mode: ``infer``, ``train``, ``prefill`` or ``decode``; ``decode`` makes inputs of one token.
        batch: samples.
        input_size: ``3x224x224`` (no batch); the model's own if None.
        seq: tokens; the model's own if None.
        dtype: float32, float16, bfloat16 or float64, of the model and of its floating-point inputs.
        seed: of weights and inputs; the global generator is left as it was.
        device: ``cpu``, or ``meta``: shapes and dtypes, no memory and no values.
        input_device: the same for the inputs; where the model is if None.

    Raises:
        UnknownName: no such model, setting, mode or dtype; names what is near.
        MissingExtra: the library is not installed; says the pip command.
        FileError: a file that cannot be used; says which and why.
        CostmodelError: a setting that this model does not have.
    """
    wanted = Wanted.of(mode, batch, input_size, seq, dtype, device, input_device)
    build, name, options = _door(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            loaded: Loaded = build(name, options, wanted)
        except (RuntimeError, MemoryError) as error:  # sizes that no memory holds, or that no layer takes
            said = next((line for line in str(error).splitlines() if line.strip()), "no memory")
            raise CostmodelError(f"{spec} cannot be built as asked: {said[:200]}") from error
    args, kwargs = pytree.tree_map(lambda leaf: _convert(leaf, wanted), (loaded.args, loaded.kwargs))
    model = loaded.model.to(wanted.dtype) if wanted.dtype is not torch.float32 else loaded.model
    model.train(mode == "train")
    return replace(loaded, name=spec, model=model, args=args, kwargs=kwargs)


def available(families: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Names by family, for ``costmodel models``: the part after ``timm:``; ``own`` has no prefix.

    A family whose library is not installed has an empty list. ``own`` and ``transformers`` cost no import; timm's
    and torchvision's registers take seconds, so ask for `families` if that matters.
    """
    found: dict[str, list[str]] = {}
    for family in FAMILIES if families is None else families:
        if family not in FAMILIES:
            raise UnknownName(
                "family of models",
                family,
                FAMILIES,
                hint=f"(names that contain it: costmodel models --search {family})",
            )
        try:
            found[family] = sorted(import_module(f".{FAMILIES[family]}", __package__).names())
        except MissingExtra:
            found[family] = []
    return found


def architectures(library: str) -> dict[str, str]:
    """Every architecture that the installed `library` has, and the family that it counts as one of."""
    register = import_module(f".{REGISTERS[library]}", __package__)
    return {name: str(register.family_of(name)) for name in register.names()}


def _door(spec: str) -> tuple[Callable[..., Loaded], str, dict[str, Any]]:
    """The builder, the name that it knows, and the settings of the constructor."""
    family, colon, rest = spec.partition(":")
    if colon and family in FAMILIES:
        name, options = split_options(rest)
        door = FAMILIES[family]
    elif Path(spec).suffix == ".pt2":
        name, options, door = spec, {}, "exported"
    elif Path(spec.partition(",")[0]).suffix == ".onnx":
        name, options = split_options(spec)
        door = "onnx_file"
    elif ".py:" in spec or spec.endswith(".py"):
        name, options = split_options(spec)
        door = "file"
    elif Path(spec).suffix in {".json", ".gz"}:
        raise CostmodelError(f"{spec} is a saved trace, not a model: give it to costmodel.load or `costmodel estimate`")
    elif colon and "/" not in family and "." not in family:
        unknown("family of models", family, FAMILIES, "")
    else:
        name, options = split_options(spec)
        door = "own"
    build: Callable[..., Loaded] = import_module(f".{door}", __package__).build
    return build, name, options


def split_options(text: str) -> tuple[str, dict[str, Any]]:
    """``name,key=value,…`` to the name and a dict; a value is a Python literal, else the text itself.

    >>> split_options("vit_small_patch16_224,num_classes=10,act_layer=gelu")
    ('vit_small_patch16_224', {'num_classes': 10, 'act_layer': 'gelu'})
    """
    name, *settings = text.split(",")
    options: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.isidentifier():
            raise CostmodelError(
                f"{setting!r} in {text!r} is not key=value (as in timm:mobilenetv2_100,num_classes=10)"
            )
        if key in options:
            raise CostmodelError(f"{key} is set twice in {text!r}")
        options[key] = _literal(value)
    return name, options


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _convert(leaf: Any, wanted: Wanted) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if leaf.is_floating_point() and wanted.dtype is not torch.float32:
        leaf = leaf.to(wanted.dtype)
    return leaf.to(wanted.input_device)
