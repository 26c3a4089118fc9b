"""How each kind of input of a transformers model is made: shapes from the configuration, values where they decide."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from .inputs import Wanted

__all__ = ["FRAMES", "GRID", "MAKERS", "SEQ", "Sizes"]

SEQ = 64
SAMPLES = 16_000  # a second of sound at 16 kHz
FRAMES = 128  # of a spectrogram
VIDEO_FRAMES = 16
GRID = 16  # patches each way of a vision tower that takes them laid out


class Sizes:
    """Sizes, from a configuration or the first of its parts that says them."""

    def __init__(self, model: nn.Module, config: Any, wanted: Wanted) -> None:
        self.name, self.model, self.config, self.wanted = type(model).__name__, model, config, wanted
        self.kind = str(getattr(config, "model_type", "") or "")
        self.batch, self.device = wanted.batch, wanted.input_device
        self.takes = set(inspect.signature(model.forward).parameters)

    def find(self, *names: str, default: Any = None, part: str = "") -> Any:
        """The first of `names` that the configuration or one of its parts has; parts called `part` come first."""
        pending = [self.config]
        if part:
            named = [v for k, v in _parts(self.config) if part in k]
            pending = [*named, self.config]
        for _ in range(64):
            if not pending:
                break
            config = pending.pop(0)
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
            pending += [v for _, v in _parts(config)]
        return default

    def ids(self, *shape: int, vocab: int = 0) -> Tensor:
        most = min(int(vocab or self.find("vocab_size", "text_vocab_size", default=1000, part="text")), 1000)
        return torch.randint(most, (self.batch, *shape), device=self.device)

    def length(self) -> int:
        if self.wanted.mode == "decode":
            return 1
        limit = self.find("max_position_embeddings", "max_seq_length", "max_seq_len", default=4 * SEQ, part="text")
        limit = int(limit[-1]) if isinstance(limit, (list, tuple)) else int(limit)
        return min(self.wanted.seq or SEQ, limit if limit >= SEQ else max(limit - 4, 1))

    def floats(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, device=self.device)

    def zeros(self, *shape: int) -> Tensor:
        return torch.zeros(self.batch, *shape, dtype=torch.long, device=self.device)

    def image_size(self) -> tuple[int, int]:
        if self.wanted.input_size:
            return self.wanted.input_size[-2], self.wanted.input_size[-1]
        size = self.find("image_size", "img_size", "input_size", "resolution", default=224, part="vision")
        if isinstance(size, dict):
            size = (size.get("height", 224), size.get("width", 224))
        height, width = (size[-2], size[-1]) if isinstance(size, (tuple, list)) else (size, size)
        return int(height), int(width)

    def channels(self) -> int:
        return int(self.find("num_channels", "in_channels", "in_chans", "n_channels", default=3, part="vision"))

    def image(self, *before: int) -> Tensor:
        return self.floats(*before, self.channels(), *self.image_size())


def _parts(config: Any) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in vars(config).items() if hasattr(v, "to_dict") and hasattr(v, "model_type")]


def _tokens(s: Sizes) -> Tensor:
    if "MultipleChoice" in s.name:
        return s.ids(4, s.length())
    codebooks = s.find("num_codebooks", "num_channels") if s.kind in {"csm", "dia_decoder", "moshi_depth"} else None
    if codebooks and s.kind == "dia_decoder":
        return s.ids(s.length(), int(codebooks))
    return s.ids(s.length())


def _decoder_tokens(s: Sizes) -> Tensor:
    if s.kind == "dia":
        return s.ids(s.length(), int(s.find("num_channels", part="decoder")))
    if s.kind == "musicgen" or s.kind == "musicgen_melody":
        books = int(s.find("num_codebooks", default=4, part="decoder"))
        return torch.randint(1000, (s.batch * books, s.length()), device=s.device)
    return s.ids(s.length())


def _sound(s: Sizes) -> Tensor:
    """Samples of a wave, with a channel for codecs; frames of a spectrogram where the model reads those."""
    if s.kind == "audio-spectrogram-transformer":
        return s.floats(int(s.find("max_length", default=1024)), int(s.find("num_mel_bins")))
    if s.kind == "speecht5" and "ForSpeechToText" not in s.name and "ForSpeechToSpeech" not in s.name:
        return s.ids(s.length())
    if s.kind in _CODECS or s.kind.startswith("pe_audio"):
        return s.floats(1, SAMPLES)
    if s.kind in {"univnet"}:
        return s.floats(FRAMES, int(s.find("num_mel_bins", default=100)))
    return s.floats(SAMPLES)


_CODECS = {
    "encodec", "dac", "mimi", "xcodec", "xcodec2", "higgs_audio_v2_tokenizer", "pocket_tts_audio_tokenizer",
    "vibevoice_acoustic_tokenizer", "neucodec",
}  # fmt: skip


def _features(s: Sizes) -> Tensor:
    """Spectrogram frames: [bins, frames] as Whisper reads them, [1, frames, bins] for CLAP, else [frames, bins]."""
    bins = int(
        s.find(
            "num_mel_bins", "n_mels", "feature_projection_input_dim", "input_feat_per_channel", "feat_in", "input_dim",
            "num_mel_channels", "input_size", default=80, part="audio",
        )
    )  # fmt: skip
    if s.kind.startswith("clap"):
        return s.floats(1, 1024, bins if bins in (64, 128) else 64)
    positions = s.find("max_source_positions", part="audio")
    if positions and "speech_to_text" not in s.kind and "granite_speech" not in s.kind:
        return s.floats(bins, 2 * int(positions))
    if s.kind.startswith(("clvp",)):
        return s.floats(int(s.find("feature_size", default=bins)), FRAMES)
    return s.floats(FRAMES, bins)


def _frames_in(s: Sizes) -> int:
    """Frames of what `_features` makes."""
    shape = _features(s).shape
    return int(shape[-1] if s.find("max_source_positions", part="audio") else shape[1])


def _frames(s: Sizes) -> Tensor:
    frames = s.find("num_frames", "frames_per_clip", default=VIDEO_FRAMES)
    return s.image(int(frames))


_VIDEO = ("timesformer", "videomae", "vivit", "vjepa2", "videoprism", "x_clip", "xclip")
_PAIRS = ("efficientloftr", "superglue", "lightglue")


def _pixels(s: Sizes) -> Tensor:
    if s.takes & {"grid_thw", "image_grid_thw", "image_grid_hw"}:
        return rows_of_patches(s)
    if s.kind.startswith(_VIDEO) and "text" not in s.kind:
        return _frames(s)
    if s.kind.startswith(_PAIRS):
        return s.floats(2, 3, 224, 224)
    if s.kind.startswith("depth_pro"):
        return s.floats(3, 1536, 1536)
    return s.image()


def _hidden_states(s: Sizes) -> Tensor:
    """Patches of a frame laid out as rows, for vision towers; hidden states for parts that follow others."""
    patch = s.find("patch_size")
    if patch and not isinstance(s.find("patch_size"), (list, tuple)) and "ultimodal" not in s.name:
        width = s.channels() * int(s.find("temporal_patch_size", default=1)) * int(patch) ** 2
        return torch.randn(s.batch * GRID * GRID, width, device=s.device)
    return s.floats(SEQ, int(s.find("hidden_size", "d_model", default=768)))


def rows_of_patches(s: Sizes) -> Tensor:
    """Patches of one frame a sample laid out as rows [samples * patches, channels * frames * height * width]."""
    patch = s.find("patch_size", part="vision")
    patch = int(patch[-1] if isinstance(patch, (list, tuple)) else patch)
    frames = s.find("temporal_patch_size", default=1, part="vision")
    frames = int(frames[0] if isinstance(frames, (list, tuple)) else frames)
    return torch.randn(s.batch * GRID * GRID, s.channels() * frames * patch**2, device=s.device)


def _grid(s: Sizes) -> Tensor:
    return torch.tensor([[1, GRID, GRID]] * s.batch, device=s.device)


def _history(s: Sizes) -> int:
    lags = s.find("lags_sequence", default=[0])
    length = s.find("context_length", "prediction_length", "seq_len", "history_len", default=512)
    return int(length) + max(lags)


def _past(s: Sizes) -> Tensor:
    channels = s.find("num_input_channels", default=1)
    if s.find("lags_sequence") is not None or s.kind.startswith("timesfm"):
        return s.floats(_history(s))
    return s.floats(_history(s), int(channels))


def _time_features(s: Sizes, length: int) -> Tensor:
    return s.floats(length, int(s.find("num_time_features", default=0)))


def _inputs(s: Sizes) -> Tensor:
    """What Perceiver's variants read: bytes, an image, or a pair of patches of flow."""
    if "Image" in s.name:
        return s.floats(3, 224, 224)
    if "Flow" in s.name:
        return s.floats(2, 27, 368, 496)
    if "MaskedLM" in s.name or "Sequence" in s.name:
        return s.ids(2048, vocab=262)
    return s.floats(SEQ, int(s.find("d_model", default=768)))


