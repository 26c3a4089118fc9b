"""Prefill: one block and the scan alone, transformers fp32 against ours, one thread, interleaved in one process.

Run: flock /tmp/measure.lock taskset -c 1 python tests/benchmarks/bench_mamba_prefill.py [--kind mamba2]
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch

from costmodel.kernels.selective_scan import selective_scan
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


def training(hidden: int, layers: int, length: int) -> None:
    config = transformers.MambaConfig(hidden_size=hidden, num_hidden_layers=layers, vocab_size=256)
    model = fused_scan.apply(transformers.MambaForCausalLM(config)).train()
    ids = torch.randint(0, 256, (1, length))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()

    values = measure({"step": step}, 5)["step"]
    print(f"training step, {layers} layers, d {hidden}, L {length}: median {np.median(values):.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", default="mamba", choices=("mamba", "mamba2"))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        blocks(options.kind, 768, 512, options.repeats)
        blocks(options.kind, 2560, 128, options.repeats)
        if options.kind == "mamba":
            scans(1536, 512, options.repeats)
            scans(5120, 128, options.repeats)
    if options.kind == "mamba":
        training(256, 4, 512)


if __name__ == "__main__":
    main()
