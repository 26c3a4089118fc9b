"""The memory suite: live and resident peaks of models × modes, predicted from traces and measured on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .resident import MemoryJob

__all__ = ["memory_cases"]

_TEN = ",num_classes=10"


def memory_cases() -> tuple[MemoryJob, ...]:
    """Models × modes: inference, training by optimizer, kept gradients, accumulation, checkpointing, methods, caches."""
    j = MemoryJob
    mobilenet, resnet = f"timm:mobilenetv2_100{_TEN}", f"timm:resnet18{_TEN}"
    vit, small = f"timm:vit_tiny_patch16_224{_TEN}", f"timm:vit_small_patch16_224{_TEN}"
    return (
        j(mobilenet),
        j(mobilenet, batch=8),
        j(mobilenet, "train", batch=8, input_size="3x160x160"),
        j(mobilenet, "train", batch=8, input_size="3x160x160", optimizer="adamw"),
        j(mobilenet, "train", batch=8, input_size="3x128x128", optimizer="momentum", keep_gradients=True),
        j(mobilenet, "train", batch=8, input_size="3x128x128", accumulate=2),
        j(mobilenet, "train", "checkpoint", batch=8, input_size="3x160x160"),
        j(mobilenet, "train", "last_layer", batch=8),
        j(resnet, batch=4),
        j(resnet, "train", batch=8, input_size="3x128x128", optimizer="momentum"),
        j(resnet, "train", batch=8, input_size="3x128x128", optimizer="adamw", keep_gradients=True),
        j(f"timm:resnet50{_TEN}"),
        j(f"timm:resnet50{_TEN}", "train", batch=4, input_size="3x128x128"),
        j(f"timm:resnet50{_TEN}", "train", "checkpoint", batch=4, input_size="3x128x128"),
        j(f"timm:efficientnet_b0{_TEN}", batch=4),
        j(f"timm:efficientnet_b0{_TEN}", "train", batch=4, input_size="3x128x128", optimizer="momentum"),
        j(f"timm:mobilenetv3_large_100{_TEN}", "train", batch=8, input_size="3x128x128", optimizer="adamw"),
        j("timm:convnext_atto", "train", batch=4, input_size="3x160x160"),
        j(vit, batch=8),
        j(vit, "train", batch=4),
        j(vit, "train", batch=4, optimizer="adamw"),
        j(vit, "train", "checkpoint", batch=8, optimizer="adamw"),
        j(vit, "train", batch=4, accumulate=4, keep_gradients=True),
        j(small, "train", batch=2, optimizer="adamw"),
        j(small, "train", "lbp_wht:order=3", batch=2, optimizer="adamw"),
        j(f"timm:swin_tiny_patch4_window7_224{_TEN}"),
        j(f"timm:swin_tiny_patch4_window7_224{_TEN}", "train", batch=2),
        j(f"timm:efficientformer_l1{_TEN}", "train", "lbp_wht:order=4", batch=4),
        j("torchvision:resnet18"),
        j("torchvision:mobilenet_v3_small", "train", batch=8, optimizer="adamw"),
        j("torchvision:squeezenet1_1", "train", batch=4),
        j("torchvision:shufflenet_v2_x1_0", batch=8),
        j("torchvision:densenet121", "train", batch=2, input_size="3x128x128"),
        j("torchvision:vgg11", batch=1),
        j("mobilenet-v3-small", "train", batch=8),
        j("mobilenet-v3-small", "train", "mobiletl:blocks=3", batch=8),
        j("mlp-small", "train", batch=64, optimizer="adamw"),
        j("conv-small", "train", batch=64, optimizer="momentum"),
        j("transformers:bert-small", seq=128),
        j("transformers:bert-small", "train", seq=128, batch=2, optimizer="adamw"),
        j("transformers:bert-small", "train", "checkpoint", seq=128, batch=4),
        j("transformers:bert-mini", "train", seq=128, batch=4, accumulate=2),
        j("transformers:distilgpt2", "prefill", seq=128),
        j("transformers:distilgpt2", "decode", seq=128),
        j("transformers:gpt2-tiny", "train", seq=64, batch=2, optimizer="momentum"),
        j("transformers:llama-tiny", "decode", seq=256),
        j("transformers:mamba-tiny", "prefill", seq=64),
        j("transformers:mamba-tiny", "decode", seq=64),
        j("transformers:mamba-tiny", "prefill", "quamba", seq=64),
        j("transformers:mamba-tiny", "decode", "quamba", seq=64),
    )
