"""Prefill: one block and the scan alone, transformers fp32 against ours, interleaved in one process.

``python tests/benchmarks/bench_mamba_prefill.py [--kind mamba2] [--threads 2] [--part blocks]``
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch

from costmodel.kernels.selective_scan import selective_scan
from costmodel.kernels.ssd_int8 import ssd_quantized
from costmodel.kernels.ssd_scan import ssd_scan
from costmodel.methods import fused_scan, quamba, quamba2
from costmodel.models._compat import require

transformers = require("transformers")


def block_model(kind: str, hidden: int):
    torch.manual_seed(0)
    if kind == "mamba":
        config = transformers.MambaConfig(hidden_size=hidden, num_hidden_layers=1, vocab_size=64)
        model = transformers.MambaForCausalLM(config)
    else:
        config = transformers.Mamba2Config(
            hidden_size=hidden, num_hidden_layers=1, vocab_size=64, num_heads=hidden // 32, head_dim=64, n_groups=1,
            state_size=128,
        )  # fmt: skip
        model = transformers.Mamba2ForCausalLM(config)
    with torch.no_grad():
        model.backbone.layers[0].mixer.in_proj.weight.mul_(0.2)
    return model.eval()


def report(title: str, seconds: dict[str, list[float]], base: str) -> None:
    print(title)
    reference = np.median(seconds[base])
    for name, values in seconds.items():
        median = np.median(values)
        print(f"  {name:22s} median {median * 1e3:8.2f} min {min(values) * 1e3:8.2f} ms  x {reference / median:6.2f}")


def measure(calls, repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for r in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if r:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def blocks(kind: str, hidden: int, length: int, repeats: int) -> None:
    model = block_model(kind, hidden)
    ids = torch.randint(0, 64, (1, length))
    h = torch.randn(1, length, hidden)
    reference = model.backbone.layers[0]
    fused = fused_scan.apply(copy.deepcopy(model)).backbone.layers[0]
    mixer = reference.mixer
    linears = [m for m in mixer.modules() if isinstance(m, torch.nn.Linear)]
    inputs = [torch.randn(1, length, m.in_features) for m in linears]
    calls = {
        "transformers fp32": lambda: reference(h),
        "its Linears alone": lambda: [m(x) for m, x in zip(linears, inputs)],
        "fused_scan fp32": lambda: fused(h),
    }
    variants = {f"quamba2 {b}": quamba2.apply(model, ids, bits=b, gptq=False) for b in ("w8a8", "w4a8", "w4a16")}
    if kind == "mamba":
        variants = {"quamba w8a8": quamba.apply(model, ids), **variants}
    for name, quantized in variants.items():
        block = quantized.blocks[0]
        states = block.init_state(1)
        calls[name] = lambda block=block, states=states: block(h.clone(), *states)
    report(f"{kind} block, d {hidden}, L {length}", measure(calls, repeats), "transformers fp32")


def scans(width: int, length: int, repeats: int) -> None:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    states = 16
    u, delta, z = (torch.randn(1, length, width) for _ in range(3))
    b, c = (torch.randn(1, length, states) for _ in range(2))
    a, d, bias = -torch.rand(width, states), torch.randn(width), torch.randn(width) - 3
    rows = [t.transpose(1, 2).contiguous() for t in (u, delta, b, c, z)]
    calls = {
        "transformers scan": lambda: mamba_selective_scan(
            rows[0], rows[1], a, rows[2], rows[3], D=d, z=rows[4], delta_bias=bias, delta_softplus=True
        ),
        "selective_scan fp32": lambda: selective_scan(u, delta, a, b, c, d, z, bias),
    }
    report(f"scan, D {width}, L {length}", measure(calls, repeats), "transformers scan")


def ssd_scans(heads: int, p: int, states: int, length: int, repeats: int) -> None:
    """Against the recurrence in torch ops: transformers has the chunked form inside its mixer only (see the blocks)."""
    x, delta = torch.randn(1, length, heads, p), torch.randn(1, length, heads)
    b, c = torch.randn(1, length, 1, states), torch.randn(1, length, 1, states)
    a, d, bias = -torch.rand(heads), torch.randn(heads), torch.randn(heads)
    int8 = {
        name: torch.randint(-127, 128, t.shape, dtype=torch.int8) for name, t in (("x", x), ("dt", delta), ("b", b))
    }
    width, ones = heads * p, torch.ones(1)
    state = torch.zeros(1, heads, p, states, dtype=torch.float16)
    rows = torch.zeros(width // 4, dtype=torch.int32)

    def quantized():
        ssd_quantized(
            int8["x"].flatten(2), int8["dt"], int8["b"].flatten(2), int8["b"].flatten(2), torch.full((width,), 0.01),
            ones * 0.01, ones * 0.01, ones * 0.01, a, d, bias, state, torch.ones(1, states), rows, 0.0, float("inf"),
        )  # fmt: skip

    calls = {
        "ssd_scan fp32": lambda: ssd_scan(x, delta, a, b, c, d, bias),
        "ssd_quantized": quantized,
        "loop over tokens": lambda: ssd_loop(x, delta, a, b, c, d, bias),
    }
    report(f"SSD, {heads} heads of {p}, N {states}, L {length}", measure(calls, repeats), "loop over tokens")


def ssd_loop(x, delta, a, b, c, d, bias):
    """The recurrence as torch ops, a token at a time."""
    dt = torch.nn.functional.softplus(delta + bias)
    decay, h, out = torch.exp(dt * a), torch.zeros(*x.shape[:1], *x.shape[2:], b.shape[-1]), []
    for t in range(x.shape[1]):
        h = h * decay[:, t, :, None, None] + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None]
        out.append((h * c[:, t, :, None]).sum(-1) + d[:, None] * x[:, t])
    return torch.stack(out, 1)


def training(kind: str, hidden: int, layers: int, length: int) -> None:
    common = {"hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": 256}
    if kind == "mamba":
        original = transformers.MambaForCausalLM(transformers.MambaConfig(**common))
    else:
        sizes = {"num_heads": hidden // 32, "head_dim": 64, "n_groups": 1, "state_size": 128}
        original = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**common, **sizes))
    model = fused_scan.apply(original).train()
    ids = torch.randint(0, 256, (1, length))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()

    values = measure({"step": step}, 5)["step"]
    print(f"training step of {kind}, {layers} layers, d {hidden}, L {length}: median {np.median(values):.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", default="mamba", choices=("mamba", "mamba2"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", default="all", choices=("all", "blocks", "scans", "training"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads")
    with torch.no_grad():
        if options.part in ("all", "blocks"):
            blocks(options.kind, 768, 512, options.repeats)
            blocks(options.kind, 2560, 128, options.repeats)
        if options.part in ("all", "scans"):
            if options.kind == "mamba":
                scans(1536, 512, options.repeats)
                scans(5120, 128, options.repeats)
            else:
                ssd_scans(24, 64, 128, 512, options.repeats)
                ssd_scans(80, 64, 128, 128, options.repeats)
    if options.part in ("all", "training"):
        training(options.kind, 256, 4, 512)


if __name__ == "__main__":
    main()
