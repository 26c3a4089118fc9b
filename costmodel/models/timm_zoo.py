"""``timm:NAME``: any architecture of timm, random weights, at the input size of its default configuration."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from torch import nn

from ..errors import CostmodelError
from ._compat import require
from .inputs import Loaded, Wanted, image, make_on, refuse, unknown

__all__ = ["build", "current_name", "family_of", "names"]


def names() -> list[str]:
    """Every architecture of the installed timm, without pretrained tags."""
    return list(require("timm").list_models())


def family_of(name: str) -> str:
    """The file of timm that defines `name`, and the word that the name starts with."""
    require("timm")
    from timm.models import _registry

    word = re.match(r"[a-z]+", name)
    return f"{_registry._model_to_module[name]}.{word.group() if word else name}"


def current_name(name: str) -> str | None:
    """`name` if the installed timm has it, what an older timm's name is called now, or None.

    timm keeps a map of the names of its earlier versions, which published tables still use.
    """
    timm = require("timm")
    from timm.models import _registry

    renamed: dict[str, str | None] = getattr(_registry, "_deprecated_models", {})
    if name in renamed:
        return renamed[name]
    return name if timm.is_model(name) else None


def build(name: str, options: dict[str, Any], wanted: Wanted) -> Loaded:
    """The timm model `name` (a pretrained tag as in ``vit_tiny_patch16_224.augreg`` selects its settings only)."""
    timm = require("timm")
    spec = f"timm:{name}"
    current = current_name(name)
    if current is None:
        unknown("timm model", name, names(), "timm")
    refuse(spec, wanted, seq="reads images", cache="reads images")
    channels, height, width = _size(spec, timm.get_pretrained_cfg(current), wanted)
    settings = dict(options)
    if channels != 3:
        settings.setdefault("in_chans", channels)
    model = _create(timm, current, settings, wanted, (height, width))
    return Loaded(spec, model, (image(wanted, channels, height, width),), {}, "image", f"timm {timm.__version__}")


def _size(spec: str, cfg: Any, wanted: Wanted) -> tuple[int, int, int]:
    if wanted.input_size is None:
        channels, height, width = cfg.input_size if cfg is not None else (3, 224, 224)
    elif len(wanted.input_size) == 3:
        channels, height, width = wanted.input_size
    else:
        raise CostmodelError(f"{spec} takes channels x height x width, not {len(wanted.input_size)} numbers")
    return channels, height, width


def _create(timm: Any, name: str, settings: dict[str, Any], wanted: Wanted, size: tuple[int, int]) -> nn.Module:
    """Create at `size`: transformers want it as ``img_size``, convolutional nets do not know the word."""
    cfg = timm.get_pretrained_cfg(name)
    tries = [settings]
    if wanted.input_size is not None and (cfg is None or tuple(cfg.input_size[1:]) != size):
        tries = [{"img_size": size, **settings}, settings]
    for attempt in tries:
        try:
            return make_on(wanted.device, partial(timm.create_model, name, pretrained=False, **attempt))
        except TypeError as error:
            if "img_size" in attempt and "img_size" in str(error):
                continue
            raise CostmodelError(f"timm:{name} does not take {attempt}: {error}") from error
        except AssertionError as error:
            raise CostmodelError(f"timm:{name} cannot be built at {size[0]}x{size[1]}: {error}") from error
    raise AssertionError("unreachable: the last attempt returns or raises")
