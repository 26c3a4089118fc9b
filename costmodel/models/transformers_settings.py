"""Settings without which a class of transformers builds no model, or none that runs, at its own defaults.

Most configurations default to a published checkpoint. Some leave a size out (``None``), contradict themselves, or name
no backbone: what the checkpoint in their documentation has is filled in here, by the name of the configuration's
class, at whatever depth of a composite configuration it stands, or by the name of the model's class. Sizes that no
document gives are examples that the other defaults allow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._compat import require

__all__ = ["complete", "finish", "parts", "settings_of"]

_TEXT = {"is_decoder": True, "add_cross_attention": True}
_LOCAL = {"rope_type": "default", "rope_theta": 10_000.0}
_MROPE = {**_LOCAL, "mrope_section": [8, 12, 12], "partial_rotary_factor": 0.5}
# kernel, stride and padding of the long, middle and short strips of a text detector
_PPOCR = {
    "kernel_list": [3, 2, 2],
    "scale_factor_list": [1, 2, 4, 8],
    "intraclass_block_config": {
        "reduce_channel": [1, 1, 0],
        "return_channel": [1, 1, 0],
        **{
            f"{way}_{name}ratio": [kernel, 1, padding]
            for name, n in (("long", 7), ("mid", 5), ("short", 3))
            for way, kernel, padding in (
                ("vertical_long_to_small_conv", [n, 1], [n // 2, 0]),
                ("horizontal_small_to_long_conv", [1, n], [0, n // 2]),
                ("symmetric_conv_long", [n, n], [n // 2, n // 2]),
            )
        },
    },
}
# kernel, channels in and out, stride, squeeze and excitation of the blocks of a stage, for detection
_LCNET = {
    "model_type": "pp_lcnet_v4",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
    "block_configs": [
        [[3, 96, 96, 1, True]],
        [[3, 96, 96, 2, False], [3, 96, 96, 1, False]],
        [[3, 96, 192, 2, False], *[[3, 192, 192, 1, i % 2 == 0] for i in range(6)]],
        [[3, 192, 384, 2, False], [3, 384, 384, 1, True], [3, 384, 384, 1, False]],
    ],
}

_SETTINGS: dict[str, dict[str, Any]] = {
    "AutoformerConfig": {"prediction_length": 24},
    "BayesianDetectorConfig": {"watermarking_depth": 30},
    "Blip2Config": {"image_token_index": 50264},
    "BridgeTowerConfig": {"contrastive_hidden_size": 512, "logit_scale_init_value": 2.6592},
    "ChameleonConfig": {"vocabulary_map": {"<image>": 8711, "IMGIMGAZ": 4}},
    "CohereCompassTextConfig": {"rope_parameters": {"full_attention": _LOCAL, "sliding_attention": _LOCAL}},
    "DbrxConfig": {
        "d_model": 6144,
        "n_heads": 48,
        "attn_config": {"kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500_000.0},
        "ffn_config": {"ffn_hidden_size": 10_752, "moe_num_experts": 16, "moe_top_k": 4},
    },
    "DeepseekOcr2TextConfig": {"num_experts_per_tok": 6, "mlp_layer_types": ["dense"] + ["sparse"] * 31},
    "DeepseekOcr2VisionEncoderConfig": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "num_hidden_layers": 24,
        "layer_types": None,
    },
    "DeepseekV2Config": {"num_experts_per_tok": 6},
    "DiffusionGemmaTextConfig": {"num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704},
    "Dots1Config": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "EdgeTamVisionConfig": {
        "backbone_config": {
            "model_type": "timm_wrapper",
            "architecture": "repvit_m1.dist_in1k",
            "num_classes": 1000,
            "model_args": {"in_chans": 3, "features_only": True, "out_indices": (0, 1, 2, 3)},
        }
    },
    "Emu3Config": {
        "vocabulary_map": {"<image>": 151_851, "<|extra_200|>": 151_846, "<|visual token 000000|>": 151_854}
    },
    "EsmConfig": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "Gemma4AssistantConfig": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 4,
        }
    },
    "Glm4vMoeTextConfig": {"rope_parameters": _MROPE, "head_dim": 128},
    "Glm4vTextConfig": {"rope_parameters": _MROPE},
    "GlmImageTextConfig": {"rope_parameters": _MROPE},
    "Granite4VisionConfig": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-4, 0]],
        "spatial_target_layers": [0, 1, 0, 1],
    },
    "HunYuanVLTextConfig": {"rope_parameters": {**_LOCAL, "mrope_section": [16, 16, 16, 16]}},
    "InformerConfig": {"prediction_length": 24},
    "InstructBlipConfig": {"image_token_index": 50264},
    "InstructBlipVideoConfig": {"video_token_index": 50264},
    "Lfm2MoeConfig": {"layer_types": (["conv"] * 3 + ["full_attention"]) * 8},
    "LwDetrConfig": {"projector_scale_factors": [1.0]},
    "MoonshineStreamingConfig": {"num_key_value_heads": 8},
    "OmDetTurboConfig": {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "swin_tiny_patch4_window7_224",
            "out_indices": [1, 2, 3],
        }
    },
    "PPDocLayoutV2Config": {"class_thresholds": [0.5] * 20, "class_order": list(range(20))},
    "PPOCRV5ServerDetConfig": _PPOCR,
    "PPOCRV6MediumDetConfig": {**_PPOCR, "backbone_config": _LCNET},
    "PPOCRV6SmallDetConfig": {"backbone_config": _LCNET, "layer_list_out_channels": [96, 96, 192, 384]},
    "PaliGemmaConfig": {
        "projection_dim": 3072,
        "vision_config": {"projection_dim": 3072, "model_type": "siglip_vision_model"},
    },
    "PerceptionLMConfig": {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "model_args": {"embed_dim": 1024, "img_size": [448, 448], "use_post_transformer_norm": False},
        }
    },
    "PerceiverForImageClassificationConvProcessing": {"d_model": 322, "num_cross_attention_heads": 1},
    "PerceiverForImageClassificationFourier": {"d_model": 261, "num_cross_attention_heads": 1},
    "PerceiverForOpticalFlow": {"d_model": 322, "num_cross_attention_heads": 1},
    "PerceiverForMultimodalAutoencoding": {"d_model": 704, "num_cross_attention_heads": 1},
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 2048,
        "indexer_compress_ratio": 64,
    },
    "Step3p7TextConfig": {"sliding_window": 512},
    "TimeSeriesTransformerConfig": {"prediction_length": 24},
    "TimmBackboneConfig": {"backbone": "resnet50"},
    "VitMatteConfig": {"hidden_size": 768, "fusion_hidden_sizes": [256, 128, 64, 32]},
    "Wav2Vec2BertForCTC": {"vocab_size": 32},
    "Wav2Vec2ConformerForCTC": {"vocab_size": 32},
    "XmodConfig": {"default_language": "en_XX"},
}


def _composites() -> dict[str, Callable[[], dict[str, Any]]]:
    """Parts of the classes that combine any two models and so have no default of their own."""
    t = require("transformers")

    def decoder() -> Any:
        return t.BertConfig(**_TEXT).to_dict()

    return {
        "EncoderDecoderConfig": lambda: {"encoder": t.BertConfig().to_dict(), "decoder": decoder()},
        "SpeechEncoderDecoderConfig": lambda: {"encoder": t.Wav2Vec2Config().to_dict(), "decoder": decoder()},
        "VisionEncoderDecoderConfig": lambda: {"encoder": t.ViTConfig().to_dict(), "decoder": decoder()},
        "VisionTextDualEncoderConfig": lambda: {
            "vision_config": t.ViTConfig().to_dict(),
            "text_config": t.BertConfig().to_dict(),
        },
        "RagConfig": lambda: {
            "question_encoder": t.DPRConfig().to_dict(),
            "generator": t.BartConfig().to_dict(),
        },
    }


def settings_of(name: str) -> dict[str, Any]:
    """What the configuration or model class `name` needs beside its defaults; empty for most."""
    composite = _composites().get(name)
    return dict(composite() if composite is not None else _SETTINGS.get(name, {}))


def complete(config_class: Any, model_name: str, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A configuration that builds a model, and what its class was called with.

    Args:
        config_class: of transformers.
        model_name: of the model's class.
        settings: the user's own; they come before what is filled in.
    """
    given = {**settings_of(config_class.__name__), **settings_of(model_name), **settings}
    config = config_class(**given)
    changed = {name: _completed(part) for name, part in parts(config) if name not in given and _lacks(part)}
    if changed:
        given |= {name: part.to_dict() for name, part in changed.items()}
        config = config_class(**given)
    if model_name.endswith("ForSequenceClassification") and getattr(config, "pad_token_id", 0) is None:
        given["pad_token_id"] = config.pad_token_id = 0  # by which the end of each sequence of a batch is found
    return config, given


