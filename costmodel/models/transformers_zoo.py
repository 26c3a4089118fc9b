"""``transformers:NAME``: architectures from their published dimensions, without a hub; and checkpoints on this disk.

Dimensions are those of the papers and of the released configurations. Anything in a configuration can be set in the
spec: ``transformers:bert-base,num_hidden_layers=2``; ``attn_implementation=eager`` writes the attention out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CostmodelError, FileError
from . import transformers_classes
from ._compat import require
from .inputs import Loaded, Wanted, image, make_on, refuse, token_ids, unknown

__all__ = ["ARCHITECTURES", "Architecture", "build", "names"]


@dataclass(frozen=True)
class Architecture:
    """A configuration class, a model class, and the dimensions.

    Attributes:
        config, model: names in ``transformers``.
        dims: arguments of the configuration; what is not given is the class's default.
        seq: tokens if none are asked for.
    """

    config: str
    model: str
    dims: dict[str, Any] = field(default_factory=dict)
    seq: int = 128


def _bert(hidden: int, layers: int, heads: int) -> Architecture:
    dims = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    }
    return Architecture("BertConfig", "BertForSequenceClassification", dims)


def _squad(bert: Architecture) -> Architecture:
    return Architecture("BertConfig", "BertForQuestionAnswering", bert.dims, 384)


def _gpt2(hidden: int, layers: int, heads: int, positions: int = 1024) -> Architecture:
    dims = {"n_embd": hidden, "n_layer": layers, "n_head": heads, "n_positions": positions}
    return Architecture("GPT2Config", "GPT2LMHeadModel", dims)


def _opt(hidden: int, layers: int, heads: int) -> Architecture:
    dims = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "word_embed_proj_dim": hidden,
    }
    return Architecture("OPTConfig", "OPTForCausalLM", dims)


def _llama(
    hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, vocab: int, *, tied: bool = False, head: int = 0
) -> Architecture:
    dims = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "head_dim": head or hidden // heads,
    }
    return Architecture("LlamaConfig", "LlamaForCausalLM", dims)


def _mamba(hidden: int, layers: int, vocab: int = 50280) -> Architecture:
    """Mamba-1 (Gu and Dao 2023, table 12): state 16, convolution 4, expansion 2, dt_rank ⌈d/16⌉, tied embedding."""
    dims = {"hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": vocab, "state_size": 16}
    return Architecture("MambaConfig", "MambaForCausalLM", dims)


def _mamba2(
    hidden: int,
    layers: int,
    vocab: int = 50288,
    *,
    groups: int = 1,
    tied: bool = True,
    state: int = 128,
    head: int = 64,
    chunk: int = 256,
) -> Architecture:
    """Mamba-2 (Dao and Gu 2024): heads of 64, state 128, expansion 2; vocabulary padded to a multiple of 16."""
    dims = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "state_size": state,
        "head_dim": head,
        "num_heads": 2 * hidden // head,
        "n_groups": groups,
        "tie_word_embeddings": tied,
        "chunk_size": chunk,
    }
    return Architecture("Mamba2Config", "Mamba2ForCausalLM", dims)


def _vit(hidden: int, layers: int, heads: int, patch: int = 16, size: int = 224) -> Architecture:
    dims = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "patch_size": patch,
        "image_size": size,
        "num_labels": 1000,
    }
    return Architecture("ViTConfig", "ViTForImageClassification", dims)


def _swin(config: str, model: str, embed: int, depths: list[int], heads: list[int], **more: Any) -> Architecture:
    return Architecture(
        config, model, {"embed_dim": embed, "depths": depths, "num_heads": heads, "num_labels": 1000, **more}
    )


_LABELS = {"num_labels": 1000}
_BERT_BASE, _BERT_LARGE = _bert(768, 12, 12), _bert(1024, 24, 16)

ARCHITECTURES: dict[str, Architecture] = {
    # encoders (Devlin et al. 2019; Turc et al. 2019 for the small ones)
    "bert-tiny": _bert(128, 2, 2),
    "bert-mini": _bert(256, 4, 4),
    "bert-small": _bert(512, 4, 8),
    "bert-medium": _bert(512, 8, 8),
    "bert-base": _BERT_BASE,
    "bert-large": _BERT_LARGE,
    "bert-base-squad": _squad(_BERT_BASE),
    "bert-large-squad": _squad(_BERT_LARGE),
    "distilbert": Architecture("DistilBertConfig", "DistilBertForSequenceClassification"),
    "roberta-base": Architecture(
        "RobertaConfig",
        "RobertaForSequenceClassification",
        {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1},
    ),
    "albert-base": Architecture(
        "AlbertConfig",
        "AlbertForSequenceClassification",
        {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
    ),
    "mobilebert": Architecture("MobileBertConfig", "MobileBertForSequenceClassification"),
    # decoders
    "gpt2-tiny": _gpt2(128, 4, 4),
    "distilgpt2": _gpt2(768, 6, 12),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "gpt3-xl": _gpt2(3072, 24, 24, 2048),  # as NeuSight configures it; GPT-3's table 2.1 has 2048 wide
    "gpt3-2.7b": _gpt2(2560, 32, 32, 2048),
    "opt-125m": _opt(768, 12, 12),
    "opt-1.3b": _opt(2048, 24, 32),
    "pythia-160m": Architecture(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "vocab_size": 50304,
        },
    ),
    "llama-tiny": _llama(128, 4, 4, 2, 384, 1024),
    "smollm-135m": _llama(576, 30, 9, 3, 1536, 49152, tied=True),
    "tinyllama-1.1b": _llama(2048, 22, 32, 4, 5632, 32000),
    "llama3.2-1b": _llama(2048, 16, 32, 8, 8192, 128256, tied=True),
    "llama2-7b": _llama(4096, 32, 32, 32, 11008, 32000),
    "qwen2.5-0.5b": Architecture(
        "Qwen2Config",
        "Qwen2ForCausalLM",
        {
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
    ),
    # state-space models
    "mamba-tiny": _mamba(128, 4, 256),
    "mamba-130m": _mamba(768, 24),
    "mamba-370m": _mamba(1024, 48),
    "mamba-790m": _mamba(1536, 48),
    "mamba-1.4b": _mamba(2048, 48),
    "mamba-2.8b": _mamba(2560, 64),
    "mamba2-tiny": _mamba2(128, 4, 256, state=64, head=32, chunk=64),
    "mamba2-130m": _mamba2(768, 24),
    "mamba2-370m": _mamba2(1024, 48),
    "mamba2-780m": _mamba2(1536, 48),
    "mamba2-1.3b": _mamba2(2048, 48),
    "mamba2-2.7b": _mamba2(2560, 64),
    "mamba2-8b": _mamba2(4096, 56, 256000, groups=8, tied=False),  # Waleffe et al. 2024
    # encoder-decoders
    "t5-small": Architecture("T5Config", "T5ForConditionalGeneration"),
    "whisper-tiny": Architecture(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            "d_model": 384,
            "encoder_layers": 4,
            "decoder_layers": 4,
            "encoder_attention_heads": 6,
            "decoder_attention_heads": 6,
            "encoder_ffn_dim": 1536,
            "decoder_ffn_dim": 1536,
            "vocab_size": 51865,
        },
        16,
    ),
    # images
    "vit-tiny": _vit(192, 12, 3),
    "vit-small": _vit(384, 12, 6),
    "vit-base": _vit(768, 12, 12),
    "swin-tiny": _swin("SwinConfig", "SwinForImageClassification", 96, [2, 2, 6, 2], [3, 6, 12, 24]),
    "swinv2-tiny": _swin(
        "Swinv2Config", "Swinv2ForImageClassification", 96, [2, 2, 6, 2], [3, 6, 12, 24], image_size=256, window_size=8
    ),
    "levit-256": Architecture(
        "LevitConfig",
        "LevitForImageClassification",
        {"hidden_sizes": [256, 384, 512], "num_attention_heads": [4, 6, 8], "key_dim": [32, 32, 32], **_LABELS},
    ),
    "mobilevit-small": Architecture("MobileViTConfig", "MobileViTForImageClassification", _LABELS),
    "mobilenet-v2": Architecture("MobileNetV2Config", "MobileNetV2ForImageClassification", {"num_labels": 1001}),
    "convnext-tiny": Architecture("ConvNextConfig", "ConvNextForImageClassification", _LABELS),
    "segformer-b0": Architecture("SegformerConfig", "SegformerForSemanticSegmentation", {"num_labels": 150}),
}


def names() -> list[str]:
    """Names of the table; nothing is imported for it."""
    return list(ARCHITECTURES)


def build(name: str, options: dict[str, Any], wanted: Wanted) -> Loaded:
    """The architecture `name` with random weights, or the checkpoint in the folder `name`."""
    transformers = require("transformers")
    spec = f"transformers:{name}"
    if name not in ARCHITECTURES and transformers_classes.is_class(name):
        return transformers_classes.build(name, options, wanted)
    if _is_folder(name):
        folder = Path(name).expanduser()
        config, model_class = _read_folder(transformers, folder)
        seq = wanted.seq or 128
    else:
        if name not in ARCHITECTURES:
            unknown("transformers configuration", name, ARCHITECTURES, "transformers")
        folder, architecture = None, ARCHITECTURES[name]
        model_class = getattr(transformers, architecture.model)
        config = _configure(transformers, spec, architecture, options, wanted)
        seq = wanted.seq or architecture.seq
    if folder is not None and (options or wanted.input_size):
        raise CostmodelError(f"{spec} is a checkpoint: its dimensions are fixed, leave settings and --input-size out")
    if hasattr(config, "use_cache"):
        config.use_cache = False  # a cache is part of prefill and decode only, and is asked for there
    kwargs = _inputs(spec, config, model_class, wanted, seq)
    model = _build(model_class, config, folder, wanted)
    source = f"transformers {transformers.__version__}" + (f", weights {folder}" if folder else "")
    first = model_class.main_input_name
    task = {"input_ids": "text", "pixel_values": "image"}.get(first, "other")
    return Loaded(spec, model, (), kwargs, task, source)


def _is_folder(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or (name not in ARCHITECTURES and Path(name).is_dir())


def _configure(
    transformers: Any, spec: str, architecture: Architecture, options: dict[str, Any], wanted: Wanted
) -> Any:
    config_class = getattr(transformers, architecture.config)
    settable = {*config_class().to_dict(), "attn_implementation", "num_labels"}
    for key in options:
        if key not in settable:
            unknown(f"setting of {architecture.config}", key, sorted(settable), "")
    settings = {**architecture.dims, **options}
    if wanted.input_size is not None and "num_channels" in settable:
        settings |= _image_settings(spec, settable, wanted.input_size)
    try:
        config = config_class(**settings)
    except (TypeError, ValueError) as error:
        raise CostmodelError(f"{spec}: {architecture.config} does not take {options}: {error}") from error
    if config.model_type == "swin":
        _check_windows(spec, config)
    return config


def _check_windows(spec: str, config: Any) -> None:
    """transformers' Swin builds its bias for the whole window and then fails in stages that are narrower."""
    narrowing = config.patch_size * 2 ** (len(config.depths) - 1)
    last = config.image_size // narrowing
    if last < config.window_size:
        size = config.window_size * narrowing
        raise CostmodelError(
            f"{spec} has windows of {config.window_size} and, at {config.image_size} pixels, a last stage of {last}; "
            f"use --input-size 3x{size}x{size} or set window_size={last}"
        )


