"""Example inputs of a transformers model, for what its ``forward`` asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CostmodelError
from .inputs import Wanted, refuse, token_ids

__all__ = ["make_inputs"]

SEQ = 64
SAMPLES = 16_000  # a second of sound at 16 kHz
FRAMES = 128
VIDEO_FRAMES = 16


def make_inputs(spec: str, model: nn.Module, config: Any, wanted: Wanted) -> dict[str, Any]:
    """Keyword arguments for ``model(**kwargs)``: the main input, what has no default, and what always goes with it."""
    parameters = inspect.signature(model.forward).parameters
    needed = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    main = getattr(model, "main_input_name", "input_ids")
    wanted_names = [main] if isinstance(main, str) else list(main)
    wanted_names = [n for n in wanted_names if n in parameters] + [n for n in needed if n not in wanted_names]
    if not wanted_names:
        wanted_names = [n for n in ("input_ids", "pixel_values", "input_values", "input_features") if n in parameters][
            :1
        ]
    wanted_names += [n for n in _companions(config, wanted_names) if n in parameters and n not in wanted_names]
    if "input_ids" not in wanted_names:
        refuse(spec, wanted, seq="reads no tokens" if "hidden_states" not in wanted_names else "reads patches")
    shapes = _Shapes(config, wanted)
    made: dict[str, Any] = {}
    for name in wanted_names:
        maker = _MAKERS.get(name)
        if maker is None:
            raise CostmodelError(f"{spec} reads {name}, which costmodel makes no example of; use a file.py:function")
        made[name] = maker(shapes)
    return made


def _companions(config: Any, names: list[str]) -> list[str]:
    """What people always pass beside an input though it has a default."""
    more: list[str] = []
    if getattr(config, "is_encoder_decoder", False):
        more.append("decoder_input_ids")
    if "input_ids" in names:
        more += ["bbox"]
    return more


class _Shapes:
    """Sizes, from a configuration or the first of its parts that says them."""

    def __init__(self, config: Any, wanted: Wanted) -> None:
        self.config, self.wanted = config, wanted
        self.batch, self.device = wanted.batch, wanted.input_device

    def find(self, *names: str, default: Any = None, part: str = "") -> Any:
        """The first of `names` that the configuration or one of its parts (whose name has `part` first) has."""
        pending, seen = [self.config], 0
        while pending and seen < 64:
            config, *pending = pending
            seen += 1
            for name in names:
                value = getattr(config, name, None)
                if value is not None and not (part and config is self.config and _parts(config)):
                    return value
            inner = _parts(config)
            pending += sorted(inner, key=lambda c: part not in str(getattr(c, "model_type", ""))) if part else inner
        return self.find(*names, default=default) if part else default

    def tokens(self) -> Tensor:
        vocab = self.find("vocab_size", default=1000)
        length = min(self.wanted.seq or SEQ, self.find("max_position_embeddings", default=SEQ))
        return token_ids(self.wanted, min(int(vocab), 1000), max(int(length) - 4, 1) if length < SEQ else int(length))

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, device=self.device)

    def image_size(self) -> tuple[int, int]:
        if self.wanted.input_size:
            return self.wanted.input_size[-2], self.wanted.input_size[-1]
        size = self.find("image_size", "input_size", "img_size", default=224, part="vision")
        if isinstance(size, dict):
            size = (size.get("height", 224), size.get("width", 224))
        height, width = (size[-2], size[-1]) if isinstance(size, (tuple, list)) else (size, size)
        return int(height), int(width)

    def channels(self) -> int:
        return int(self.find("num_channels", "in_channels", "in_chans", default=3, part="vision"))

    def image(self) -> Tensor:
        return self.floats(self.channels(), *self.image_size())


def _parts(config: Any) -> list[Any]:
    return [v for v in vars(config).values() if hasattr(v, "to_dict") and hasattr(v, "model_type")]


def _sound(s: _Shapes) -> Tensor:
    """A spectrogram where the model has mel bins, else samples of a wave."""
    bins = s.find("num_mel_bins", "n_mels")
    if bins and s.config.model_type == "audio-spectrogram-transformer":
        return s.floats(s.find("max_length", default=1024), bins)
    if s.config.model_type in {
        "encodec",
        "dac",
        "mimi",
        "xcodec",
        "higgs_audio_v2_tokenizer",
        "pocket_tts_audio_tokenizer",
    }:
        return s.floats(1, SAMPLES)
    if s.config.model_type in {"speecht5"}:
        return s.floats(SAMPLES)
    return s.floats(SAMPLES)


def _features(s: _Shapes) -> Tensor:
    """Spectrogram frames: [bins, frames] as Whisper reads them, else [frames, bins]."""
    bins = int(s.find("num_mel_bins", "n_mels", "feature_projection_input_dim", "input_feat_per_channel", "input_dim",
                      "feat_in", "input_feat_size", default=80, part="audio"))  # fmt: skip
    positions = s.find("max_source_positions", part="audio")
    whisper = s.find("scale_embedding") is not None and positions
    if (
        positions and s.config.model_type in {"whisper", "moonshine", "qwen2_audio", "qwen2_audio_encoder", "voxtral"}
    ) or (whisper and "speech_to_text" not in s.config.model_type):
        return s.floats(bins, 2 * int(positions))
    return s.floats(FRAMES, bins)


def _boxes(s: _Shapes) -> Tensor:
    tokens = s.tokens()
    return torch.zeros(*tokens.shape, 4, dtype=torch.long, device=s.device)


def _frames(s: _Shapes) -> Tensor:
    frames = int(s.find("num_frames", "frames_per_clip", default=VIDEO_FRAMES))
    return s.floats(frames, s.channels(), *s.image_size())


_VIDEO = ("timesformer", "videomae", "vivit", "vjepa2", "videoprism")


def _pixels(s: _Shapes) -> Tensor:
    model_type = str(s.config.model_type)
    if model_type.startswith(_VIDEO):
        return _frames(s)
    return s.image()


_MAKERS: dict[str, Callable[[_Shapes], Any]] = {
    "input_ids": _Shapes.tokens,
    "decoder_input_ids": _Shapes.tokens,
    "pixel_values": _pixels,
    "pixel_values_videos": _frames,
    "input_values": _sound,
    "input_features": _features,
    "bbox": _boxes,
}
