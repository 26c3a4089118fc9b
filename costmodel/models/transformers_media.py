"""Images, sounds and videos inside the text of a transformers model, with a token for each part of them.

How many tokens one takes is what its encoder makes of it: that part of the model is run on fake tensors and its rows
are counted.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..fakes import run_unrecorded
from .transformers_makers import MAKERS, Sizes

__all__ = ["has_token", "left_out", "with_media"]

# medium, input that holds it; one of the visual ones is enough
_MEDIA = (("image", "pixel_values"), ("video", "pixel_values_videos"), ("audio", "input_features"))
_GIVEN = {
    "image": {"pixel_values", "image", "image_hidden_states"},
    "video": {"pixel_values_videos"},
    "audio": {"input_features", "input_values"},
}
_TYPES = {"image": 1, "video": 2, "audio": 3}
_BESIDE = ("image_grid_thw", "video_grid_thw", "image_sizes", "spatial_shapes", "input_features_mask")


def has_token(sizes: Sizes, medium: str) -> bool:
    """Whether the text has a token that stands for a part of an image, a video or a sound (`medium`)."""
    return _token(sizes, medium) is not None


def _token(sizes: Sizes, medium: str) -> int | None:
    found = sizes.find(*(f"{medium}_token{end}" for end in ("_id", "_index", "")))
    return found if type(found) is int else None


def with_media(model: nn.Module, sizes: Sizes, made: dict[str, Any]) -> dict[str, Any]:
    """`made` with an image (or a video) and a sound among the tokens, of each that the model can be run with.

    Args:
        model: on any device; it is copied onto fake tensors, never changed.
        made: keyword arguments with ``input_ids`` [samples, tokens].
    """
    for medium, name in _MEDIA:
        token, encode = _token(sizes, medium), getattr(model, f"get_{medium}_features", None)
        seen = medium == "video" and "pixel_values" in made
        if token is None or encode is None or seen or name in made or name not in sizes.takes:
            continue
        for media in _examples(sizes, name, set(inspect.signature(encode).parameters)):
            try:
                rows = _rows(run_unrecorded(model, _encoder(medium), media))
                tried = {**made, **{k: v for k, v in media.items() if k in sizes.takes}}
                tried["input_ids"] = ids = _ids_with(made["input_ids"], token, rows // sizes.batch)
                if "mm_token_type_ids" in sizes.takes:
                    tried["mm_token_type_ids"] = (ids == token).long() * _TYPES[medium]
                run_unrecorded(model, _whole, tried)
            except Exception:  # not in this form: whatever the library raises
                continue
            made = tried
            break
    return made


def left_out(sizes: Sizes, made: dict[str, Any]) -> list[str]:
    """Media that the model takes among its text, by a token for each, and `made` lacks; an image does for videos."""
    given = {medium for medium, names in _GIVEN.items() if names & set(made)}
    if "image" in given or "video" in given:
        given |= {"image", "video"}
    takes = [m for m, names in _GIVEN.items() if names & sizes.takes and has_token(sizes, m) and m not in given]
    return ["image"] + [m for m in takes if m == "audio"] if "image" in takes else takes


def _examples(sizes: Sizes, name: str, taken: set[str]) -> Iterator[dict[str, Any]]:
    """Forms in which a medium may be given: as it is, an image a sample in a list, an image in tiles."""
    beside = {n: MAKERS[n](sizes) for n in _BESIDE if n in taken}
    yield {name: MAKERS[name](sizes), **beside}
    if name == "pixel_values" and "image_grid_thw" not in taken:
        for tiles in (1, 3, 5, 7):
            yield {name: sizes.image(tiles), **beside}


def _encoder(medium: str) -> Callable[[Any, dict[str, Any]], Any]:
    return lambda model, media: getattr(model, f"get_{medium}_features")(**media)


def _whole(model: Any, inputs: dict[str, Any]) -> Any:
    return model(**inputs)


def _rows(encoded: Any) -> int:
    """Rows of features in what an encoder returns: a tensor, a list of them, or an output that has one."""
    found = getattr(encoded, "pooler_output", None)
    leaves = pytree.tree_leaves(encoded if found is None else found)
    return sum(t.numel() // t.shape[-1] for t in leaves if isinstance(t, Tensor) and t.dim())


def _ids_with(ids: Tensor, token: int, count: int) -> Tensor:
    """Token ids with `count` times `token` after the first."""
    places = torch.full((ids.shape[0], count), token, dtype=ids.dtype, device=ids.device)
    return torch.cat([ids[:, :1], places, ids[:, 1:]], 1)