def _image_settings(spec: str, settable: set[str], size: tuple[int, ...]) -> dict[str, int]:
    if len(size) != 3 or size[1] != size[2]:
        raise CostmodelError(f"{spec} takes square images like 3x224x224, not {'x'.join(map(str, size))}")
    settings = {"image_size": size[1], "num_channels": size[0]}
    return {key: value for key, value in settings.items() if key in settable}


def _read_folder(transformers: Any, folder: Path) -> tuple[Any, Any]:
    """Configuration and model class of a checkpoint; code in the folder is not run, pickles are not read."""
    file = folder / "config.json"
    if not file.is_file():
        raise FileError(
            folder, "config.json", "no such file; a checkpoint folder has config.json and model.safetensors"
        )
    try:
        written = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise FileError(file, "", f"is not JSON ({error})") from error
    if not isinstance(written, dict):
        raise FileError(file, "", "is not a JSON object")
    if "auto_map" in written:
        raise FileError(
            file, "auto_map", "the checkpoint brings code of its own, which is not run; use file.py:function"
        )
    architectures = written.get("architectures") or []
    model_class: Any = getattr(transformers, architectures[0], None) if architectures else None
    known: bool = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    if not known:
        raise FileError(
            file, "architectures", f"{architectures!r} names no model of transformers {transformers.__version__}"
        )
    if not list(folder.glob("*.safetensors")):
        raise FileError(folder, "*.safetensors", "no such file; pickled weights (.bin, .pt) are not read: convert them")
    try:
        config = model_class.config_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise FileError(file, "", f"transformers does not take it ({type(error).__name__}: {error})") from error
    return config, model_class


