"""How the frozen steps of the host suite are drawn: from pools of names, by a seed, without looking at any time.

This is the fourth draw; what the second and the third gave is in `host_suite` and out of the pools.

The rule. A stratum is a kind of network with a pool of names that no file of this repository had measured, tuned on or
named in a table of errors. For each stratum and mode a generator, seeded by `SEED` with their names, shuffles the pool
and takes as many as `WANTED` says; for each it draws a batch and, where the network takes any, a resolution or a
number of tokens. A draw counts if the step builds, traces, and has 0.2 to 45 GFLOP, a range that is some 5 to 700 ms on
this kind of core; one that does not is in `REFUSED` with the reason, and the next of the shuffled pool takes its place.
Nothing was timed or priced before the list was written down (`host_suite.FOURTH_ROUND`, which a test holds to this
rule).
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from .job import Job

__all__ = ["POOLS", "REFUSED", "SEED", "WANTED", "draw"]

SEED = 4


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
        (
            *_timm(
                "resnet33ts resnet51q seresnet33ts ecaresnetlight skresnet34 cs3darknet_m resnet26t "
                "legacy_seresnet34 resnet34 cspdarknet53 resnet14t resnet26t ecaresnet26t dla34 selecsls42b "
                "legacy_seresnet18 gcresnet33ts gcresnet50t resnet61q wide_resnet50_2 cs3sedarknet_l "
                "hrnet_w18_small_v2 gernet_m resnetv2_34 hgnetv2_b3 res2net50_26w_4s dla102 resnetrs50 resnet50c "
                "resnet50s cs3darknet_l cs3darknet_focus_m resnetblur50 ecaresnet50t res2next50 resnetv2_18 "
                "hgnet_tiny selecsls42 cspresnet50d darknetaa53 eca_nfnet_l0 nf_resnet50 resnetaa50 resnet50_gn"
            ),
        ),
        _SIZES,
    ),
    "plain": Pool(
        (
            *_timm(
                "repvgg_b1 vgg11_bn fasternet_s repvgg_d2se repvgg_b1g4 repvgg_b2g4 mobileone_s0 mobileone_s4 "
                "fasternet_t0 fasternet_m repvgg_a2"
            ),
            "torchvision:vgg11_bn",
        ),
        (None, "3x128x128", "3x160x160", "3x192x192"),
    ),
    "inverted": Pool(
        (
            *_timm(
                "tf_mobilenetv3_large_075 mobilenetv2_120d mobilenetv4_hybrid_medium tinynet_a efficientnet_em "
                "mobilenetv2_110d mobilenetv4_conv_medium rexnet_130 spnasnet_100 tinynet_b lcnet_100 "
                "mobilenet_edgetpu_v2_s repvit_m0_9 efficientnet_b2 efficientnet_lite1 efficientnet_lite3 "
                "mobilenetv3_large_150d mobilenetv4_conv_large mobilenet_edgetpu_v2_m lcnet_150 lcnet_075 "
                "semnasnet_100 semnasnet_140 hardcorenas_a hardcorenas_f rexnet_150 fbnetv3_g ghostnetv3_100 "
                "tf_efficientnetv2_b0 tf_efficientnetv2_b1 mixnet_s mixnet_m mobilenetv1_125 tinynet_c "
                "mobilenetv4_conv_aa_medium gc_efficientnetv2_rw_t hardcorenas_e ghostnet_130 mnasnet_050 "
                "repghostnet_100 repghostnet_150 rexnet_200 efficientnet_b0_gn mobilenetv3_rw "
                "tf_mobilenetv3_large_minimal_100 efficientnet_cc_b0_4e"
            ),
        ),
        _SIZES,
    ),
    "dense": Pool(
        (
            *_timm(
                "densenet161 ese_vovnet57b rdnet_tiny vovnet57a xception65 inception_v4 inception_resnet_v2 "
                "dpn48b dpn68 dpn92 eca_vovnet39b xception41p rdnet_small legacy_xception hrnet_w18_ssld "
                "xception71"
            ),
            "torchvision:densenet161",
        ),
        (None, "3x192x192", "3x256x256"),
    ),
    "grouped": Pool(
        (
            *_timm(
                "regnetx_008 regnety_006 seresnext50_32x4d skresnext50_32x4d regnetz_c16 regnetx_006 "
                "resnext101_32x4d regnetz_b16 seresnext26t_32x4d resnest14d regnetx_032 regnety_032 regnety_040 "
                "seresnext26d_32x4d resnest26d resnext50d_32x4d gcresnext26ts gcresnext50ts seresnext26ts "
                "eca_resnext26ts regnetv_040 regnetz_005 dla60x legacy_seresnext26_32x4d resnest50d_1s4x24d "
                "regnetz_d8 regnety_120"
            ),
            "torchvision:shufflenet_v2_x2_0",
            "torchvision:regnet_x_1_6gf",
            "torchvision:regnet_x_800mf",
            "torchvision:regnet_y_1_6gf",
        ),
        _SIZES,
    ),
    "modern": Pool(
        (
            *_timm(
                "convnext_femto convnextv2_nano caformer_s18 inception_next_tiny fastvit_t8 focalnet_small_srf "
                "edgenext_small focalnet_tiny_srf convformer_s18 convnext_pico convnext_nano_ols convnext_tiny "
                "convnextv2_tiny mambaout_tiny mambaout_small inception_next_small fastvit_s12 fastvit_sa24 "
                "edgenext_xx_small edgenext_base focalnet_tiny_lrf starnet_s1 starnet_s4 convnext_atto_ols "
                "convnext_femto_ols poolformerv2_s24 caformer_b36 convnext_tiny_hnf edgenext_small_rw"
            ),
        ),
        (None, None, "3x160x160", "3x192x192", "3x256x256"),
    ),
    "vit": Pool(
        (
            *_timm(
                "deit_small_distilled_patch16_224 pit_ti_224 cait_xxs36_224 vit_base_patch32_224 pit_s_224 "
                "vit_relpos_small_patch16_224 xcit_tiny_12_p16_224 xcit_nano_12_p16_224 "
                "vit_dwee_patch16_reg1_gap_256 convit_tiny tnt_s_patch16_224 vit_pwee_patch16_reg1_gap_256 "
                "convit_small xcit_tiny_24_p16_224 xcit_small_12_p16_224 vit_srelpos_small_patch16_224 "
                "vit_medium_patch16_gap_240 vit_medium_patch16_reg1_gap_256 flexivit_small "
                "deit3_medium_patch16_224 vit_base_patch32_plus_256 eva02_tiny_patch14_224 crossvit_15_240 "
                "crossvit_9_dagger_240 vit_betwixt_patch16_reg1_gap_256 cait_xs24_384 xcit_tiny_12_p8_224 "
                "vit_base_patch32_clip_224 vit_small_patch16_18x2_224"
            ),
        ),
    ),
    "windowed": Pool(
        (
            *_timm(
                "twins_pcpvt_small gcvit_xxtiny maxvit_rmlp_pico_rw_256 swin_s3_tiny_224 swinv2_cr_tiny_224 "
                "twins_svt_small nest_tiny"
            ),
            "torchvision:swin_t",
            *_timm(
                "gcvit_xtiny gcvit_tiny coatnext_nano_rw_224 maxvit_tiny_tf_224 maxxvit_rmlp_nano_rw_256 "
                "coatnet_0_rw_224 nest_small davit_tiny swinv2_cr_tiny_ns_224 swin_s3_small_224 twins_pcpvt_base "
                "hiera_small_224 coatnet_bn_0_rw_224 maxvit_nano_rw_256 coatnet_rmlp_nano_rw_224 nest_tiny_jx"
            ),
            "torchvision:swin_s",
            "torchvision:maxvit_t",
        ),
    ),
    "mixer": Pool(
        (
            *_timm(
                "sequencer2d_m resmlp_24_224 mixer_s16_224 sequencer2d_s gmlp_b16_224 resmlp_36_224 mixer_l32_224 "
                "sequencer2d_l"
            ),
        ),
    ),
    "hybrid": Pool(
        (
            *_timm(
                "mobilevitv2_050 mobilevitv2_100 tiny_vit_11m_224 mobilevit_s visformer_small levit_192 "
                "mobilevitv2_075 coat_lite_mini pvt_v2_b1 poolformerv2_s12 botnet26t_256 swiftformer_s "
                "efficientformerv2_s2 mobilevitv2_125 mobilevitv2_150 efficientvit_b2 repvit_m2_3 "
                "tiny_vit_21m_224 levit_128 levit_256 levit_conv_128 levit_conv_128s coat_lite_small coat_tiny "
                "pvt_v2_b0 pvt_v2_b2 poolformer_s24 swiftformer_xs swiftformer_l1 efficientvit_m0 efficientvit_m2 "
                "efficientvit_m5 efficientformer_l3 halonet26t shvit_s1 shvit_s2 eca_botnext26ts_256 mvitv2_tiny "
                "vit_small_r26_s32_224 repvit_m0_9 resnet50_clip lamhalobotnet50ts_256 lambda_resnet26t "
                "convmixer_768_32"
            ),
        ),
    ),
    "encoder": Pool(
        (
            "transformers:bert-medium",
            "transformers:opt-125m",
            "transformers:distilgpt2",
            "transformers:gpt2-tiny,n_embd=256,n_head=4",
            "transformers:gpt2",
            "transformers:smollm-135m",
            "transformers:llama-tiny,num_hidden_layers=6",
            "transformers:electra-small",
            "transformers:bert-mini,num_hidden_layers=8",
            "transformers:vit-small",
        ),
        seqs=(32, 48, 80, 160, 192),
    ),
    "mamba": Pool(
        (
            "transformers:mamba2-tiny,hidden_size=320,num_heads=20,num_hidden_layers=4",
            "transformers:mamba-tiny,hidden_size=192,num_hidden_layers=6",
            "transformers:mamba2-tiny,hidden_size=512,num_heads=32,num_hidden_layers=3",
        ),
        seqs=(32, 48, 96),
        mode="prefill",
    ),
}

# (inference, training) draws of each stratum.
WANTED: dict[str, tuple[int, int]] = {
    "residual": (6, 4), "plain": (2, 2), "inverted": (6, 4), "dense": (3, 1), "grouped": (3, 2), "modern": (4, 1),
    "vit": (4, 2), "windowed": (2, 0), "mixer": (2, 0), "hybrid": (4, 2), "encoder": (2, 1), "mamba": (2, 0),
}  # fmt: skip

# Draws that do not count, by job name.
REFUSED: dict[str, str] = {
    "timm:ecaresnet50t infer b4": "45.2 GFLOP",
    "timm:dpn92 infer b16 3x256x256": "273 GFLOP",
    "timm:legacy_xception infer b8 3x256x256": "95.7 GFLOP",
    "torchvision:regnet_x_1_6gf infer b32 3x320x320": "211 GFLOP",
    "timm:regnety_032 infer b8": "51.2 GFLOP",
    "timm:focalnet_tiny_lrf infer b8": "73.2 GFLOP",
    "timm:sequencer2d_s infer b4": "67.8 GFLOP",
    "timm:vit_small_r26_s32_224 infer b8": "56 GFLOP",
    "transformers:opt-125m infer b32 seq80": "637 GFLOP",
    "timm:gcresnet50t train b16 3x192x192 momentum": "293 GFLOP",
    "timm:resnetrs50 train b4 3x320x320 adamw": "220 GFLOP",
    "timm:resnet33ts train b8 3x320x320 adamw": "360 GFLOP",
    "timm:repvgg_b1 train b4 3x192x192": "232 GFLOP",
    "torchvision:densenet161 train b2 3x256x256": "122 GFLOP",
    "timm:vit_base_patch32_clip_224 train b2 momentum": "53.1 GFLOP",
    "timm:convit_small train b16": "556 GFLOP",
    "transformers:vit-small train b4 seq80 adamw": "transformers:vit-small reads images",
    "timm:xception71 infer b32 3x192x192": "461 GFLOP",
    "timm:regnety_120 infer b4": "97.1 GFLOP",
    "timm:edgenext_base infer b32 3x256x256": "251 GFLOP",
    "timm:gmlp_b16_224 infer b32": "1.02e+03 GFLOP",
    "transformers:vit-small infer b4 seq80": "transformers:vit-small reads images",
    "timm:legacy_seresnet34 train b4": "87.3 GFLOP",
    "timm:repvgg_b2g4 train b1 momentum": "76 GFLOP",
    "timm:dpn48b train b16 momentum": "163 GFLOP",
    "timm:xcit_tiny_24_p16_224 train b4 momentum": "57.1 GFLOP",
    "timm:vit_srelpos_small_patch16_224 train b4": "110 GFLOP",
    "transformers:gpt2 train b4 seq160": "489 GFLOP",
    "timm:inception_next_small infer b16 3x192x192": "199 GFLOP",
    "timm:sequencer2d_l infer b2": "67.1 GFLOP",
    "transformers:bert-mini,num_hidden_layers=8 infer b32 seq160": "72.3 GFLOP",
    "timm:resnetv2_18 train b32 3x128x128": "112 GFLOP",
    "timm:rdnet_tiny train b4 3x192x192 momentum": "90.6 GFLOP",
    "timm:crossvit_15_240 train b4 momentum": "143 GFLOP",
    "timm:pit_s_224 train b32 adamw": "570 GFLOP",
    "transformers:electra-small train b2 seq32 adamw": "no transformers configuration named 'electra-small'",
    "timm:resmlp_24_224 infer b8": "96.5 GFLOP",
    "timm:ese_vovnet57b train b4": "281 GFLOP",
    "timm:vit_base_patch32_plus_256 train b8": "373 GFLOP",
    "timm:xcit_tiny_12_p8_224 train b4 adamw": "117 GFLOP",
    "timm:vit_medium_patch16_reg1_gap_256 train b4 adamw": "260 GFLOP",
    "timm:cait_xxs36_224 train b16 adamw": "367 GFLOP",
    "timm:deit3_medium_patch16_224 train b4 momentum": "195 GFLOP",
    "timm:deit_small_distilled_patch16_224 train b2 momentum": "56.7 GFLOP",
    "timm:tnt_s_patch16_224 train b32 adamw": "1.02e+03 GFLOP",
    "timm:cait_xs24_384 train b8 momentum": "937 GFLOP",
    "timm:xcit_small_12_p16_224 train b8 momentum": "233 GFLOP",
    "timm:vit_dwee_patch16_reg1_gap_256 train b8 momentum": "197 GFLOP",
    "timm:vit_medium_patch16_gap_240 train b8 momentum": "450 GFLOP",
    "timm:vit_base_patch32_224 train b2 momentum": "53.1 GFLOP",
    "timm:vit_betwixt_patch16_reg1_gap_256 train b4": "397 GFLOP",
    "transformers:distilgpt2 infer b1 seq192": "in the memory suite",
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
