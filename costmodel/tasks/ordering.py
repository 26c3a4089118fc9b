"""Published orderings of the methods (METHODS.md) against our runs: differences paired by seed, with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from .result import TaskResult, paired

__all__ = ["CLAIMS", "Claim", "Step", "orderings"]


@dataclass(frozen=True)
class Claim:
    """What was published of a family, as a chain of arms from the worst to the best of the accuracy axis.

    Attributes:
        family: ``irb``, ``vit`` or ``ssm``.
        text: the published figures, and of what.
        chain: arms, rising; those that a grid does not have are left out.
        alike: they were published as equal: a difference within the error is what holds.
    """

    family: str
    text: str
    chain: tuple[str, ...]
    alike: bool = False


CLAIMS = (
    Claim(
        "irb",
        "MobileTL: more blocks are more accurate (94.8, 95.5, 95.8, ≈96.1 % with 1 to 4; ProxylessNAS, CIFAR-10)",
        tuple(f"mobiletl:blocks={k}" for k in (1, 2, 3, 5, 8, 12, 16)),
    ),
    Claim(
        "irb",
        "TinyTL-B is below MobileTL's one block at its memory (93.7 against 94.8 %)",
        ("bias", "mobiletl:blocks=1"),
    ),
    Claim(
        "irb",
        "five blocks lose 0.6 points against full fine-tuning (MobileNetV3, CIFAR-10)",
        ("mobiletl:blocks=5", "full"),
    ),
    Claim(
        "vit",
        "LBP-WHT of o = 2 loses 3.7 points against exact (75.61 against 79.28; EfficientFormer-L1, mean of five sets)",
        ("lbp_wht:order=2", "full"),
    ),
    Claim("vit", "LBP-WHT of o = 8 loses nothing (79.34 against 79.28)", ("lbp_wht:order=8", "full"), alike=True),
    Claim(
        "vit",
        "the error of the gradient falls with o (a law of the projector; of accuracies, o = 2 and 8 are published)",
        tuple(f"lbp_wht:order={o}" for o in range(1, 9)),
    ),
    Claim(
        "vit",
        "LBP-WHT is above the best baseline, LoRA (+10.4 % on CIFAR-100 at 9 MFLOPs less; EfficientFormer-L1)",
        ("lora", "lbp_wht:order=8"),
    ),
    Claim(
        "ssm",
        "Quamba lies between naive static W8A8 and unquantized (Wikitext2 perplexity of 130M: 139.9, 25.12, 20.61)",
        ("naive_w8a8", "quamba", "fp32"),
    ),
    *(
        Claim("ssm", f"Quamba2 on {name}: W4A8 < W8A8 < W4A16 < FP16 ({figures} % zero-shot, {size})", tuple(
            f"{base}{arm}" for arm in ("quamba2:bits=w4a8", "quamba2:bits=w8a8", "quamba2:bits=w4a16", "fp32")))
        for name, base, figures, size in (
            ("Mamba", "", "61.4, 62.2, 62.6, 63.1", "2.8B"),
            ("Mamba-2", "mamba2/", "62.1, 62.5, 63.3, 63.8", "2.7B"),
        )
    ),
    *(
        Claim("ssm", f"W4AX mixes W4A8 and W4A16, and lies between them ({name}; no figure published here)", tuple(
            f"{base}quamba2:bits={bits}" for bits in ("w4a8", "w4ax", "w4a16")))
        for name, base in (("Mamba", ""), ("Mamba-2", "mamba2/"))
    ),
    *(
        Claim("ssm", f"rotation and clustering pay against naive W8A8 ({name}; published for Quamba on Mamba)", (
            f"{base}naive_w8a8", f"{base}quamba2:bits=w8a8"))
        for name, base in (("Mamba", ""), ("Mamba-2", "mamba2/"))
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """Two neighbours of a claim's chain in our runs.

    Attributes:
        worse, better: arms, as published.
        gain: mean over seeds of how much better `better` is here, in units of the metric; negative if it is worse.
        error: standard error of that mean (nan for one seed).
        seeds: that both have.
        verdict: ``holds``; ``tie``, where the gain is within two standard errors; ``reversed``; of what was published
            as equal, ``holds`` or ``does not hold``.
    """

    claim: Claim
    worse: str
    better: str
    gain: float
    error: float
    seeds: int
    verdict: str


def orderings(results: Sequence[TaskResult]) -> list[Step]:
    """Each step of each claim about these results that has both of its arms."""
    arms = {(r.family, r.arm) for r in results}
    steps = []
    for claim in CLAIMS:
        chain = [arm for arm in claim.chain if (claim.family, arm) in arms]
        of_family = [r for r in results if r.family == claim.family]
        steps += [_step(claim, of_family, worse, better) for worse, better in pairwise(chain)]
    return steps


def _step(claim: Claim, results: Sequence[TaskResult], worse: str, better: str) -> Step:
    two = [replace(r, per_item=[]) for r in results if r.arm in (worse, better)]
    sign = 1.0 if two[0].higher_is_better else -1.0
    difference = next(s for s in paired(two, worse) if s.arm == better)
    gain, error = sign * difference.mean, difference.stderr
    apart = abs(gain) > 2.0 * error if math.isfinite(error) else True
    if claim.alike:
        verdict = "does not hold" if apart else "holds"
    else:
        verdict = "tie" if not apart else "holds" if gain > 0 else "reversed"
    return Step(claim, worse, better, gain, error, difference.seeds, verdict)
