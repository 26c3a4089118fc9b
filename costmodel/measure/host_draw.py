"""How the frozen half of the host suite was drawn: from pools of names, by a seed, without looking at any time.

The rule. A stratum is a kind of network with a pool of names that no file of this repository had measured, tuned on or
named in a table of errors. For each stratum and mode a generator, seeded by `SEED` with their names, shuffles the pool
and takes as many as `WANTED` says; for each it draws a batch and, where the network takes any, a resolution or a
number of tokens. A draw counts if the step builds, traces, and has 0.2 to 45 GFLOP, a range that is some 5 to 700 ms on
this kind of core; one that does not is in `REFUSED` with the reason, and the next of the shuffled pool takes its place.
Nothing was timed or priced before the list was written down (`host_suite.FROZEN`, which a test holds to this rule).
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from .job import Job

__all__ = ["POOLS", "REFUSED", "SEED", "WANTED", "draw"]

SEED = 20261124


class Pool(NamedTuple):
    """Names of one kind, and what is drawn beside a name."""

    names: tuple[str, ...]
    sizes: tuple[str | None, ...] = (None,)
    seqs: tuple[int | None, ...] = (None,)
    mode: str = "infer"


_ROUNDS = 4  # a pool of which too few counted is gone through again, with other batches and sizes
_SIZES = (None, None, "3x128x128", "3x160x160", "3x192x192", "3x256x256", "3x320x320")
_BATCHES = {"infer": (1, 1, 1, 1, 2, 4, 8, 16, 32), "train": (1, 2, 2, 4, 4, 8, 16, 32)}


def _timm(text: str) -> tuple[str, ...]:
    return tuple(f"timm:{name}" for name in text.split())


POOLS: dict[str, Pool] = {
    "residual": Pool(
        _timm(
            "resnet14t resnet26t resnet50d resnet34d resnetv2_50d seresnet18 seresnet34 skresnet18 "
            "ecaresnet26t resnetblur18 resnetaa34d cspresnet50 darknet21 cs3darknet_s hgnetv2_b0 hgnetv2_b1 gernet_s "
            "dla34 selecsls42b resnet32ts legacy_seresnet18 res2net50_48w_2s"
        )
        + ("torchvision:resnet101",),
        _SIZES,
    ),
    "plain": Pool(
        (*_timm("vgg13_bn repvgg_a1 repvgg_b0 mobileone_s1 fasternet_t1 fasternet_t2"), "torchvision:vgg13"),
        (None, "3x128x128", "3x160x160", "3x192x192"),
    ),
    "inverted": Pool(
        _timm(
            "mnasnet_140 semnasnet_075 efficientnet_lite2 efficientnet_es tf_efficientnet_b1 mobilenetv2_075 "
            "mobilenetv2_110d mobilenetv4_conv_small mobilenetv4_conv_medium rexnet_130 spnasnet_100 tinynet_b "
            "hardcorenas_c lcnet_100 fbnetv3_b mobilenet_edgetpu_v2_s efficientnetv2_rw_t repvit_m0_9 ghostnetv2_100 "
            "starnet_s2 mobilenetv1_100 efficientnet_b2_pruned"
        ),
        _SIZES,
    ),
    "dense": Pool(
        (*_timm("densenet169 densenetblur121d ese_vovnet19b_dw ese_vovnet39b vovnet39a hrnet_w18_small rdnet_tiny"),
         "torchvision:densenet201"),
        (None, "3x192x192", "3x256x256"),
    ),
    "grouped": Pool(
        (*_timm("regnety_008 regnety_016 regnetz_b16 regnetx_016 resnext26ts seresnext26t_32x4d dpn68b resnest14d "
                "cspresnext50 dla46x_c"), "torchvision:regnet_y_800mf",
         "torchvision:shufflenet_v2_x1_5"),
        _SIZES,
    ),
    "modern": Pool(
        _timm(
            "convnext_nano convnext_pico_ols convnextv2_atto convnextv2_femto inception_next_atto mambaout_femto "
            "edgenext_small focalnet_tiny_srf convformer_s18 fastvit_t12"
        ),
        (None, None, "3x160x160", "3x192x192", "3x256x256"),
    ),
    "vit": Pool(
        _timm(
            "deit3_small_patch16_224 vit_small_patch32_224 vit_base_patch32_224 cait_xxs24_224 pit_xs_224 pit_s_224 "
            "vit_relpos_small_patch16_224 xcit_tiny_12_p16_224 xcit_nano_12_p16_224 vit_wee_patch16_reg1_gap_256 "
            "vit_dwee_patch16_reg1_gap_256 convit_tiny tnt_s_patch16_224 crossvit_9_240 vit_small_patch16_rope_224 "
            "vit_pwee_patch16_reg1_gap_256"
        )
        + ("torchvision:vit_b_32",)
    ),
    "windowed": Pool(
        (*_timm("swin_s3_tiny_224 swin_small_patch4_window7_224 swinv2_cr_tiny_224 twins_svt_small nest_tiny "
                "hiera_tiny_224"), "torchvision:swin_t", "torchvision:swin_v2_t")
    ),
    "mixer": Pool(_timm("gmixer_12_224 gmixer_24_224 gmlp_ti16_224 gmlp_s16_224 resmlp_12_224 resmlp_24_224 "
                        "mixer_s16_224 sequencer2d_s")),
    "hybrid": Pool(
        _timm(
            "levit_192 mobilevitv2_075 mobilevit_xxs efficientformerv2_s1 coat_lite_mini pvt_v2_b1 visformer_tiny "
            "tiny_vit_5m_224 poolformerv2_s12 botnet26t_256 efficientvit_b1 swiftformer_s "
            "vit_tiny_r_s16_p8_224 efficientvit_m4 repvit_m1_1"
        )
    ),
    "encoder": Pool(
        ("transformers:bert-medium", "transformers:albert-base", "transformers:mobilebert",
         "transformers:gpt2-tiny,n_embd=384,n_head=6", "transformers:opt-125m"),
        seqs=(32, 48, 80, 160, 192),
    ),
    "mamba": Pool(
        ("transformers:mamba2-130m", "transformers:mamba2-tiny,hidden_size=256,num_heads=16",
         "transformers:mamba2-tiny,hidden_size=384,num_heads=24,num_hidden_layers=6",
         "transformers:mamba-tiny,hidden_size=256,num_hidden_layers=3"),
        seqs=(32, 48, 96),
        mode="prefill",
    ),
}  # fmt: skip

# (inference, training) draws of each stratum.
WANTED: dict[str, tuple[int, int]] = {
    "residual": (6, 4), "plain": (2, 2), "inverted": (6, 4), "dense": (3, 1), "grouped": (3, 2), "modern": (4, 1),
    "vit": (4, 2), "windowed": (2, 0), "mixer": (2, 1), "hybrid": (4, 1), "encoder": (2, 1), "mamba": (2, 0),
}  # fmt: skip

# Draws that do not count, by job name.
REFUSED: dict[str, str] = {
    "timm:resnetv2_50d infer b16 3x256x256": "182 GFLOP",
    "timm:regnetx_016 infer b32": "103 GFLOP",
    "timm:twins_svt_small infer b16": "95.7 GFLOP",
    "timm:resmlp_24_224 infer b8": "96.5 GFLOP",
    "timm:poolformerv2_s12 infer b32": "117 GFLOP",
    "timm:resnetv2_50d train b4 3x160x160 adamw": "53.7 GFLOP",
    "timm:resnet26t train b16 3x192x192": "181 GFLOP",
    "timm:vgg13_bn train b2 adamw": "138 GFLOP",
    "torchvision:shufflenet_v2_x1_5 train b32 3x256x256 momentum": "75.3 GFLOP",
    "timm:regnety_016 train b32 3x256x256 momentum": "409 GFLOP",
    "timm:focalnet_tiny_srf train b4": "108 GFLOP",
    "timm:xcit_tiny_12_p16_224 train b32 momentum": "242 GFLOP",
    "timm:vit_base_patch32_224 train b2 adamw": "54 GFLOP",
    "timm:gmixer_12_224 train b4 momentum": "64 GFLOP",
    "transformers:opt-125m train b4 seq160 adamw": "484 GFLOP",
    "timm:regnety_016 infer b32": "104 GFLOP",
    "timm:pvt_v2_b1 infer b32": "139 GFLOP",
    "timm:resnet34d train b32 3x128x128 adamw": "246 GFLOP",
    "timm:regnetz_b16 train b4 3x256x256 adamw": "47 GFLOP",
    "timm:edgenext_small train b8 3x256x256": "62.3 GFLOP",
    "timm:xcit_nano_12_p16_224 train b16": "54.7 GFLOP",
    "timm:vit_pwee_patch16_reg1_gap_256 train b8": "216 GFLOP",
    "transformers:mobilebert train b4 seq192": "99.7 GFLOP",
    "timm:convnext_nano train b16 3x192x192": "176 GFLOP",
    "timm:vit_dwee_patch16_reg1_gap_256 train b4 momentum": "98.8 GFLOP",
    "transformers:bert-medium train b16 seq48": "119 GFLOP",
    "timm:convit_tiny train b32 adamw": "245 GFLOP",
    "timm:vit_small_patch16_rope_224 train b2 adamw": "56.6 GFLOP",
    "transformers:opt-125m train b32 seq160 momentum": "3.86e+03 GFLOP",
}


def draw(seed: int = SEED) -> tuple[Job, ...]:
    """The jobs that the rule gives, inference first; no name is drawn twice."""
    jobs: list[Job] = []
    taken: set[str] = set()
    for column, mode in enumerate(("infer", "train")):
        for stratum, wanted in WANTED.items():
            jobs += _of_stratum(POOLS[stratum], mode, wanted[column], Random(f"{seed} {stratum} {mode}"), taken)
    return tuple(jobs)


def _of_stratum(pool: Pool, mode: str, wanted: int, rng: Random, taken: set[str]) -> list[Job]:
    found: list[Job] = []
    for name in rng.sample(pool.names, len(pool.names)) * _ROUNDS:
        job = Job(
            name,
            pool.mode if mode == "infer" else mode,
            batch=rng.choice(_BATCHES[mode]),
            input_size=rng.choice(pool.sizes),
            seq=rng.choice(pool.seqs),
            optimizer="sgd" if mode == "infer" else rng.choice(("sgd", "momentum", "adamw")),
        )
        if len(found) < wanted and name not in taken and job.name not in REFUSED:
            found.append(job)
            taken.add(name)
    return found
