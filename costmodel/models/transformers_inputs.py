"""Example inputs of a transformers model: which of them, for what its ``forward`` asks for."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..errors import CostmodelError
from .inputs import Wanted, refuse
from .transformers_makers import MAKERS, Sizes
from .transformers_media import has_token, left_out, with_media
from .transformers_recipes import recipe_of

__all__ = ["make_inputs"]

_MAIN = ("input_ids", "pixel_values", "input_values", "input_features", "inputs_embeds", "hidden_states")
_IMAGES = ("pixel_values", "image_grid_thw", "image_sizes")
_SOUNDS = ("input_features", "input_values")


def make_inputs(spec: str, model: nn.Module, config: Any, wanted: Wanted) -> tuple[dict[str, Any], str]:
    """Keyword arguments for ``model(**kwargs)``: the main input, what has no default, and what always goes with it.

    Returns:
        The arguments, and in words which image, video or sound of the model's is left out; empty for most.
    """
    parameters = inspect.signature(model.forward).parameters
    needed = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    main = getattr(model, "main_input_name", "input_ids")
    chosen = [n for n in ([main] if isinstance(main, str) else list(main)) if n in parameters]
    chosen += [n for n in needed if n not in chosen]
    if not chosen:
        chosen = [n for n in _MAIN if n in parameters][:1]
    sizes = Sizes(model, config, wanted)
    recipe = recipe_of(sizes.name, sizes.kind)
    chosen += [n for n in _companions(model, sizes, chosen) if n in parameters and n not in chosen]
    chosen = [n for n in dict.fromkeys([*chosen, *recipe]) if recipe.get(n, MAKERS) is not None]
    if not {"input_ids", "inputs", "hidden_states", "past_values"} & set(chosen):
        refuse(spec, wanted, seq="reads no tokens")
    made: dict[str, Any] = {}
    for name in chosen:
        maker = recipe.get(name) or MAKERS.get(name)
        if maker is None:
            raise CostmodelError(f"{spec} reads {name}, which costmodel makes no example of; use a file.py:function")
        made[name] = maker(sizes)
    if "input_ids" in made and wanted.mode != "decode" and not recipe:
        made = with_media(model, sizes, made)
    left = [] if wanted.mode == "decode" else left_out(sizes, made)
    return made, f"text without the {' and the '.join(left)} that the model takes" if left else ""


def _companions(model: nn.Module, sizes: Sizes, chosen: list[str]) -> list[str]:
    """What people always pass beside an input though it has a default."""
    more: list[str] = []
    if getattr(sizes.config, "is_encoder_decoder", False) and "input_ids" not in chosen[1:]:
        more.append("decoder_input_ids")
    if "input_ids" in chosen:
        more.append("bbox")
        # an image or a sound that goes beside the text; where it goes into it, it has tokens of its own there
        more += [] if has_token(sizes, "image") else _IMAGES[:1]
        more += [] if has_token(sizes, "audio") else _SOUNDS
    elif "pixel_values" in chosen or "input_features" in chosen:
        two_towers = hasattr(model, "text_model") or hasattr(model, "text_decoder") or hasattr(model, "text_encoder")
        more += ["input_ids"] if two_towers else []
    if "input_features" in [*chosen, *more]:
        more += ["input_features_mask", "feature_attention_mask"]
    if "pixel_values" in [*chosen, *more]:
        more += ["grid_thw", "image_grid_thw", "image_grid_hw"]
    if "hidden_states" in chosen:
        more += ["grid_thw"]
    if "past_values" in chosen and getattr(sizes.config, "is_encoder_decoder", False):
        more += ["future_values", "future_time_features"]
    return more