def finish(config: Any) -> None:
    """Fill in what a configuration leaves to be derived, and make an encoder's output as wide as the text is."""
    for part in (config, *(part for _, part in parts(config))):
        _derive(part)
    named = dict(parts(config))
    text, vision = named.get("text_config"), named.get("vision_config")
    width = getattr(text, "hidden_size", None)
    if type(width) is int and vision is not None:
        for name in ("out_hidden_size", "text_hidden_size"):
            if type(getattr(vision, name, None)) is int:
                setattr(vision, name, width)
        if "embed_dim" in vars(vision) and "hidden_size" in vars(vision):  # of Qwen2-VL: in, and out
            vision.hidden_size = width


def parts(config: Any) -> list[tuple[str, Any]]:
    """(attribute, configuration) of the parts of a composite configuration."""
    base = require("transformers").PreTrainedConfig
    return [(name, value) for name, value in vars(config).items() if isinstance(value, base)]


def _lacks(config: Any) -> bool:
    return bool(settings_of(type(config).__name__)) or any(_lacks(part) for _, part in parts(config))


def _completed(config: Any) -> Any:
    """A part as its parent made it, but for what it lacks."""
    names = set(type(config).__dataclass_fields__) - set(dict(parts(config))) - set(settings_of(type(config).__name__))
    return complete(type(config), "", {k: v for k, v in config.to_diff_dict().items() if k in names})[0]


def _derive(config: Any) -> None:
    """Widths and numbers of heads that the model reads as they are."""
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if type(heads) is int and type(width) is int and heads and width % heads == 0:
        if vars(config).get("head_dim", 0) is None:
            config.head_dim = width // heads
        if vars(config).get("num_key_value_heads", 0) is None:
            config.num_key_value_heads = heads
