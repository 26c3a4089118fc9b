"""``validate --suite host``: many models on this machine, some never looked at while the form was chosen.

`DEVELOPMENT` and `SECOND_ROUND` may be looked at: they hold what was frozen in earlier rounds. `FROZEN` is the third
draw as it was first run and reported; its misses have been looked at since. `FOURTH_ROUND` was drawn by the rule of
`host_draw` and has not been run: it is for the end of the next calibration, whatever comes out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UnknownName
from .job import Job

__all__ = [
    "DEVELOPMENT", "FOURTH_ROUND", "FROZEN", "PARTS", "SECOND_ROUND", "host_groups", "host_parts", "repeats_file",
]  # fmt: skip

Groups = tuple[tuple[Job, ...], ...]


def _infer(*models: str) -> tuple[Job, ...]:
    return tuple(Job(m, "infer") for m in models)


def _train(*models: str, batch: int = 4, input_size: str | None = None) -> tuple[Job, ...]:
    return tuple(Job(m, "train", batch=batch, input_size=input_size) for m in models)


# Drawn by the rule of `host_draw` for the second session, run once while frozen, looked at since.
SECOND_ROUND: tuple[Job, ...] = (
    Job("timm:resnet32ts", "infer", batch=4),
    Job("timm:cs3darknet_s", "infer", batch=32, input_size="3x192x192"),
    Job("timm:resnet50d", "infer", input_size="3x320x320"),
    Job("timm:gernet_s", "infer", input_size="3x320x320"),
    Job("torchvision:resnet101", "infer", input_size="3x192x192"),
    Job("timm:cspresnet50", "infer", input_size="3x256x256"),
    Job("timm:fasternet_t2", "infer", batch=4, input_size="3x128x128"),
    Job("timm:mobileone_s1", "infer", batch=4, input_size="3x160x160"),
    Job("timm:efficientnet_b2_pruned", "infer", batch=2, input_size="3x192x192"),
    Job("timm:tf_efficientnet_b1", "infer", batch=4, input_size="3x160x160"),
    Job("timm:ghostnetv2_100", "infer", input_size="3x192x192"),
    Job("timm:fbnetv3_b", "infer", batch=16),
    Job("timm:mobilenetv1_100", "infer", input_size="3x256x256"),
    Job("timm:mnasnet_140", "infer", batch=32, input_size="3x192x192"),
    Job("timm:densenetblur121d", "infer", batch=2, input_size="3x192x192"),
    Job("timm:ese_vovnet39b", "infer", input_size="3x256x256"),
    Job("timm:vovnet39a", "infer", batch=2),
    Job("timm:dpn68b", "infer", input_size="3x320x320"),
    Job("timm:resnext26ts", "infer", input_size="3x192x192"),
    Job("timm:dla46x_c", "infer", batch=4),
    Job("timm:convnextv2_femto", "infer", batch=16, input_size="3x192x192"),
    Job("timm:inception_next_atto", "infer", batch=16),
    Job("timm:fastvit_t12", "infer", batch=2, input_size="3x256x256"),
    Job("timm:convnext_pico_ols", "infer", input_size="3x256x256"),
    Job("timm:vit_small_patch32_224", "infer"),
    Job("timm:crossvit_9_240", "infer"),
    Job("timm:vit_wee_patch16_reg1_gap_256", "infer"),
    Job("timm:pit_xs_224", "infer"),
    Job("timm:swin_small_patch4_window7_224", "infer"),
    Job("torchvision:swin_v2_t", "infer"),
    Job("timm:gmlp_ti16_224", "infer", batch=16),
    Job("timm:gmixer_12_224", "infer"),
    Job("timm:repvit_m1_1", "infer"),
    Job("timm:tiny_vit_5m_224", "infer", batch=16),
    Job("timm:mobilevit_xxs", "infer"),
    Job("timm:efficientvit_b1", "infer"),
    Job("transformers:gpt2-tiny,n_embd=384,n_head=6", "infer", batch=4, seq=80),
    Job("transformers:albert-base", "infer", seq=192),
    Job("transformers:mamba2-130m", "prefill", seq=32),
    Job("transformers:mamba2-tiny,hidden_size=256,num_heads=16", "prefill", seq=32),
    Job("timm:hgnetv2_b0", "train", batch=4, input_size="3x320x320", optimizer="adamw"),
    Job("timm:skresnet18", "train", batch=4, input_size="3x128x128", optimizer="momentum"),
    Job("timm:resnetblur18", "train", batch=4, input_size="3x160x160"),
    Job("timm:seresnet34", "train"),
    Job("timm:fasternet_t1", "train", batch=16, input_size="3x160x160", optimizer="momentum"),
    Job("timm:repvgg_a1", "train", batch=2, input_size="3x128x128", optimizer="momentum"),
    Job("timm:hardcorenas_c", "train", batch=4, input_size="3x160x160", optimizer="momentum"),
    Job("timm:semnasnet_075", "train", input_size="3x128x128", optimizer="adamw"),
    Job("timm:efficientnet_es", "train", batch=2, input_size="3x320x320"),
    Job("timm:efficientnet_lite2", "train", batch=4, input_size="3x192x192"),
    Job("timm:hrnet_w18_small", "train", batch=2),
    Job("timm:regnetx_016", "train", batch=2, optimizer="adamw"),
    Job("torchvision:regnet_y_800mf", "train", batch=4, input_size="3x160x160"),
    Job("timm:convnextv2_atto", "train", batch=2),
    Job("timm:deit3_small_patch16_224", "train", optimizer="momentum"),
    Job("timm:cait_xxs24_224", "train", batch=2),
    Job("timm:resmlp_12_224", "train", optimizer="adamw"),
    Job("timm:efficientvit_m4", "train", batch=16, optimizer="momentum"),
    Job("transformers:mobilebert", "train", batch=2, seq=160, optimizer="momentum"),
)

FROZEN: tuple[Job, ...] = (
    Job("timm:dla60", "infer", batch=8, input_size="3x160x160"),
    Job("timm:resnetv2_50d", "infer", input_size="3x192x192"),
    Job("timm:selecsls60", "infer", batch=2, input_size="3x320x320"),
    Job("timm:resnet34d", "infer", input_size="3x128x128"),
    Job("timm:hgnetv2_b1", "infer", batch=2, input_size="3x128x128"),
    Job("timm:darknet21", "infer", batch=4, input_size="3x160x160"),
    Job("timm:mobileone_s2", "infer", batch=2),
    Job("timm:vgg13_bn", "infer", input_size="3x160x160"),
    Job("timm:mobilenetv4_conv_small", "infer", batch=2, input_size="3x128x128"),
    Job("timm:rexnet_100", "infer", batch=4, input_size="3x160x160"),
    Job("timm:efficientnetv2_rw_t", "infer", batch=4, input_size="3x128x128"),
    Job("timm:efficientnet_b1", "infer", input_size="3x128x128"),
    Job("timm:fbnetv3_d", "infer"),
    Job("timm:efficientnet_es_pruned", "infer", batch=32, input_size="3x128x128"),
    Job("torchvision:densenet201", "infer", input_size="3x256x256"),
    Job("timm:xception41", "infer", input_size="3x256x256"),
    Job("timm:densenet169", "infer", input_size="3x256x256"),
    Job("timm:dla46_c", "infer", input_size="3x160x160"),
    Job("timm:regnety_008", "infer"),
    Job("timm:cspresnext50", "infer", input_size="3x320x320"),
    Job("timm:edgenext_x_small", "infer", batch=2, input_size="3x192x192"),
    Job("timm:mambaout_femto", "infer", batch=2),
    Job("timm:fastvit_sa12", "infer", batch=4, input_size="3x160x160"),
    Job("timm:convnext_nano", "infer", input_size="3x192x192"),
    Job("torchvision:vit_b_32", "infer"),
    Job("timm:xcit_nano_12_p8_224", "infer", batch=4),
    Job("timm:vit_small_patch16_rope_224", "infer"),
    Job("timm:vit_little_patch16_reg4_gap_256", "infer"),
    Job("timm:hiera_tiny_224", "infer"),
    Job("timm:coatnet_nano_rw_224", "infer"),
    Job("timm:gmixer_24_224", "infer", batch=2),
    Job("timm:gmlp_s16_224", "infer"),
    Job("timm:vit_tiny_r_s16_p8_224", "infer", batch=32),
    Job("timm:visformer_tiny", "infer", batch=4),
    Job("timm:efficientvit_b0", "infer"),
    Job("timm:repvit_m1_5", "infer"),
    Job("transformers:roberta-base", "infer", seq=192),
    Job("transformers:pythia-160m", "infer", batch=2, seq=48),
    Job("transformers:mamba-tiny,hidden_size=256,num_hidden_layers=3", "prefill", batch=2, seq=96),
    Job("transformers:mamba2-tiny,hidden_size=384,num_heads=24,num_hidden_layers=6", "prefill", batch=2, seq=96),
    Job("timm:seresnet18", "train", batch=2, input_size="3x256x256", optimizer="adamw"),
    Job("timm:res2net50_48w_2s", "train", input_size="3x256x256", optimizer="adamw"),
    Job("timm:hgnetv2_b2", "train", input_size="3x320x320", optimizer="momentum"),
    Job("timm:resnetaa34d", "train", optimizer="adamw"),
    Job("timm:mobileone_s3", "train", batch=2, optimizer="momentum"),
    Job("timm:repvgg_b0", "train", batch=2, input_size="3x192x192"),
    Job("timm:ghostnetv2_130", "train", batch=16, input_size="3x128x128", optimizer="momentum"),
    Job("timm:mobilenetv2_075", "train", batch=32, input_size="3x160x160", optimizer="adamw"),
    Job("timm:starnet_s2", "train", batch=4, input_size="3x192x192"),
    Job("timm:starnet_s3", "train", batch=2, input_size="3x192x192", optimizer="momentum"),
    Job("timm:ese_vovnet19b_dw", "train", batch=2, input_size="3x192x192", optimizer="adamw"),
    Job("torchvision:shufflenet_v2_x1_5", "train", input_size="3x320x320"),
    Job("timm:regnety_016", "train", batch=2, input_size="3x128x128", optimizer="adamw"),
    Job("timm:mambaout_kobe", "train", batch=4, optimizer="adamw"),
    Job("timm:crossvit_tiny_240", "train", batch=2, optimizer="momentum"),
    Job("timm:crossvit_small_240", "train"),
    Job("timm:efficientformerv2_s0", "train"),
    Job("timm:efficientformerv2_s1", "train", batch=2, optimizer="momentum"),
    Job("transformers:distilbert", "train", batch=2, seq=48, optimizer="adamw"),
)

# Drawn by the rule of `host_draw` in the fourth session; never run, traced for their FLOPs only.
FOURTH_ROUND: tuple[Job, ...] = (
    Job("timm:resnetaa50", "infer"),
    Job("timm:resnet50s", "infer", batch=2, input_size="3x128x128"),
    Job("timm:hgnet_tiny", "infer", batch=2, input_size="3x320x320"),
    Job("timm:selecsls42", "infer", input_size="3x128x128"),
    Job("timm:cs3sedarknet_l", "infer", batch=2),
    Job("timm:dla102", "infer", batch=2, input_size="3x128x128"),
    Job("timm:vgg11_bn", "infer", input_size="3x192x192"),
    Job("torchvision:vgg11_bn", "infer", batch=8, input_size="3x128x128"),
    Job("timm:gc_efficientnetv2_rw_t", "infer", batch=4, input_size="3x320x320"),
    Job("timm:mixnet_s", "infer"),
    Job("timm:fbnetv3_g", "infer"),
    Job("timm:lcnet_100", "infer", batch=32),
    Job("timm:hardcorenas_f", "infer"),
    Job("timm:rexnet_150", "infer", batch=4, input_size="3x192x192"),
    Job("timm:densenet161", "infer", batch=2, input_size="3x192x192"),
    Job("timm:xception41p", "infer", input_size="3x256x256"),
    Job("timm:vovnet57a", "infer", input_size="3x256x256"),
    Job("timm:regnetz_d8", "infer", input_size="3x128x128"),
    Job("timm:legacy_seresnext26_32x4d", "infer", batch=4, input_size="3x128x128"),
    Job("timm:seresnext50_32x4d", "infer", input_size="3x160x160"),
    Job("timm:edgenext_small", "infer"),
    Job("timm:fastvit_sa24", "infer"),
    Job("timm:edgenext_small_rw", "infer", batch=32, input_size="3x160x160"),
    Job("timm:edgenext_xx_small", "infer", batch=8, input_size="3x160x160"),
    Job("timm:vit_relpos_small_patch16_224", "infer", batch=4),
    Job("timm:pit_ti_224", "infer"),
    Job("timm:convit_tiny", "infer"),
    Job("timm:crossvit_9_dagger_240", "infer", batch=4),
    Job("timm:gcvit_xxtiny", "infer"),
    Job("timm:coatnet_rmlp_nano_rw_224", "infer"),
    Job("timm:resmlp_36_224", "infer"),
    Job("timm:sequencer2d_m", "infer", batch=2),
    Job("timm:efficientvit_m5", "infer"),
    Job("timm:levit_256", "infer", batch=4),
    Job("timm:levit_128", "infer"),
    Job("timm:mobilevitv2_125", "infer"),
    Job("transformers:gpt2-tiny,n_embd=256,n_head=4", "infer", seq=48),
    Job("transformers:bert-medium", "infer", seq=48),
    Job("transformers:mamba2-tiny,hidden_size=512,num_heads=32,num_hidden_layers=3", "prefill", batch=4, seq=48),
    Job("transformers:mamba2-tiny,hidden_size=320,num_heads=20,num_hidden_layers=4", "prefill", batch=16, seq=48),
    Job("timm:cs3darknet_focus_m", "train", input_size="3x320x320", optimizer="adamw"),
    Job("timm:cs3darknet_m", "train", batch=8, input_size="3x160x160"),
    Job("timm:resnet34", "train", batch=2, optimizer="adamw"),
    Job("timm:cs3darknet_l", "train", input_size="3x128x128"),
    Job("timm:mobileone_s0", "train", batch=8, input_size="3x160x160", optimizer="adamw"),
    Job("timm:mobileone_s4", "train", batch=4, input_size="3x128x128", optimizer="momentum"),
    Job("timm:repghostnet_150", "train", batch=4),
    Job("timm:mobilenet_edgetpu_v2_m", "train", batch=4, input_size="3x160x160", optimizer="momentum"),
    Job("timm:lcnet_075", "train"),
    Job("timm:mobilenetv2_120d", "train", batch=2, input_size="3x256x256", optimizer="adamw"),
    Job("timm:hrnet_w18_ssld", "train", batch=2, input_size="3x192x192", optimizer="momentum"),
    Job("timm:regnetx_032", "train", batch=2),
    Job("timm:regnetz_c16", "train", input_size="3x128x128", optimizer="momentum"),
    Job("timm:fastvit_t8", "train", batch=2, input_size="3x256x256", optimizer="adamw"),
    Job("timm:xcit_tiny_12_p16_224", "train", batch=2, optimizer="momentum"),
    Job("timm:eva02_tiny_patch14_224", "train", batch=2),
    Job("timm:efficientvit_m0", "train", batch=2),
    Job("timm:mobilevitv2_100", "train", optimizer="adamw"),
    Job("transformers:bert-mini,num_hidden_layers=8", "train", batch=4, seq=160),
)

DEVELOPMENT: tuple[Job, ...] = (
    *_infer(
        "timm:resnet18", "timm:resnet50", "timm:mobilenetv2_100", "timm:mobilenetv3_large_100",
        "timm:efficientnet_lite0", "timm:vit_tiny_patch16_224", "timm:vit_small_patch16_224",
        "timm:swin_tiny_patch4_window7_224", "timm:convnext_atto", "timm:mixer_s32_224", "timm:regnety_004",
        "timm:ghostnet_100", "timm:densenet121", "timm:levit_128s", "timm:repvgg_a0",
        "torchvision:shufflenet_v2_x1_0", "torchvision:squeezenet1_1", "torchvision:alexnet",
        "timm:resnet26d", "timm:resnext50_32x4d", "timm:mobilenetv2_140", "timm:mobilenetv3_small_075",
        "timm:efficientnet_b0", "timm:swinv2_tiny_window8_256", "timm:convnextv2_pico", "timm:mixer_b32_224",
        "timm:efficientformer_l1", "timm:mobilevit_xs", "timm:poolformer_s12", "timm:fbnetc_100",
        "torchvision:googlenet",
    ),
    Job("timm:mobilenetv2_100", "infer", batch=4, input_size="3x128x128"),
    Job("timm:resnet18", "infer", batch=8, input_size="3x160x160"),
    Job("timm:mobilenetv3_large_100", "infer", batch=8, input_size="3x160x160"),
    Job("timm:deit_tiny_patch16_224", "infer", batch=4),
    Job("transformers:bert-mini", "infer", seq=128),
    Job("transformers:bert-base", "infer", seq=64),
    Job("transformers:bert-small", "infer", seq=96),
    Job("transformers:mamba2-tiny", "prefill", seq=128),
    Job("transformers:mamba2-tiny", "prefill", seq=256),
    *_train("timm:resnet18", "timm:mobilenetv2_100", "timm:vit_tiny_patch16_224", "timm:convnext_atto"),
    *_train("timm:mobilenetv3_small_100", "timm:regnety_002", "timm:mixer_s32_224", "timm:efficientnet_lite0"),
    *_train("timm:mobilenetv2_050", "timm:mnasnet_small", "timm:deit_tiny_patch16_224", "timm:regnetx_004"),
    *_train("timm:mobilenetv3_small_050"),
    *_train("torchvision:squeezenet1_1", "timm:resnet26", input_size="3x160x160"),
    *_train("torchvision:shufflenet_v2_x1_0", "timm:fbnetc_100", input_size="3x160x160"),
    Job("transformers:bert-mini", "train", seq=128, batch=4, optimizer="adamw"),
    Job("transformers:bert-small", "train", seq=96, batch=2, optimizer="adamw"),
)  # fmt: skip

# Models of the development half that are also run otherwise than on one thread, in fp32, contiguous, with memory kept.
_IMAGES: tuple[Job, ...] = (
    *_infer("timm:resnet18", "timm:mobilenetv2_100", "timm:efficientnet_lite0", "timm:regnety_004"),
    Job("timm:resnet18", "infer", batch=8, input_size="3x160x160"),
    *_train("timm:mobilenetv2_100", "timm:convnext_atto"),
    *_train("timm:resnet26", input_size="3x160x160"),
)
_MIXED: tuple[Job, ...] = (
    *_infer("timm:resnet18", "timm:mobilenetv2_100", "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"),
    Job("transformers:bert-small", "infer", seq=96),
    *_train("timm:mobilenetv2_100", "timm:vit_tiny_patch16_224"),
    Job("transformers:bert-small", "train", seq=96, batch=2, optimizer="adamw"),
)


def _changed(jobs: tuple[Job, ...], **change: Any) -> tuple[Job, ...]:
    return tuple(replace(job, **change) for job in jobs)


PARTS: dict[str, tuple[Job, ...]] = {
    "development": DEVELOPMENT,
    "second-round": SECOND_ROUND,
    "frozen": FROZEN,
    "fourth-round": FOURTH_ROUND,
    "bfloat16": _changed(_MIXED, dtype="bfloat16"),
    "channels-last": _changed(_IMAGES, layout="channels_last"),
    "default-allocator": _changed(_MIXED, allocator="default"),
    "two-threads": _changed(_MIXED, threads=2),
}
_SEVERAL = {"all": ("development", "frozen"), "variants": tuple(PARTS)[4:]}


def host_parts(text: str) -> tuple[str, ...]:
    """Names of `PARTS` from ``frozen``, ``frozen,variants`` or ``all``, in that order, each once.

    Raises:
        UnknownName: there is no such part.
    """
    names: list[str] = []
    for word in text.split(","):
        if word not in PARTS and word not in _SEVERAL:
            raise UnknownName("part of the host suite", word, (*PARTS, *_SEVERAL))
        names += _SEVERAL.get(word, (word,))
    return tuple(dict.fromkeys(names))


def host_groups(part: str, threads: int = 1, dtype: str = "float32", allocator: str = "pinned") -> Groups:
    """The jobs of one of `PARTS`, one a process.

    Args:
        part: a half, or some development models run otherwise.
        threads, dtype, allocator: of every job; what such a part changes keeps where these are the usual ones.
    """
    asked = {"threads": threads, "dtype": dtype, "allocator": allocator}
    usual = {"threads": 1, "dtype": "float32", "allocator": "pinned"}
    change = {key: value for key, value in asked.items() if value != usual[key]}
    return tuple((job,) for job in _changed(PARTS[part], **change))


def repeats_file(into: Path | None, part: str) -> Path | None:
    """Where the repeats of a part are kept: `into` if it is a file of JSON lines, else a file of that folder."""
    return into if into is None or into.suffix == ".jsonl" else into / f"{part}.jsonl"
