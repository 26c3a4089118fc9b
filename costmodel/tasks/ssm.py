"""Task family ssm: byte-level Mamba and Mamba-2 language models of our own training, quantized after it.

The ground of Quamba and Quamba2 (METHODS.md sections 3 and 4). No package has a Mamba language model, so
a small one is trained here for each seed, on nine tenths of the Python 3.11 manual (without that, of the sources of
Python's library); an arm then quantizes it, calibrated on training text, and is evaluated in bits per byte on windows
of every twentieth block of 64 KiB, which nothing else reads: byte by byte through the cache, as in generation, where
rounded states show; `prefill_bits` in the settings is the same by whole windows. Arms on Mamba-2 are written
`mamba2/<method>`.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from costmodel.graph import write_atomic
from costmodel.methods import apply_method
from costmodel.models._compat import require
from costmodel.runs import locked
from costmodel.tasks.data import Text, text
from costmodel.tasks.result import SEEDS, Budget, Progress, TaskResult, cache_folder, cached, key_of, widened
from costmodel.tasks.train import Watch

__all__ = ["ARMS", "SEEDS", "Recipe", "build", "grid", "run"]

VERSION = 2
_TRAIN_VERSION = 1
_BLOCK = 65_536
_QUAMBA2 = tuple(f"quamba2:bits={bits}" for bits in ("w8a8", "w4a8", "w4a16", "w4ax"))
_MAMBA = ("fp32", "bf16", "naive_w8a8", "quamba", *_QUAMBA2)
_MAMBA2 = tuple(f"mamba2/{arm}" for arm in ("fp32", "bf16", "naive_w8a8", *_QUAMBA2))

ARMS: dict[Budget, tuple[str, ...]] = {
    "demo": ("fp32", "naive_w8a8", "quamba", "quamba2:bits=w4a8"),
    "quick": (*_MAMBA, *_MAMBA2),
    "wide": (*_MAMBA, *_MAMBA2),
    "full": (*_MAMBA, *_MAMBA2),
}


@dataclass(frozen=True)
class Recipe:
    """How much to train (steps of batch × length bytes) and on how many windows to calibrate and to test."""

    steps: int
    batch: int
    length: int
    lr: float
    calibration: int
    calibration_length: int
    windows: int
    window: int


RECIPES: dict[Budget, Recipe] = {
    "demo": Recipe(120, 8, 128, 5e-3, 8, 128, 16, 256),
    "quick": Recipe(500, 16, 128, 5e-3, 32, 256, 32, 512),
    "full": Recipe(2000, 16, 128, 5e-3, 128, 512, 256, 512),
}


def grid(budget: Budget) -> list[tuple[str, int]]:
    """The points (arm, seed) of a budget, seed by seed, so that a run cut short has whole fronts.

    Both networks in turn: two processes train one each.
    """
    of = {base: [arm for arm in ARMS[budget] if _parts(arm)[0] == base] for base in ("mamba", "mamba2")}
    arms = sorted(ARMS[budget], key=lambda arm: of[_parts(arm)[0]].index(arm))
    return [(arm, seed) for seed in SEEDS[budget] for arm in arms]


def run(arm: str, *, seed: int, budget: Budget, progress: Progress | None = None) -> TaskResult:
    """Train the seed's language model (once), quantize it by the arm, evaluate: bits per byte, lower is better."""
    if budget == "wide":
        return widened(run(arm, seed=seed, budget="quick", progress=progress))
    recipe, source = RECIPES[budget], text()
    base, method = _parts(arm)
    content = {"family": "ssm", "version": VERSION, "arm": arm, "recipe": asdict(recipe), "data": source.digest}

    def compute() -> TaskResult:
        weights = _trained(base, seed, recipe, source, progress)
        watch = Watch.start()
        model = _adapt(_language_model(base, weights), method, _calibration(source, recipe, seed))
        wall_s, cpu_s = watch.read()
        if method == "bf16":
            _sum_in_fp32(model)
        windows = _test_windows(source, recipe)
        by_window = generation_bits(model, windows, _under(progress, f"{arm}: seed {seed}"))
        prefill = bits_per_byte(model, windows)
        return TaskResult(
            family="ssm",
            arm=arm,
            seed=seed,
            budget=budget,
            metric=f"bits/byte, byte by byte, on {len(by_window)} windows of {recipe.window} test bytes",
            value=math.fsum(by_window) / len(by_window),
            higher_is_better=False,
            train_s=round(wall_s, 3),
            train_cpu_s=round(cpu_s, 3),
            data=source.provenance,
            model=f"transformers {base}, {_config(base)}",
            settings={
                **asdict(recipe),
                "optimizer": "adamw, cosine",
                "prefill_bits": round(math.fsum(prefill) / len(prefill), 5),
                "version": VERSION,
            },
            per_item=[round(bits, 5) for bits in by_window],
        )

    return cached(key_of(**content, budget=budget, seed=seed), compute)


