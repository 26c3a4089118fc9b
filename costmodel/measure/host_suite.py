"""``validate --suite host``: many models on this machine, half of them never looked at while the model was made.

`DEVELOPMENT` may be looked at; `FROZEN` was drawn once and is run at the end, whatever comes out.
"""

from __future__ import annotations

from .job import Job

__all__ = ["DEVELOPMENT", "FROZEN", "host_groups"]

_C = "num_classes=100"


def _infer(*models: str) -> tuple[Job, ...]:
    return tuple(Job(m, "infer") for m in models)


def _train(*models: str, batch: int = 4, input_size: str | None = None) -> tuple[Job, ...]:
    return tuple(Job(m, "train", batch=batch, input_size=input_size) for m in models)


DEVELOPMENT: tuple[Job, ...] = (
    *_infer(
        "timm:resnet18", "timm:resnet50", "timm:mobilenetv2_100", "timm:mobilenetv3_large_100",
        "timm:efficientnet_lite0", "timm:vit_tiny_patch16_224", "timm:vit_small_patch16_224",
        "timm:swin_tiny_patch4_window7_224", "timm:convnext_atto", "timm:mixer_s32_224", "timm:regnety_004",
        "timm:ghostnet_100", "timm:densenet121", "timm:levit_128s", "timm:repvgg_a0",
        "torchvision:shufflenet_v2_x1_0", "torchvision:squeezenet1_1", "torchvision:alexnet",
    ),
    Job("timm:mobilenetv2_100", "infer", batch=4, input_size="3x128x128"),
    Job("timm:resnet18", "infer", batch=8, input_size="3x160x160"),
    Job("transformers:bert-mini", "infer", seq=128),
    Job("transformers:bert-base", "infer", seq=64),
    Job("transformers:mamba2-tiny", "prefill", seq=128),
    *_train("timm:resnet18", "timm:mobilenetv2_100", "timm:vit_tiny_patch16_224", "timm:convnext_atto"),
    *_train("timm:mobilenetv3_small_100", "timm:regnety_002", "timm:mixer_s32_224", "timm:efficientnet_lite0"),
    *_train("torchvision:squeezenet1_1", "timm:resnet26", input_size="3x160x160"),
    Job("transformers:bert-mini", "train", seq=128, batch=4, optimizer="adamw"),
)  # fmt: skip

FROZEN: tuple[Job, ...] = (
    *_infer(
        "timm:resnet34", "timm:resnet26d", "timm:resnext50_32x4d", "timm:mobilenetv2_140", "timm:mnasnet_100",
        "timm:mobilenetv3_small_075", "timm:efficientnet_b0", "timm:tf_efficientnet_lite1",
        "timm:deit_tiny_patch16_224",
        "timm:deit_small_patch16_224", "timm:swinv2_tiny_window8_256", "timm:convnext_femto", "timm:convnextv2_pico",
        "timm:mixer_b32_224", "timm:regnetx_008", "timm:efficientformer_l1", "timm:mobilevit_xs", "timm:poolformer_s12",
        "timm:fbnetc_100", "torchvision:vgg11", "torchvision:googlenet", "torchvision:shufflenet_v2_x0_5",
    ),
    Job("timm:mobilenetv3_large_100", "infer", batch=8, input_size="3x160x160"),
    Job("timm:deit_tiny_patch16_224", "infer", batch=4),
    Job("transformers:bert-small", "infer", seq=96),
    Job("transformers:distilbert", "infer", seq=128),
    Job("transformers:mamba2-tiny", "prefill", seq=256),
    *_train("timm:resnet34", "timm:mobilenetv2_050", "timm:mnasnet_small", "timm:deit_tiny_patch16_224"),
    *_train("timm:convnext_femto", "timm:regnetx_004", "timm:tf_efficientnet_lite0", "timm:mobilenetv3_small_050"),
    *_train("torchvision:shufflenet_v2_x1_0", "timm:resnet26d", "timm:fbnetc_100", input_size="3x160x160"),
    Job("transformers:bert-small", "train", seq=96, batch=2, optimizer="adamw"),
)  # fmt: skip


def host_groups(which: str = "all", threads: int = 1, dtype: str = "float32") -> tuple[tuple[Job, ...], ...]:
    """The jobs of ``development``, ``frozen`` or ``all``, one a process."""
    from dataclasses import replace

    jobs = {"development": DEVELOPMENT, "frozen": FROZEN, "all": DEVELOPMENT + FROZEN}[which]
    return tuple((replace(job, threads=threads, dtype=dtype),) for job in jobs)
