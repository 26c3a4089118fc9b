"""``transformers:BertForMaskedLM``: any model class of transformers, built from its own configuration, no weights.

The configuration is the class's default, as large as its authors made it; ``layers=2`` makes every stack of layers two
deep, inside of composite models too, and keeps the widths, so that nothing that must divide stops dividing. Example
inputs are made for what the class's ``forward`` asks for.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from torch import nn

from ..errors import CostmodelError
from ._compat import require
from .inputs import Loaded, Wanted, make_on, refuse, unknown
from .transformers_inputs import make_inputs
from .transformers_settings import complete, finish, parts, settings_of

__all__ = ["build", "family_of", "is_class", "names"]

# Attributes that say how deep a stack is, and lists with an entry a stage that do.
_DEPTH = re.compile(
    r"(num_|n_|nb_)?((text|vision|audio|enc|dec|encoder|decoder|hidden|encoder_hidden|decoder_hidden|transformer|block|"
    r"speech_encoder|t2u_encoder|t2u_decoder|adaptor|cross_modal|self_attends|main|global|inner|attention|conformer|"
    r"semantic|rnn|flow|prelude|coda|recurrent|fusion|mlp|bottleneck)_)*"
    r"(layers?|blocks?|depths?|repeats?|self_attends_per_block|num_hidden_groups|h)"
)
_NOT_DEPTH = re.compile(r".*(num_conv_|feat_extract|mask_|adapter|layerdrop|upsampl|positional).*")


def names() -> list[str]:
    """Every model class of the installed transformers."""
    return sorted(_classes())


def family_of(name: str) -> str:
    """The folder of transformers that defines a class, such as ``bert``."""
    return str(_classes()[name].__module__.split(".")[-2])


def is_class(name: str) -> bool:
    """Whether `name` looks like a class and is a model of transformers."""
    return name.isidentifier() and name != name.lower() and name in _classes()


@cache
def _classes() -> dict[str, Any]:
    transformers = require("transformers")
    found = {}
    for name in dir(transformers):
        try:
            value = getattr(transformers, name)
        except (ImportError, AttributeError):  # lazily imported, and its own dependency is missing
            continue
        if inspect.isclass(value) and issubclass(value, transformers.PreTrainedModel):
            found[name] = value
    return {n: v for n, v in found.items() if not n.endswith(("PreTrainedModel", "PretrainedModel")) and _runs(v)}


def _runs(model_class: Any) -> bool:
    """Whether the class has a forward pass: a few only generate, part by part."""
    return model_class.forward is not nn.Module.forward


def build(name: str, options: dict[str, Any], wanted: Wanted) -> Loaded:
    """The class `name` with random weights at its default configuration, changed by `options`."""
    transformers = require("transformers")
    spec = f"transformers:{name}"
    classes = _classes()
    if name not in classes:
        unknown("model class of transformers", name, classes, "transformers")
    model_class = classes[name]
    settings = dict(options)
    layers = settings.pop("layers", None)
    if layers is not None and (type(layers) is not int or layers < 1):
        raise CostmodelError(f"layers is a number of at least 1, not {layers!r}")
    config, given = _configure(spec, model_class, settings)
    if layers is not None:
        config = _shallow(config, layers, given)
    finish(config)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # a cache is part of prefill and decode only, and is asked for there
    try:
        model = make_on(wanted.device, partial(model_class, config))
    except ImportError:
        raise
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise CostmodelError(
            f"{spec}: {type(config).__name__} as transformers {transformers.__version__} has it builds no model "
            f"({type(error).__name__}: {said}); set what it needs after a comma"
        ) from error
    kwargs, assumed = make_inputs(spec, model, config, wanted)
    first = next(iter(kwargs), "")
    if first != "input_ids":
        refuse(spec, wanted, cache="does not read tokens first")
    task = {"input_ids": "text", "pixel_values": "image"}.get(first, "other")
    return Loaded(spec, model, (), kwargs, task, f"transformers {transformers.__version__}", assumed)


def _config_class(model_class: Any) -> Any:
    """The configuration that the class is built from; the first where it takes several."""
    given = model_class.config_class
    if isinstance(given, type):
        return given
    return next(iter(getattr(given, "__args__", ())), given)


def _configure(spec: str, model_class: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    config_class = _config_class(model_class)
    try:
        config, given = complete(config_class, model_class.__name__, settings)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CostmodelError(f"{spec}: {config_class.__name__} cannot be built with {settings}: {error}") from error
    for key in settings:
        if not hasattr(config, key):
            unknown(f"setting of {config_class.__name__}", key, sorted(config.to_dict()), "")
    return config, given


# Fewer layers


def _shallow(config: Any, layers: int, settings: dict[str, Any]) -> Any:
    """A configuration like `config` whose stacks have `layers` layers; itself, changed, where it cannot be rebuilt."""
    changed = _overrides(config, layers)
    try:
        rebuilt = type(config)(**{**settings, **changed})
    except Exception:
        rebuilt = None
    if rebuilt is not None and all(getattr(rebuilt, k, None) == v for k, v in changed.items() if type(v) is int):
        return rebuilt
    for part, key, value in _changes(config, layers):
        setattr(part, key, value)
    return config


def _overrides(config: Any, layers: int) -> dict[str, Any]:
    """Arguments of the configuration's class that make it shallow; parts that change are given as dicts."""
    changed: dict[str, Any] = {key: value for part, key, value in _changes(config, layers) if part is config}
    for name, part in parts(config):
        if any(True for _ in _changes(part, layers)):
            changed[name] = _shallow(copy.deepcopy(part), layers, settings_of(type(part).__name__)).to_dict()
    return changed


def _changes(config: Any, layers: int) -> Iterator[tuple[Any, str, Any]]:
    """(configuration, attribute, new value): depths, and the lists that have an entry a layer."""
    values = {k: v for k, v in vars(config).items() if not k.startswith("_")}
    depths = {
        k: v
        for k, v in values.items()
        if type(v) is int and v > layers and _DEPTH.fullmatch(k) and not _NOT_DEPTH.fullmatch(k)
    }
    kinds = {k: v for k, v in values.items() if isinstance(v, list) and len(v) in depths.values()}
    typed = [v for v in kinds.values() if v and isinstance(v[0], str)]
    depth = max([layers, *(len(set(v)) for v in typed)])  # a layer of each kind
    order = _one_of_each(typed[0], depth) if typed else list(range(depth))
    for key, value in depths.items():
        yield config, key, min(value, depth)
    for key, entries in kinds.items():
        yield config, key, [entries[i] for i in order if i < len(entries)]
    for key, value in values.items():
        stages = isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value)
        if stages and _DEPTH.fullmatch(key) and key not in kinds and not _NOT_DEPTH.fullmatch(key):
            yield config, key, type(value)(min(v, layers) for v in value)
    for part in (p for _, p in parts(config)):
        yield from _changes(part, layers)


def _one_of_each(kinds: list[str], depth: int) -> list[int]:
    """Positions of `depth` layers in ascending order, the first of each kind among them."""
    first = {kind: kinds.index(kind) for kind in dict.fromkeys(kinds)}
    chosen = set(first.values())
    for i in range(len(kinds)):
        if len(chosen) >= depth:
            break
        chosen.add(i)
    return sorted(chosen)