def build(arm: str, seed: int = 0, *, mode: str = "decode", tokens: int = 512) -> tuple[nn.Module, Any, str]:
    """(model, inputs, mode) as `run` evaluates it: one sequence of `tokens` bytes; weights are drawn at random."""
    torch.manual_seed(seed)
    base, method = _parts(arm)
    ids = torch.randint(0, 256, (1, tokens))
    return _adapt(_language_model(base, None), method, torch.randint(0, 256, (2, 128))), {"input_ids": ids}, mode


def _parts(arm: str) -> tuple[str, str]:
    base, slash, method = arm.rpartition("/")
    return (base if slash else "mamba"), method


def _config(base: str) -> Any:
    """Four layers of width 128 over bytes: half a million parameters."""
    transformers = require("transformers")
    common = {
        "vocab_size": 256,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    if base == "mamba":
        return transformers.MambaConfig(state_size=16, time_step_rank=8, **common)
    return transformers.Mamba2Config(state_size=64, head_dim=32, num_heads=8, n_groups=1, chunk_size=64, **common)


def _language_model(base: str, weights: dict[str, Tensor] | None) -> nn.Module:
    transformers = require("transformers")
    kind = {"mamba": transformers.MambaForCausalLM, "mamba2": transformers.Mamba2ForCausalLM}[base]
    model: nn.Module = kind(_config(base))
    if weights is not None:
        model.load_state_dict(weights)
    return model


def _adapt(model: nn.Module, method: str, calibration: Tensor) -> nn.Module:
    """The arm's model. fp32 runs the fused scan: the reference loop computes the same, slowly."""
    model.eval()
    if method == "bf16":
        return model.bfloat16()
    return apply_method("fused_scan" if method == "fp32" else method, model, {"input_ids": calibration})


def _sum_in_fp32(model: nn.Module) -> None:
    """Let the linear layers of a bf16 model compute what a bf16 matmul with sums in fp32 does, by fp32 matmuls.

    Products of two bf16 are exact in fp32 and the result is rounded once, as in the hardware instruction; a processor
    without that instruction takes far longer for the bf16 matmul.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.__class__ = _SumsInFp32


class _SumsInFp32(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        bias: Tensor | None = self.bias
        wide = nn.functional.linear(input.float(), self.weight.float(), None if bias is None else bias.float())
        return wide.to(self.weight.dtype)


def _share(source: Text, name: str) -> np.ndarray:
    """Blocks (n, 65536) of the text: of every twenty, the last is to test on, the tenth kept, the rest to train on."""
    blocks = source.raw[: source.raw.size // _BLOCK * _BLOCK].reshape(-1, _BLOCK)
    place = np.arange(len(blocks)) % 20
    return blocks[{"train": (place != 19) & (place != 9), "test": place == 19}[name]]


def _windows(share: np.ndarray, n: int, length: int, draw: np.random.Generator) -> Tensor:
    """(n, length) int64, drawn at random, each inside one block."""
    block = draw.integers(0, len(share), n)
    start = draw.integers(0, _BLOCK - length + 1, n)
    return torch.from_numpy(share[block[:, None], start[:, None] + np.arange(length)].astype(np.int64))


def _test_windows(source: Text, recipe: Recipe) -> Tensor:
    """The same for every arm and seed."""
    return _windows(_share(source, "test"), recipe.windows, recipe.window, np.random.default_rng(0))


def _calibration(source: Text, recipe: Recipe, seed: int) -> Tensor:
    """Drawn from the training share by the seed."""
    draw = np.random.default_rng([seed, 3])
    return _windows(_share(source, "train"), recipe.calibration, recipe.calibration_length, draw)


def _trained(base: str, seed: int, recipe: Recipe, source: Text, progress: Progress | None = None) -> dict[str, Tensor]:
    """Weights of the language model of a seed; trained once, kept in the cache."""
    content = {"steps": recipe.steps, "batch": recipe.batch, "length": recipe.length, "lr": recipe.lr}
    key = key_of(
        version=_TRAIN_VERSION, base=base, config=_config(base).to_dict(), seed=seed, data=source.digest, **content
    )
    file = cache_folder() / "checkpoints" / f"{base}-{key}.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file):  # another process may be at it
        if not file.is_file():
            torch.manual_seed(seed)
            model = apply_method("fused_scan", _language_model(base, None), {"input_ids": torch.zeros(1, 8).long()})
            watch = Watch.start()
            _fit(model, _share(source, "train"), recipe, seed, _under(progress, f"training {base}, seed {seed}"))
            blob = io.BytesIO()
            torch.save({"weights": model.state_dict(), "train_s": watch.read()}, blob)
            write_atomic(file, blob.getvalue())
    return torch.load(file, map_location="cpu", weights_only=True)["weights"]


def _fit(model: nn.Module, share: np.ndarray, recipe: Recipe, seed: int, progress: Progress | None) -> None:
    """AdamW, gradients clipped at norm 1, a tenth of the steps warm-up, cosine to zero; windows drawn by the seed."""
    model.train()
    draw = np.random.default_rng([seed, 2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.01)
    for step in range(recipe.steps):
        ids = _windows(share, recipe.batch, recipe.length + 1, draw)
        warm = min(1.0, (step + 1) / max(1.0, 0.1 * recipe.steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None and step % 8 == 0:
            progress(step / recipe.steps, f"loss {loss.item() / math.log(2):.2f} bits/byte")


@torch.no_grad()
def bits_per_byte(model: nn.Module, windows: Tensor, progress: Progress | None = None, batch: int = 8) -> list[float]:
    """Mean −log2 p of the bytes of each window after its first, each window from an empty state."""
    model.eval()
    bits: list[float] = []
    for part in windows.split(batch):
        output = model(input_ids=part)
        logits = (output.logits if hasattr(output, "logits") else output).float()
        nats = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), part[:, 1:], reduction="none")
        bits += (nats.mean(1) / math.log(2)).tolist()
        if progress is not None:
            progress(len(bits) / len(windows), "evaluating")
    return bits


@torch.no_grad()
def generation_bits(model: nn.Module, windows: Tensor, progress: Progress | None = None) -> list[float]:
    """As `bits_per_byte`, but one byte a step through the cache, as in generation: states are rounded at every step."""
    model.eval()
    stepper: Any = model
    ours = hasattr(model, "init_cache")
    cache = stepper.init_cache(len(windows)) if ours else None
    nats = torch.zeros(len(windows), dtype=torch.float64)
    length = windows.shape[1] - 1
    for t in range(length):
        token = windows[:, t : t + 1]
        if ours:
            output = stepper(token, cache)
        else:
            output = stepper(input_ids=token, cache_params=cache, use_cache=True)
            cache = output.cache_params
        nats += nn.functional.cross_entropy(output.logits[:, -1].float(), windows[:, t + 1], reduction="none")
        if progress is not None and t % 16 == 0:
            progress(t / length, "generating")
    return (nats / length / math.log(2)).tolist()


def _under(progress: Progress | None, what: str) -> Progress | None:
    if progress is None:
        return None
    return lambda share, detail: progress(share, f"{what}, {detail}")