def _build(model_class: Any, config: Any, folder: Path | None, wanted: Wanted) -> nn.Module:
    if folder is not None and wanted.device != "meta":
        try:
            model: nn.Module = model_class.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except Exception as error:
            raise FileError(folder, "", f"the weights do not load ({type(error).__name__}: {error})") from error
        return model
    return make_on(wanted.device, partial(model_class, config))


def _inputs(spec: str, config: Any, model_class: Any, wanted: Wanted, seq: int) -> dict[str, Any]:
    """Keyword arguments by the model's main input; a decoder beside an encoder reads `seq` tokens too."""
    main = model_class.main_input_name
    kwargs: dict[str, Any] = {}
    if main == "input_ids":
        refuse(spec, wanted, input_size="reads tokens")
        _check_length(spec, config, seq)
        kwargs[main] = token_ids(wanted, config.vocab_size, seq)
    elif main == "pixel_values":
        refuse(spec, wanted, seq="reads images")
        size = wanted.input_size or _config_size(config)
        kwargs[main] = image(wanted, *size)
    elif main == "input_features":
        refuse(spec, wanted, input_size="reads spectrograms of a fixed length")
        kwargs[main] = image(wanted, config.num_mel_bins, 2 * config.max_source_positions)
    else:
        raise CostmodelError(f"{spec} reads {main}, which costmodel makes no example of; use a file.py:function")
    encoder_decoder = getattr(config, "is_encoder_decoder", False)
    causal = not encoder_decoder and any(head in model_class.__name__ for head in ("CausalLM", "LMHead"))
    if not causal:
        refuse(spec, wanted, cache="is not a decoder alone")
    if encoder_decoder:
        kwargs["decoder_input_ids"] = token_ids(wanted, config.vocab_size, seq)
    return kwargs


def _config_size(config: Any) -> tuple[int, int, int]:
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return getattr(config, "num_channels", 3), height, width


def _check_length(spec: str, config: Any, seq: int) -> None:
    """Learned positions end; models with rotary or no positions do not."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or hasattr(config, "rope_theta") or getattr(config, "rope_parameters", None):
        return
    usable = limit - 2 if config.model_type in {"roberta"} else limit  # positions start after the padding index
    if seq > usable:
        raise CostmodelError(f"{spec} has positions for {usable} tokens, not {seq}; set max_position_embeddings={seq}")
