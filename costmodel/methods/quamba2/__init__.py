"""Quamba2: W8A8, W4A8, W4A16 and mixed, for Mamba-1 and Mamba-2, head to toe (arXiv 2503.22879; METHODS.md §4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import CostmodelError
from ...kernels.pages import place_buffers
from ..quamba import paper_percentile
from ..quamba.build import check_recipe, empty, is_abstract
from ..quamba.calibration import LayerStatistics, Statistics, calibrate, token_rows
from ..quamba.clusters import Clusters, cluster_mamba2, sort_mamba1
from ..quamba.floats import Block, FloatMamba2, FloatModel, read_model
from ..quamba.linear import channel_scales
from ..quamba.model import QuantizedMamba, load, save
from ..quamba.recipe import BlockRecipe, Recipe, Sizes
from ..quamba.rotation import fold_rotation
from .gptq import gptq_int4
from .search import search_blocks

__all__ = ["apply", "load", "make_recipe", "save"]

Bits = Literal["w8a8", "w4a8", "w4a16", "w4ax"]
CLUSTERS = (4, 4)  # head groups by channel groups in each SSD group


def apply(
    model: nn.Module,
    inputs: Any,
    *,
    bits: Bits = "w4a8",
    percentile: float | None = None,
    samples: int = 512,
    seed: int = 0,
    group: int = 128,
    state: Literal["auto", "int8", "float16", "float32"] = "auto",
    rotate: bool = True,
    gptq: bool = True,
    state_groups: bool = True,
    cluster: bool = True,
    wide_share: float = 0.25,
    population: int = 40,
    generations: int = 5,
) -> nn.Module:
    """A quantized copy of a `transformers` Mamba or Mamba-2, embedding and head included; `model` is not changed.

    Args:
        model: ``MambaForCausalLM`` or ``Mamba2ForCausalLM``, real, or fake or meta (then so is the result).
        inputs: token ids to calibrate on, (sequences, length) or a list or dict of such.
        bits: of weights and activations; ``w4ax`` searches which blocks are w4a16, the others are w4a8.
        percentile: of |x| in per cent, above which it is clamped; by the size of the model otherwise.
        samples, seed: at most so many sequences, drawn by the seed.
        group: inputs that share a 4-bit scale.
        state: type of the recurrent state; ``auto`` is int8 for 8-bit activations, fp16 for 16-bit. An int8 state
            never decays below half a unit over (1 - decay): float16 is the remedy, float32 where decays exceed 0.9995.
        rotate, gptq, state_groups, cluster: the ingredients, in the order of the paper's ablation: Hadamard rotations
            of y and of the residual stream, GPTQ for 4-bit weights, a scale for B and C a state group (else one),
            sort-and-cluster of x (else one scale).
        wide_share, population, generations: of the search of w4ax.

    Raises:
        CostmodelError: not such a model, a size that does not fit, or data that cannot give scales.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", "") not in ("mamba", "mamba2"):
        raise CostmodelError(f"quamba2 quantizes Mamba and Mamba-2 of transformers, not {type(model).__name__}")
    layers, is_mamba2 = config.num_hidden_layers, config.model_type == "mamba2"
    recipe = make_recipe(layers, is_mamba2, bits, group, state, rotate, cluster, wide_share)
    quantized = empty(model, recipe)
    if is_abstract(model):
        return quantized
    percent = paper_percentile(model) if percentile is None else percentile
    if not 0 < percent <= 100:
        raise CostmodelError(f"percentile={percent}: give per cent above 0, up to 100")
    rows = token_rows(inputs, samples, seed)
    floats = read_model(model)
    job = _Job(floats, rows, percent, gptq and bits != "w8a8", state_groups)
    if bits != "w4ax":
        return job.fill(quantized)
    return _mixed(model, job, recipe, wide_share, population, generations, seed)


def make_recipe(
    layers: int,
    is_mamba2: bool,
    bits: Bits,
    group: int = 128,
    state: str = "auto",
    rotate: bool = True,
    cluster: bool = True,
    wide_share: float = 0.25,
) -> Recipe:
    """The recipe of a number of bits; arguments as in `apply`."""
    if not 0 <= wide_share <= 1:
        raise CostmodelError(f"wide_share={wide_share}: give a share of the blocks, 0 to 1")
    runs = CLUSTERS if is_mamba2 else (1, CLUSTERS[1])
    narrow = BlockRecipe(
        weight_bits=8 if bits == "w8a8" else 4, rotate=rotate, group=group, folded=rotate,
        clusters=runs if cluster else (1, 1),
        state="int8" if state == "auto" else state,  # type: ignore[arg-type]  # one of State's values
    )  # fmt: skip
    wide = replace(narrow, wide=True, clusters=(1, 1), state="float16" if state == "auto" else narrow.state)
    if wide.state == "int8" and bits in ("w4a16", "w4ax"):
        raise CostmodelError("16-bit activations keep their state in float16 or float32: state=int8 needs a8")
    count = {"w4a16": layers, "w4ax": round(wide_share * layers)}.get(bits, 0)
    ends = 8 if bits == "w8a8" else 4
    blocks = tuple(wide if i < count else narrow for i in range(layers))
    return Recipe("quamba2", blocks, embedding_bits=ends, head_bits=ends, head_wide=bits == "w4a16")


