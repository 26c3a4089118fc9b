"""How the frozen half of the host suite was drawn: from pools of names, by a seed, without looking at any time.

This is the third draw; what the second one gave is in `host_suite.SECOND_ROUND` and out of the pools.

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

SEED = 3


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
            "resnet33ts resnet51q seresnet33ts ecaresnetlight selecsls60 skresnet34 cs3darknet_m hgnetv2_b2 "
            "resnet26t dla60 legacy_seresnet34 resnet34 cspdarknet53 resnet14t resnet26t resnet34d "
            "resnetv2_50d seresnet18 ecaresnet26t resnetaa34d darknet21 hgnetv2_b1 dla34 selecsls42b "
            "legacy_seresnet18 res2net50_48w_2s"
        ),
        _SIZES,
    ),
    "plain": Pool(
        (*_timm(
            "repvgg_b1 vgg11_bn mobileone_s2 mobileone_s3 fasternet_s repvgg_d2se vgg13_bn repvgg_b0"
        ), "torchvision:vgg13"),
        (None, "3x128x128", "3x160x160", "3x192x192"),
    ),
    "inverted": Pool(
        _timm(
            "efficientnet_b1 tf_mobilenetv3_large_075 mobilenetv2_120d fbnetv3_d mobilenetv4_hybrid_medium "
            "ghostnetv2_130 starnet_s3 tinynet_a efficientnet_em rexnet_100 efficientnet_es_pruned "
            "mobilenetv2_075 mobilenetv2_110d mobilenetv4_conv_small mobilenetv4_conv_medium rexnet_130 "
            "spnasnet_100 tinynet_b lcnet_100 mobilenet_edgetpu_v2_s efficientnetv2_rw_t repvit_m0_9 "
            "starnet_s2"
        ),
        _SIZES,
    ),
    "dense": Pool(
        (*_timm(
            "densenet161 ese_vovnet57b xception41 densenet169 ese_vovnet19b_dw rdnet_tiny"
        ),
         "torchvision:densenet201"),
        (None, "3x192x192", "3x256x256"),
    ),
    "grouped": Pool(
        (*_timm(
            "regnetx_008 regnety_006 seresnext50_32x4d skresnext50_32x4d dla46_c regnetz_c16 regnetx_006 "
            "resnext101_32x4d regnety_008 regnety_016 regnetz_b16 seresnext26t_32x4d resnest14d cspresnext50"
        ), "torchvision:shufflenet_v2_x1_5"),
        _SIZES,
    ),
    "modern": Pool(
        _timm(
            "convnext_femto convnextv2_nano mambaout_kobe caformer_s18 inception_next_tiny fastvit_sa12 "
            "edgenext_x_small fastvit_t8 focalnet_small_srf convnext_nano mambaout_femto edgenext_small "
            "focalnet_tiny_srf convformer_s18"
        ),
        (None, None, "3x160x160", "3x192x192", "3x256x256"),
    ),
    "vit": Pool(
        _timm(
            "deit_small_distilled_patch16_224 vit_little_patch16_reg4_gap_256 pit_ti_224 crossvit_small_240 "
            "cait_xxs36_224 xcit_nano_12_p8_224 crossvit_tiny_240 vit_base_patch32_224 pit_s_224 "
            "vit_relpos_small_patch16_224 xcit_tiny_12_p16_224 xcit_nano_12_p16_224 "
            "vit_dwee_patch16_reg1_gap_256 convit_tiny tnt_s_patch16_224 vit_small_patch16_rope_224 "
            "vit_pwee_patch16_reg1_gap_256"
        )
        + ("torchvision:vit_b_32",)
    ),
    "windowed": Pool(
        (*_timm(
            "twins_pcpvt_small gcvit_xxtiny coatnet_nano_rw_224 maxvit_rmlp_pico_rw_256 swin_s3_tiny_224 "
            "swinv2_cr_tiny_224 twins_svt_small nest_tiny hiera_tiny_224"
        ), "torchvision:swin_t")
    ),
    "mixer": Pool(_timm(
            "sequencer2d_m gmixer_24_224 gmlp_s16_224 resmlp_24_224 mixer_s16_224 sequencer2d_s"
        )),
    "hybrid": Pool(
        _timm(
            "efficientformerv2_s0 mobilevitv2_050 mobilevitv2_100 efficientvit_b0 repvit_m1_5 "
            "tiny_vit_11m_224 mobilevit_s visformer_small levit_192 mobilevitv2_075 efficientformerv2_s1 "
            "coat_lite_mini pvt_v2_b1 visformer_tiny poolformerv2_s12 botnet26t_256 swiftformer_s "
            "vit_tiny_r_s16_p8_224"
        )
    ),
    "encoder": Pool(
        ("transformers:bert-medium", "transformers:opt-125m", "transformers:distilbert", "transformers:roberta-base",
         "transformers:distilgpt2", "transformers:pythia-160m", "transformers:gpt2-tiny,n_embd=256,n_head=4"),
        seqs=(32, 48, 80, 160, 192),
    ),
    "mamba": Pool(
        ("transformers:mamba2-tiny,hidden_size=384,num_heads=24,num_hidden_layers=6",
         "transformers:mamba-tiny,hidden_size=256,num_hidden_layers=3"),
        seqs=(32, 48, 96),
        mode="prefill",
    ),
}  # fmt: skip

# (inference, training) draws of each stratum.
WANTED: dict[str, tuple[int, int]] = {
    "residual": (6, 4), "plain": (2, 2), "inverted": (6, 4), "dense": (3, 1), "grouped": (3, 2), "modern": (4, 1),
    "vit": (4, 2), "windowed": (2, 0), "mixer": (2, 0), "hybrid": (4, 2), "encoder": (2, 1), "mamba": (2, 0),
}  # fmt: skip

# Draws that do not count, by job name.
REFUSED: dict[str, str] = {
    "timm:resnet34d infer b8 3x192x192": "46 GFLOP",
    "timm:dla34 infer b32 3x320x320": "401 GFLOP",
    "timm:ese_vovnet19b_dw infer b16 3x256x256": "56.2 GFLOP",
    "timm:densenet169 infer b16 3x192x192": "79.7 GFLOP",
    "timm:focalnet_tiny_srf infer b32 3x256x256": "375 GFLOP",
    "timm:convformer_s18 infer b32 3x160x160": "130 GFLOP",
    "timm:vit_relpos_small_patch16_224 infer b8": "74.1 GFLOP",
    "timm:dla34 infer b32": "196 GFLOP",
    "timm:ese_vovnet57b infer b16": "374 GFLOP",
    "timm:convformer_s18 infer b16": "127 GFLOP",
    "timm:tnt_s_patch16_224 infer b8": "85.3 GFLOP",
    "timm:resmlp_24_224 infer b32": "386 GFLOP",
    "timm:ecaresnet26t train b16 3x160x160": "126 GFLOP",
    "timm:seresnet33ts train b16 3x256x256 momentum": "461 GFLOP",
    "timm:selecsls42b train b4 3x320x320": "144 GFLOP",
    "timm:cs3darknet_m train b16 3x320x320 momentum": "315 GFLOP",
    "timm:repvgg_b1 train b4 3x128x128 adamw": "104 GFLOP",
    "timm:repvgg_b0 train b8 momentum": "164 GFLOP",
    "timm:densenet161 train b8 3x192x192 adamw": "274 GFLOP",
    "timm:skresnext50_32x4d train b16 3x192x192 adamw": "316 GFLOP",
    "timm:focalnet_tiny_srf train b8 3x160x160 momentum": "110 GFLOP",
    "timm:vit_base_patch32_224 train b4": "106 GFLOP",
    "timm:mixer_s16_224 train b8": "182 GFLOP",
    "transformers:gpt2-tiny,n_embd=256,n_head=4 train b16 seq32 adamw": "50.4 GFLOP",
    "timm:rdnet_tiny infer b16": "165 GFLOP",
    "timm:mixer_s16_224 infer b8": "61.1 GFLOP",
    "timm:legacy_seresnet34 train b32 momentum": "698 GFLOP",
    "timm:skresnet34 train b32 3x192x192": "514 GFLOP",
    "torchvision:vgg13 train b4 3x128x128 momentum": "91 GFLOP",
    "timm:convformer_s18 train b2 adamw": "47.9 GFLOP",
    "timm:cait_xxs36_224 train b4": "91.8 GFLOP",
    "timm:sequencer2d_s train b4 momentum": "203 GFLOP",
    "transformers:opt-125m train b2 seq32 momentum": "48.3 GFLOP",
    "timm:cspdarknet53 train b4 3x320x320": "246 GFLOP",
    "timm:resnet33ts train b16": "461 GFLOP",
    "timm:fasternet_s train b32 3x160x160": "447 GFLOP",
    "timm:caformer_s18 train b2 3x256x256 momentum": "67 GFLOP",
    "timm:vit_dwee_patch16_reg1_gap_256 train b2": "49.4 GFLOP",
    "timm:sequencer2d_m train b2 adamw": "135 GFLOP",
    "transformers:distilgpt2 train b2 seq160 adamw": "161 GFLOP",
    "timm:dla34 train b32 momentum": "583 GFLOP",
    "timm:vgg11_bn train b4 3x128x128 momentum": "62.1 GFLOP",
    "timm:resmlp_24_224 train b4": "144 GFLOP",
    "transformers:distilbert train b2 seq160 momentum": "85.2 GFLOP",
    "timm:resnet26t train b4 adamw": "80.8 GFLOP",
    "timm:repvgg_d2se train b32 3x160x160": "3.58e+03 GFLOP",
    "timm:mixer_s16_224 train b8 adamw": "182 GFLOP",
    "transformers:bert-medium train b8 seq192": "249 GFLOP",
    "timm:ecaresnetlight train b2 momentum": "49.1 GFLOP",
    "timm:repvgg_b1 train b2 momentum": "158 GFLOP",
    "timm:sequencer2d_s train b8 adamw": "407 GFLOP",
    "transformers:gpt2-tiny,n_embd=256,n_head=4 train b32 seq192 adamw": "614 GFLOP",
    "timm:resnet34 train b4 adamw": "87.5 GFLOP",
    "timm:sequencer2d_m train b4": "269 GFLOP",
    "transformers:opt-125m train b4 seq32 adamw": "97.2 GFLOP",
    "timm:resmlp_24_224 train b8": "288 GFLOP",
    "transformers:distilgpt2 train b8 seq160 momentum": "638 GFLOP",
    "timm:mixer_s16_224 train b4": "91 GFLOP",
    "timm:sequencer2d_s train b4": "203 GFLOP",
    "timm:sequencer2d_m train b8 adamw": "539 GFLOP",
    "timm:resmlp_24_224 train b4 adamw": "145 GFLOP",
    "timm:mixer_s16_224 train b4 adamw": "91.2 GFLOP",
    "timm:sequencer2d_s train b2 adamw": "102 GFLOP",
    "timm:sequencer2d_m train b16 adamw": "1.08e+03 GFLOP",
    "timm:resmlp_24_224 train b8 momentum": "288 GFLOP",
    "timm:coat_lite_mini train b32 momentum": "391 GFLOP",
    "timm:visformer_small train b4 momentum": "118 GFLOP",
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
