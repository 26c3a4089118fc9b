"""``path/file.py:function``: a model in the user's own file."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import CostmodelError, FileError, UnknownName
from .inputs import DTYPES, Loaded, Wanted
from .step import as_call

__all__ = ["build"]


def build(name: str, options: dict[str, Any], wanted: Wanted) -> Loaded:
    """Run the file, call the function, and take the module and example inputs that it returns.

    Raises:
        FileError: no such file, it does not run, no such function, or it returned something else.
    """
    path, _, function_name = name.partition(".py:")
    path = path if path.endswith(".py") else path + ".py"
    module = _run(Path(path))
    function = _function(Path(path), module, function_name)
    settings = _settings(name, function, options, wanted)
    try:
        with torch.device(wanted.device):
            result = function(**settings)
    except CostmodelError:
        raise
    except (Exception, SystemExit) as error:
        raise CostmodelError(f"{name} raised {type(error).__name__}: {_line(error)}") from error
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], nn.Module)):
        raise FileError(path, function_name, f"must return (module, example inputs), not {_describe(result)}")
    args, kwargs = as_call(result[1])
    return Loaded(name, result[0], args, kwargs, _task(args, kwargs), str(Path(path).resolve()))


def _run(path: Path) -> ModuleType:
    """Import the file under a name of its own, with its folder on the path so that it finds its neighbours."""
    if not path.is_file():
        raise FileError(path, "", "no such file; give path/file.py:function")
    unique = "costmodel_user_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(unique, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses look their module up while it is being made
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise FileError(path, f"line {error.lineno}", f"does not parse: {error.msg}") from error
    except (Exception, SystemExit) as error:  # a script that reads its arguments leaves so
        raise FileError(path, "", f"raised {type(error).__name__} when imported: {_line(error)}") from error
    finally:
        sys.path.pop(0)
    return module


def _function(path: Path, module: ModuleType, name: str) -> Callable[..., Any]:
    own = {
        n: f
        for n, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and n[0] != "_"
    }
    if not name:
        raise FileError(path, "", f"say which function: {', '.join(f'{path}:{n}' for n in own) or 'there is none'}")
    function = getattr(module, name, None)
    if not callable(function):
        raise UnknownName(f"function in {path}", name, own)
    return function


def _settings(name: str, function: Callable[..., Any], options: dict[str, Any], wanted: Wanted) -> dict[str, Any]:
    """Options of the spec, and of the command line those that the function has a parameter for."""
    parameters = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if key not in parameters and not open_ended:
            raise UnknownName(f"parameter of {name}", key, parameters)
    dtype = next(n for n, d in DTYPES.items() if d is wanted.dtype)
    asked: dict[str, Any] = {
        "batch": wanted.batch if wanted.batch != 1 else None,
        "input_size": wanted.input_size,
        "seq": wanted.seq,
    }
    passed: dict[str, Any] = {"mode": wanted.mode, "dtype": dtype, "device": wanted.device}
    for key, value in asked.items():
        if value is None:
            continue
        if key not in parameters:
            raise CostmodelError(f"{name} has no parameter {key!r}, so {key} = {value} cannot be passed to it; add one")
        passed[key] = value
    return {**{k: v for k, v in passed.items() if k in parameters}, **options}


def _task(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    first = next((t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)), None)
    if first is None:
        return "other"
    if not first.is_floating_point() and first.dim() == 2:
        return "text"
    return "image" if first.dim() == 4 else "other"


def _line(error: BaseException) -> str:
    """The first line that an error says."""
    return next((line for line in str(error).splitlines() if line.strip()), "")[:200]


def _describe(result: Any) -> str:
    if isinstance(result, tuple):
        return f"a tuple of {len(result)} ({', '.join(type(part).__name__ for part in result)})"
    return f"a {type(result).__name__}"