class _Job:
    """What all blocks of a model share while it is quantized."""

    def __init__(self, floats: FloatModel, rows: list[Tensor], percent: float, gptq: bool, state_groups: bool) -> None:
        self.floats, self.rows, self.percent = floats, rows, percent
        self.gptq, self.state_groups = gptq, state_groups
        self.seen: Statistics | None = None
        self.runs: list[Any] = []

    def prepare(self, recipe: Recipe, sizes: Sizes) -> Statistics:
        """Fold, rotate, sort and cluster the float weights, then calibrate what is quantized."""
        if self.seen is None:
            check_recipe(sizes, recipe)
            if any(block.folded for block in recipe.blocks):
                self.floats.fold_norms()
                self.floats.rotate_residual()
            clustered = next((b for b in recipe.blocks if b.clusters != (1, 1)), None)
            self.runs = [None] * len(recipe.blocks)
            if clustered is not None:
                first = calibrate(self.floats, self.rows)
                self.runs = [
                    _cluster(block, seen.largest["u"], clustered.clusters)
                    for block, seen in zip(self.floats.blocks, first.layers)
                ]
            self.seen = calibrate(self.floats, self.rows, moments=self.gptq)
            if not self.state_groups:
                for layer in self.seen.layers:
                    _share_state_groups(layer)
        return self.seen

    def fill_block(self, block: Any, i: int) -> None:
        """Quantize block i into `block`, by its recipe."""
        assert self.seen is not None
        weights, seen, recipe = self.floats.blocks[i], self.seen.layers[i], block.recipe
        found = _gptq_block(weights, seen, recipe) if self.gptq and recipe.weight_bits == 4 else None
        block.fill(weights, seen, self.percent, None if recipe.wide else self.runs[i], found)

    def fill(self, model: QuantizedMamba) -> QuantizedMamba:
        """All blocks, embedding and head."""
        seen = self.prepare(model.recipe, model.sizes)
        for i, block in enumerate(model.blocks):
            self.fill_block(block, i)
        self.fill_ends(model, seen)
        place_buffers(model)
        return model

    def fill_ends(self, model: QuantizedMamba, seen: Statistics) -> None:
        """Embedding and head."""
        head = None
        if self.gptq and model.recipe.head_bits == 4:
            w = self.floats.head
            channel = None if model.recipe.head_wide else channel_scales(w)
            head = gptq_int4(w, seen.head.moments["input"], model.recipe.blocks[0].group, channel)
        model.fill_ends(self.floats, seen.head, head)


def _cluster(block: Block, largest: Tensor, clusters: tuple[int, int]) -> Clusters | Tensor:
    if isinstance(block, FloatMamba2):
        return cluster_mamba2(block, largest, *clusters)
    return sort_mamba1(block, largest, clusters[0] * clusters[1])


def _share_state_groups(seen: LayerStatistics) -> None:
    """One scale for B and one for C: the ablation without a scale a state group."""
    for name in ("Bc", "Cc"):
        if name in seen.largest:
            seen.largest[name] = seen.largest[name].max().expand_as(seen.largest[name]).clone()


def _gptq_block(weights: Block, seen: LayerStatistics, recipe: BlockRecipe) -> dict[str, tuple[Tensor, Tensor]]:
    out_proj = fold_rotation(weights.out_proj) if recipe.rotate else weights.out_proj
    moments = {"in_proj": "input", "out_proj": "y_rotated" if recipe.rotate else "y"}
    found = {}
    for name, w in (("in_proj", weights.in_proj), ("out_proj", out_proj)):
        channel = None if recipe.wide else channel_scales(w)
        found[name] = gptq_int4(w, seen.moments[moments[name]], recipe.group, channel)
    return found


def _mixed(
    model: nn.Module, job: _Job, recipe: Recipe, share: float, population: int, generations: int, seed: int
) -> QuantizedMamba:
    """Quantize every block both ways, search, and keep the better choice."""
    count = round(share * len(recipe.blocks))
    wide_recipe, narrow_recipe = _kinds(recipe)
    sets = {}
    seen: Statistics | None = None
    for wide, block in ((False, narrow_recipe), (True, wide_recipe)):
        one = empty(model, replace(recipe, blocks=(block,) * len(recipe.blocks)))
        seen = job.prepare(replace(recipe, blocks=(narrow_recipe,) * len(recipe.blocks)), one.sizes)
        for i, target in enumerate(one.blocks):
            job.fill_block(target, i)
        sets[wide] = list(one.blocks)
    host = empty(model, recipe)
    assert seen is not None
    job.fill_ends(host, seen)

    def loss(choice: tuple[bool, ...]) -> float:
        host.blocks = nn.ModuleList([sets[wide][i] for i, wide in enumerate(choice)])
        return sum(_row_loss(host, row) for row in job.rows) / len(job.rows)

    best = search_blocks(len(recipe.blocks), count, loss, population, generations, seed)
    host.blocks = nn.ModuleList([sets[wide][i] for i, wide in enumerate(best)])
    host.recipe = replace(recipe, blocks=tuple(wide_recipe if wide else narrow_recipe for wide in best))
    place_buffers(host)
    return host


def _kinds(recipe: Recipe) -> tuple[BlockRecipe, BlockRecipe]:
    """The wide and the narrow block of a mixed recipe, whichever of them it holds."""
    sample = recipe.blocks[-1]
    narrow = next((b for b in recipe.blocks if not b.wide), replace(sample, wide=False))
    wide = next((b for b in recipe.blocks if b.wide), None)
    if wide is None:
        wide = replace(narrow, wide=True, clusters=(1, 1), state="float16" if narrow.state == "int8" else narrow.state)
    return wide, narrow


@torch.no_grad()
def _row_loss(model: QuantizedMamba, row: Tensor) -> float:
    logits = model(row).logits
    return float(F.cross_entropy(logits[0, :-1], row[0, 1:]))
