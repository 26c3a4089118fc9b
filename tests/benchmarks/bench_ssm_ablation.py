"""Perplexity with and without each ingredient of Quamba and Quamba2, in the order of the papers.

``python tests/benchmarks/bench_ssm_ablation.py [--seeds 0 1 2] [--bases mamba mamba2]`` on the byte-level models
that the task family ssm trains (`costmodel pareto --family ssm`; results are kept in its cache, so a table that was
stopped goes on). Perplexity is per byte, 2^(bits/byte): of whole windows (prefill), and byte by byte through the cache,
as in generation. With --search, which blocks W4AX made wide, and the calibration loss of each choice.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import Any

from costmodel.methods.quamba2 import search
from costmodel.tasks import ssm
from costmodel.tasks.data import text
from costmodel.tasks.result import TaskResult

QUAMBA = (
    ("naive static W8A8", "naive_w8a8"),
    ("+ percentile of x", "quamba:rotate=false"),
    ("+ Hadamard of y: Quamba W8A8", "quamba"),
)
_NONE = "rotate=false,gptq=false,state_groups=false,cluster=false"


def quamba2_rows(bits: str, is_mamba2: bool) -> Iterator[tuple[str, str]]:
    """Rows of one precision: nothing, then one ingredient more in each, the whole last."""
    off = dict(part.split("=") for part in _NONE.split(","))
    four, narrow = bits != "w8a8", bits != "w4a16"
    if not four:
        del off["gptq"]  # int8 weights are rounded to nearest
    if not narrow or not is_mamba2:
        off.pop("state_groups")  # Mamba has one B and one C
    if not narrow:
        off.pop("cluster")
    name = f"Quamba2 {bits.upper()}"
    labels = {
        "rotate": "+ Hadamard of y and of the residual", "gptq": "+ GPTQ", "state_groups": "+ scales of B, C by group",
        "cluster": "+ sort-and-cluster of x",
    }  # fmt: skip
    title = f"{name}: round to nearest"
    while off:
        yield title, f"quamba2:bits={bits}," + ",".join(f"{k}={v}" for k, v in off.items())
        ingredient = next(iter(off))
        title = labels[ingredient]
        del off[ingredient]
    yield f"{title}: {name}", f"quamba2:bits={bits}"
    if narrow:
        yield "with a state in fp16, not int8", f"quamba2:bits={bits},state=float16"


def rows(base: str) -> Iterator[tuple[str, str]]:
    yield "fp32", "fp32"
    if base == "mamba":
        yield from QUAMBA
    else:
        yield QUAMBA[0]
    for bits in ("w8a8", "w4a8", "w4a16"):
        yield from quamba2_rows(bits, base == "mamba2")
    yield "Quamba2 W4AX", "quamba2:bits=w4ax"


def arm_of(base: str, method: str) -> str:
    return method if base == "mamba" else f"{base}/{method}"


def perplexities(result: TaskResult) -> tuple[float, float]:
    return 2.0 ** float(result.settings["prefill_bits"]), 2.0**result.value


def table(base: str, seeds: list[int], budget: Any) -> None:
    print(f"\n{base}, seeds {seeds}: perplexity a byte (bits/byte), mean over the seeds", flush=True)
    print(f"{'':55s} {'prefill':>17s} {'generation':>17s}   each seed, generation - fp32 in bits/byte")
    plain = {seed: ssm.run(arm_of(base, "fp32"), seed=seed, budget=budget) for seed in seeds}
    for label, method in rows(base):
        found = [ssm.run(arm_of(base, method), seed=seed, budget=budget) for seed in seeds]
        prefill, generation = (math.fsum(v) / len(v) for v in zip(*map(perplexities, found)))
        change = " ".join(f"{r.value - plain[r.seed].value:+.4f}" for r in found)
        print(
            f"{label:55s} {prefill:8.4f} ({math.log2(prefill):.4f}) {generation:8.4f} ({math.log2(generation):.4f})"
            f"   {change}", flush=True,
        )  # fmt: skip


def searched(base: str, seed: int, budget: Any) -> None:
    """W4AX once more, with every choice that the search rated."""
    recipe, source = ssm.RECIPES[budget], text()
    rated: dict[tuple[bool, ...], float] = {}
    plain = search.search_blocks

    def watched(blocks: int, wide: int, loss: Any, *rest: Any) -> Any:
        def noted(choice: tuple[bool, ...]) -> float:
            rated[choice] = loss(choice)
            return rated[choice]

        return plain(blocks, wide, noted, *rest)

    from costmodel.methods import quamba2

    quamba2.search_blocks = watched
    try:
        weights = ssm._trained(base, seed, recipe, source)
        model: Any = ssm._adapt(
            ssm._language_model(base, weights), "quamba2:bits=w4ax", ssm._calibration(source, recipe, seed)
        )
    finally:
        quamba2.search_blocks = plain
    chosen = [i for i, block in enumerate(model.recipe.blocks) if block.wide]
    losses = ", ".join(f"{[i for i, w in enumerate(c) if w]} {v / math.log(2):.5f}" for c, v in sorted(rated.items()))
    print(f"{base}, seed {seed}: W4AX makes block {chosen} W4A16, the others W4A8; bits/byte on calibration: {losses}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bases", nargs="+", default=["mamba", "mamba2"])
    parser.add_argument("--budget", default="quick", choices=("demo", "quick", "full"))
    parser.add_argument("--search", action="store_true")
    options = parser.parse_args()
    for base in options.bases:
        table(base, options.seeds, options.budget)
        for seed in options.seeds if options.search else ():
            searched(base, seed, options.budget)


if __name__ == "__main__":
    main()
