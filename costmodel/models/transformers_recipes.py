"""Inputs of the models of transformers that take more, or others, than the names in their signature tell.

A recipe is found by the name of the model's class, else by the ``model_type`` of its configuration. It maps an input
to how it is made, or to None where it has to be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ._compat import require
from .transformers_makers import FRAMES, GRID, MAKERS, SEQ, Sizes

__all__ = ["RECIPES", "recipe_of"]

Recipe = dict[str, Callable[[Sizes], Any] | None]


def recipe_of(name: str, kind: str) -> Recipe:
    """The recipe of a model class, else of its kind; empty for most."""
    return RECIPES.get(name, RECIPES.get(kind, {}))


def _half_height(s: Sizes) -> Tensor:
    height, width = s.image_size()  # of the image over its prompt
    return s.floats(3, height // 2, width)


def _mask(*shape: int) -> Callable[[Sizes], Tensor]:
    return lambda s: torch.ones(s.batch, *shape, dtype=torch.bool, device=s.device)


def _ones(*shape: int) -> Callable[[Sizes], Tensor]:
    return lambda s: s.zeros(*shape) + 1


def _frames_of(bins: int, frames: int = FRAMES) -> Callable[[Sizes], Tensor]:
    return lambda s: s.floats(frames, bins)


def _bins_first(bins: int, frames: int) -> Callable[[Sizes], Tensor]:
    return lambda s: s.floats(bins, frames)


def _backbone_map(channels: int, *size: int) -> Callable[[Sizes], Tensor]:
    return lambda s: s.floats(channels, *size)


def _patches(s: Sizes) -> Tensor:
    width = s.channels() * int(s.find("patch_size", part="vision")) ** 2
    return s.floats(GRID * GRID, width)


def _patches_in_threes(s: Sizes) -> Tensor:
    """As many patches each way as a pooling by three divides."""
    return s.floats(12 * 12, s.channels() * int(s.find("patch_size", part="vision")) ** 2)


def _positions_in_threes(s: Sizes) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], -1).expand(s.batch, -1, -1).contiguous().to(s.device)


def _shared_cache(s: Sizes) -> dict[str, tuple[Tensor, Tensor]]:
    """Keys and values of the target model that an assistant reads, a pair for each type of layer."""
    heads, wide = int(s.find("num_key_value_heads", part="text")), 512
    width = int(s.find("head_dim", part="text"))
    sizes = {"full_attention": wide, "sliding_attention": width}
    return {k: (s.floats(heads, SEQ, d), s.floats(heads, SEQ, d)) for k, d in sizes.items()}


def _prefix(s: Sizes) -> Any:
    """The cache of keys and values that an encoder of the same layers has left, `SEQ` tokens of it."""
    cache = require("transformers").DynamicCache()
    layers: Any = s.model.layers
    for i, layer in enumerate(layers):
        width = layer.self_attn.head_dim
        heads = layer.self_attn.k_proj.out_features // width
        cache.update(s.floats(heads, SEQ, width), s.floats(heads, SEQ, width), i)
    return cache


_ATOMS = 8  # of each residue of a protein: a multiple of the window for `SEQ` residues


def _atoms(s: Sizes) -> Any:
    """Reference conformers of `SEQ` residues, `_ATOMS` atoms each: as ESMFold2 takes them, before its own encoding."""
    atoms = SEQ * _ATOMS
    of_residue = (torch.arange(atoms, device=s.device) // _ATOMS).expand(s.batch, -1).contiguous()
    module = import_module(type(s.model).__module__)
    return module.EsmFold2AtomInputs(
        ref_pos=s.floats(atoms, 3),
        ref_charge=s.floats(atoms),
        atom_attention_mask=_mask(atoms)(s),
        ref_element=s.ids(atoms, vocab=int(s.find("max_atomic_number"))),
        ref_atom_name_chars=s.ids(atoms, 4, vocab=int(s.find("char_vocab_size"))),
        ref_space_uid=of_residue,
        atom_to_token=of_residue,
    )


def _counted(s: Sizes) -> Tensor:
    return torch.arange(SEQ, device=s.device).expand(s.batch, -1).contiguous()


def _codes(books: int) -> Callable[[Sizes], Tensor]:
    return lambda s: s.ids(s.length(), books)


def _rows_of_codes(s: Sizes) -> Tensor:
    """Token ids with a row for each codebook of each sample."""
    books = int(s.find("num_codebooks", default=4, part="decoder"))
    return torch.randint(1000, (s.batch * books, s.length()), device=s.device)


def _question(s: Sizes) -> Tensor:
    """Token ids with the question token of Splinter once a sample."""
    ids = s.ids(s.length())
    ids[:, 5] = int(s.find("question_token_id", default=104))
    return ids


def _with_tokens(name: str, count: int) -> Callable[[Sizes], Tensor]:
    """Token ids, `count` of them the one that stands for a part of an image, a video or a sound."""

    def make(s: Sizes) -> Tensor:
        ids = s.ids(count + s.length())
        ids[:, :count] = int(s.find(f"{name}_token_id", f"{name}_token_index"))
        return ids

    return make


def _embeds(*names: str) -> Callable[[Sizes], Tensor]:
    return lambda s: s.floats(s.length(), int(s.find(*names, "hidden_size", default=768)))


_ASSISTANT: Recipe = {
    "input_ids": None,
    "inputs_embeds": lambda s: s.floats(1, 2 * int(s.find("backbone_hidden_size"))),
    "shared_kv_states": _shared_cache,
}
_ENTITIES: Recipe = {"entity_ids": _ones(2), "entity_position_ids": lambda s: s.zeros(2, 8)}
_SVTR: dict[str, int] = {
    "PPOCRV5MobileRecEncoderWithSVTR": 384,
    "PPOCRV5ServerRecEncoderWithSVTR": 2048,
    "PPOCRV6SmallRecEncoderWithSVTR": 384,
}

RECIPES: dict[str, Recipe] = {
    "BarkFineModel": {"input_ids": _codes(8)},
    "BayesianDetectorModel": {
        "input_ids": None,
        "g_values": lambda s: s.ids(SEQ, int(s.find("watermarking_depth")), vocab=2),
        "mask": _ones(SEQ),
    },
    "Blip2QFormerModel": {"encoder_hidden_states": lambda s: s.floats(257, int(s.find("encoder_hidden_size")))},
    "DeepseekOcr2VisionModel": {"pixel_values": lambda s: s.floats(3, 1024, 1024)},
    "DiffusionGemmaDecoderModel": {"past_key_values": _prefix},
    "Dots3NoteAudioModel": {
        "input_features": _bins_first(128, 3000),
        "chunk_sample_lengths": lambda s: torch.full((s.batch,), 480_000, device=s.device),
    },
    "EsmFold2Model": {
        "token_index": _counted,
        "residue_index": _counted,
        **{name: lambda s: s.zeros(SEQ) for name in ("asym_id", "sym_id", "entity_id", "mol_type")},
        "res_type": lambda s: s.ids(SEQ, vocab=20),
        "token_bonds": lambda s: s.floats(SEQ, SEQ, 1),
        "attention_mask": _mask(SEQ),
        "atom_inputs": _atoms,
        "input_ids": lambda s: s.ids(SEQ, vocab=20),
    },
    "FlavaForPreTraining": {
        "codebook_pixel_values": lambda s: s.floats(3, 112, 112),
        "bool_masked_pos": lambda s: (torch.arange(196, device=s.device) % 3 == 0).expand(s.batch, -1).contiguous(),
    },
    "Florence2VisionBackbone": {"hidden_states": lambda s: s.image()},
    "FunAsrNanoEncoder": {"input_features": _frames_of(560)},
    "Gemma4AssistantForCausalLM": _ASSISTANT,
    "Gemma4AudioModel": {"input_features": _frames_of(128)},
    "Gemma4UnifiedAssistantForCausalLM": _ASSISTANT,
    "Gemma4VisionModel": {"pixel_values": _patches_in_threes, "pixel_position_ids": _positions_in_threes},
    "GraniteSpeech5Encoder": {"input_features": _frames_of(320)},
    "GraniteSpeech5ForCTC": {"input_features": _frames_of(320)},
    "GraniteSpeechCTCEncoder": {"hidden_states": _frames_of(160)},
    "GraniteSpeechPlusCTCEncoder": {"hidden_states": _frames_of(160)},
    "IdeficsForVisionText2Text": {
        "pixel_values": lambda s: s.image(1),
        "image_attention_mask": lambda s: s.zeros(s.length(), 1) + 1,
    },
    "InstructBlipForConditionalGeneration": {"input_ids": _with_tokens("image", 32)},
    "InstructBlipVideoForConditionalGeneration": {
        "pixel_values": lambda s: s.image(4),
        "input_ids": _with_tokens("video", 4 * 32),
    },
    "JevForDecision": {
        "marks": lambda s: s.zeros(1) + 8,
        "num_options": lambda s: s.zeros(1) + 2,
        "question_type_ids": lambda s: s.zeros(1),
    },
    "Kosmos2ForConditionalGeneration": {
        "input_ids": lambda s: s.ids(2 * SEQ),
        "image_embeds_position_mask": lambda s: (torch.arange(2 * SEQ) < 64).expand(s.batch, -1).contiguous(),
    },
    "KyutaiSpeechToTextForConditionalGeneration": {"input_ids": _codes(33)},
    "LukeForEntityClassification": _ENTITIES,
    "LxmertForPreTraining": {"visual_feats": lambda s: s.floats(36, 2048), "visual_pos": lambda s: s.floats(36, 4)},
    "Molmo2ForConditionalGeneration": {"mm_token_type_ids": lambda s: s.zeros(s.length())},
    "MuseGlimmerAssistantModel": {
        "noise_embeds": lambda s: s.floats(16, int(s.find("hidden_size"))),
        "context_hidden_states": lambda s: s.floats(SEQ, 5 * int(s.find("hidden_size"))),
    },
    "MusicgenForCausalLM": {"input_ids": _rows_of_codes},
    "MusicgenMelodyForCausalLM": {"input_ids": _rows_of_codes},
    "NemotronH_Omni_Reasoning_V3": {"pixel_values": None, "input_features": None},
    "NeuCodecModel": {"input_features": _frames_of(160, 50), "input_features_mask": _ones(50)},
    "OmDetTurboForObjectDetection": {
        "classes_input_ids": lambda s: s.ids(16).repeat(2, 1),
        "classes_attention_mask": lambda s: torch.ones(2 * s.batch, 16, dtype=torch.long, device=s.device),
        "tasks_input_ids": lambda s: s.ids(16),
        "tasks_attention_mask": _ones(16),
        "pixel_values": lambda s: s.floats(3, 224, 224),
        "classes_structure": lambda s: torch.full((s.batch,), 2, device=s.device),
    },
    "PI0ForConditionalGeneration": {
        "pixel_values": lambda s: s.image(1),
        "pixel_attention_mask": _mask(1),
        "input_ids": _with_tokens("image", 256),
        "attention_mask": _ones(256 + SEQ),
    },
    "PPOCRV6TinyRecForTextRecognition": {"pixel_values": lambda s: s.floats(3, 48, 320)},
    "PeVideoEncoder": {"pixel_values_videos": lambda s: s.floats(8, 3, 336, 336)},
    "PeAudioVideoEncoder": {"pixel_values_videos": lambda s: s.floats(8, 3, 336, 336)},
    "PerceiverForOpticalFlow": {"inputs": lambda s: s.floats(2, 27, 368, 496)},
    "Pop2PianoForConditionalGeneration": {"input_ids": None, "input_features": _embeds("d_model")},
    "Qwen2_5OmniTalkerForConditionalGeneration": {
        "thinker_reply_part": lambda s: s.floats(8, int(s.find("embedding_size", default=3584)))
    },
    "Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration": {"generation_steps": lambda _s: 1},
    "RagModel": {
        "context_input_ids": lambda s: s.ids(SEQ).repeat(5, 1),
        "context_attention_mask": lambda s: torch.ones(5 * s.batch, SEQ, dtype=torch.long, device=s.device),
        "doc_scores": lambda s: s.floats(5),
    },
    "ReformerForMaskedLM": {"input_ids": lambda s: s.ids(s.wanted.seq or 4096)},  # in training: its axes' product
    "RfDetrForObjectDetection": {"pixel_values": lambda s: s.floats(3, 512, 512)},
    "SLANeXtBackbone": {"hidden_states": lambda s: s.floats(3, 512, 512)},
    "SLANetBackbone": {"hidden_states": lambda s: s.floats(3, 488, 488)},
    "SeamlessM4TTextToUnitForConditionalGeneration": {"input_ids": None, "inputs_embeds": _embeds()},
    "Siglip2ForImageClassification": {
        "pixel_values": _patches,
        "pixel_attention_mask": _ones(GRID * GRID),
        "spatial_shapes": MAKERS["spatial_shapes"],
    },
    "SpeechEncoderDecoderModel": {"inputs": None, "input_values": lambda s: s.floats(16_000)},
    "SpeechT5ForSpeechToSpeech": {
        "decoder_input_ids": None,
        "decoder_input_values": _frames_of(80, SEQ),
        "speaker_embeddings": lambda s: s.floats(512),
    },
    "SplinterForPreTraining": {"input_ids": _question},
    "TvpForVideoGrounding": {"pixel_values": lambda s: s.floats(1, 3, 448, 448)},
    "VideoMAEForPreTraining": {
        "bool_masked_pos": lambda s: (torch.arange(1568, device=s.device) % 10 > 0).expand(s.batch, -1).contiguous()
    },
    "VibeVoiceAsrForConditionalGeneration": {"input_values": None},
    "VibeVoiceForConditionalGeneration": {"input_values": None},
    "VoxtralForConditionalGeneration": {"input_features": None},
    "VoxtralRealtimeForConditionalGeneration": {"input_features": _bins_first(128, 8 * SEQ)},
    "Wav2Vec2BertForCTC": {"input_features": _frames_of(160)},
    "Xcodec2Model": {"input_features": _frames_of(160, 50), "input_features_mask": _ones(50)},
    "csm": {"input_values": None},
    "efficientloftr": {"pixel_values": lambda s: s.floats(2, 3, 224, 224)},
    "seggpt": {"pixel_values": _half_height, "prompt_pixel_values": _half_height, "prompt_masks": _half_height},
    **{name: {"hidden_states": _backbone_map(channels, 1, 80)} for name, channels in _SVTR.items()},
}
