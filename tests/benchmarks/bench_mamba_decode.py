"""Decode of Mamba-130M and of one 2.8B block, batch 1: transformers fp32, our own fused fp32, our quantized models.

Interleaved in one process, weights random (tame), median and minimum of repeats; the read bandwidth of DRAM is measured
in the same rotation, because this machine's memory has two states. "of bytes": speed over our own fused fp32 as a share
of the ratio of their bytes. ``python tests/benchmarks/bench_mamba_decode.py --model mamba-2.8b --layers 1``
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from fused_fp32 import FusedFloatMamba
from numba import njit

from costmodel.methods import fused_scan, quamba, quamba2
from costmodel.models._compat import require

transformers = require("transformers")


@njit(cache=True)
def total(x):
    s = 0
    for i in range(len(x)):
        s += x[i]
    return s


def tame(model):
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.mixer.in_proj.weight.mul_(0.2)
            layer.mixer.out_proj.weight.mul_(0.5)
            if hasattr(layer.mixer, "x_proj"):
                layer.mixer.x_proj.weight.mul_(0.2)
    return model.eval()


def build(kind: str, layers: int):
    torch.manual_seed(0)
    if kind == "mamba-130m":
        config = transformers.MambaConfig(hidden_size=768, num_hidden_layers=layers)
        return tame(transformers.MambaForCausalLM(config))
    if kind == "mamba-2.8b":
        config = transformers.MambaConfig(hidden_size=2560, num_hidden_layers=layers, vocab_size=64)
        return tame(transformers.MambaForCausalLM(config))
    sizes = {"hidden_size": 768, "num_heads": 24, "vocab_size": 50288}
    if kind == "mamba2-2.7b":
        sizes = {"hidden_size": 2560, "num_heads": 80, "vocab_size": 64}
    config = transformers.Mamba2Config(
        **sizes, num_hidden_layers=layers, head_dim=64, n_groups=1, state_size=128, tie_word_embeddings=True
    )
    return tame(transformers.Mamba2ForCausalLM(config))


def cached_step(model, ids) -> Callable[[], object]:
    """One decode step of a transformers model after a short context."""
    cache = model(ids, use_cache=True).cache_params
    token = ids[:, :1]
    return lambda: model(token, cache_params=cache, use_cache=True)


def own_step(model, ids) -> Callable[[], object]:
    cache = model.init_cache(ids.shape[0])
    token = ids[:, :1]
    return lambda: model(token, cache)


def weight_bytes(model, state: bool = True) -> int:
    """Bytes that a token reads: weights without an untied embedding table, states read and written."""
    tied = "head_weight" not in model._buffers and model.head is None
    weights = sum(t.nbytes for n, t in model.state_dict().items() if n != "table" or tied)
    return weights + 2 * model.init_cache(1).nbytes * state


def rotate(cases: dict[str, Callable[[], object]], repeats: int, inner: dict[str, int]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, call in cases.items():
            for _ in range(inner.get(name, 3)):
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="mamba-130m")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        original = build(options.model, options.layers)
        ids = torch.randint(0, 64, (1, 4))
        models = {f"quamba2 {b}": quamba2.apply(original, ids, bits=b, gptq=False) for b in ("w8a8", "w4a8", "w4a16")}
        if options.model.startswith("mamba-"):
            models = {"quamba w8a8": quamba.apply(original, ids), **models}
        cases = {name: own_step(model, ids) for name, model in models.items()}
        cases["transformers fp32"] = cached_step(original, ids)
        fused = fused_scan.apply(build(options.model, options.layers))
        cases["fused_scan fp32"] = cached_step(fused, ids)
        moved = {name: weight_bytes(model) for name, model in models.items()}
        if options.model.startswith("mamba-"):
            own = FusedFloatMamba(original)
            cases["own fused fp32"], moved["own fused fp32"] = (lambda: own(1)), own.nbytes
        memory = np.ones(96 * 2**20 // 8, np.int64)
        cases["read 96 MiB"] = lambda: total(memory)
        for call in cases.values():
            call()
        seconds = rotate(cases, options.repeats, {"transformers fp32": 1, "fused_scan fp32": 1})
    show(options, seconds, moved, memory.nbytes)


def show(options: argparse.Namespace, seconds: dict[str, list[float]], moved: dict[str, int], block: int) -> None:
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    rate, own = block / median["read 96 MiB"], "own fused fp32"
    print(f"{options.model}, {options.layers} layers, {options.threads} threads, read {rate / 1e9:.1f} GB/s (median)")
    print(
        f"{'':20s} {'median ms':>9s} {'min ms':>8s} {'x HF':>6s} {'min':>6s} {'x own':>6s} {'of bytes':>8s} "
        f"{'GB/s':>6s} {'of read':>8s}   n"
    )
    for name, values in seconds.items():
        t, best = median[name], min(values)
        line = f"{name:20s} {t * 1e3:9.3f} {best * 1e3:8.3f} {median['transformers fp32'] / t:6.2f}"
        line += f" {min(seconds['transformers fp32']) / best:6.2f}"
        if name not in moved:
            line += " " * 32
        elif own in median:
            ratio = median[own] / t
            line += f" {ratio:6.2f} {ratio * moved[name] / moved[own]:8.2f}"
        else:
            line += " " * 16
        if name in moved:
            line += f" {moved[name] / t / 1e9:6.1f} {moved[name] / t / rate:8.2f}"
        print(line, f"  {len(values)}")


if __name__ == "__main__":
    main()