MAKERS: dict[str, Callable[[Sizes], Any]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _decoder_tokens,
    "qformer_input_ids": lambda s: s.ids(SEQ // 4),
    "pixel_values": _pixels,
    "pixel_values_videos": _frames,
    "prompt_pixel_values": lambda s: s.image(),
    "prompt_masks": lambda s: s.image(),
    "image": lambda s: s.image(),
    "input_values": _sound,
    "input_features": _features,
    "input_features_mask": lambda s: torch.ones(s.batch, _frames_in(s), dtype=torch.bool, device=s.device),
    "audio_mel": lambda s: s.floats(FRAMES, int(s.find("input_feat_size", default=128))),
    "audio_mel_mask": lambda s: torch.zeros(s.batch, FRAMES, dtype=torch.bool, device=s.device),
    "spectrogram": lambda s: s.floats(FRAMES, int(s.find("model_in_dim", default=80))),
    "mel_spectrogram": lambda s: s.floats(int(s.find("mel_dim", "num_mels", default=80)), FRAMES),
    "bbox": lambda s: s.zeros(s.length(), 4),
    "codebook_idx": lambda _s: 2,
    "hidden_states": _hidden_states,
    "inputs_embeds": lambda s: s.floats(s.length(), int(s.find("hidden_size", "d_model", default=768))),
    "query_embeds": lambda s: s.floats(32, int(s.find("hidden_size", default=768))),
    "latents": lambda s: s.floats(int(s.find("hidden_size", "latent_dim", default=512)), SEQ),
    "grid_thw": _grid,
    "image_grid_thw": _grid,
    "video_grid_thw": _grid,
    "image_grid_hw": lambda s: _grid(s)[:, 1:].contiguous(),
    "image_sizes": lambda s: torch.tensor([s.image_size()] * s.batch, device=s.device),
    "feature_attention_mask": lambda s: torch.ones_like(_features(s)[:, 0], dtype=torch.long),
    "past_values": _past,
    "past_time_features": lambda s: _time_features(s, _history(s)),
    "future_time_features": lambda s: _time_features(s, int(s.find("prediction_length", default=24))),
    "past_observed_mask": lambda s: torch.ones_like(_past(s)),
    "future_values": lambda s: s.floats(int(s.find("prediction_length", default=24))),
    "past_values_padding": lambda s: s.zeros(_history(s)),
    "freq": lambda s: s.zeros(1),
    "flattened_patches": lambda s: s.floats(SEQ * 4, int(s.find("patch_embed_hidden_size", default=768)) + 2),
    "inputs": _inputs,
    "bool_masked_pos": lambda s: torch.ones(s.batch, prod((8, 14, 14)), dtype=torch.bool, device=s.device),
    "state": lambda s: s.floats(int(s.find("state_dim", "max_state_dim", default=32))),
    "time_step": lambda s: torch.rand(s.batch, device=s.device),
    "task_inputs": lambda s: s.ids(int(s.find("task_seq_len", default=77))),
    "pixel_attention_mask": lambda s: s.zeros(GRID * GRID) + 1,
    "spatial_shapes": lambda s: torch.tensor([[GRID, GRID]] * s.batch, device=s.device),
    "aspect_ratio_ids": lambda s: s.zeros(1) + 1,
    "merge_sizes": lambda s: torch.tensor([1], device=s.device),
    "codes": lambda s: s.ids(16, SEQ),
    "quantized_code": lambda s: s.ids(SEQ),
    "residue_index": lambda s: s.zeros(SEQ),
    "lengths": lambda s: torch.full((s.batch,), SEQ, device=s.device),
}
