"""MobileTL's ops, blocks and steps against PyTorch's own, one thread, interleaved, CPU time.

Ops: Hard-Swish with a one-bit mask, and frozen norm + Hard-Swish fused, against ATen's (the norm's backward with γ
and β, as autograd runs it where both train, and with β alone). Blocks: forward + backward of every inverted residual of
MobileNetV3-Large at batch 8, vanilla with all its weights trained against MobileTL. Steps: MobileNetV3 at 224²,
batch 8, all trained against the last k blocks.

Runs itself again with malloc keeping what is freed: a fault of a page costs more than the work on it.

    taskset -c 1 python tests/benchmarks/bench_mobiletl.py [ops|blocks|steps] [repeats]
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from costmodel.kernels import mobiletl as op
from costmodel.measure.latency import allocator_here, pinned_allocator
from costmodel.methods import apply_method
from costmodel.methods.mobiletl import inverted_residuals
from costmodel.models.load import load_model

SHAPES = [(8, 96, 28, 28), (8, 288, 14, 14), (8, 576, 7, 7), (8, 576, 14, 14)]
aten = torch.ops.aten


def interleaved(functions: list[Callable[[], Any]], repeats: int, warm: int = 2) -> list[list[float]]:
    """CPU seconds of each function, taken in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(-warm, repeats):
        for function, taken in zip(functions, times):
            start = time.thread_time()
            function()
            if repeat >= 0:
                taken.append(time.thread_time() - start)
    return times


def row(name: str, plain: list[float], ours: list[float], bar: str = "") -> None:
    cells = [f"{1e3 * median(t):9.3f} ({1e3 * min(t):.3f})" for t in (plain, ours)]
    gains = f"{median(plain) / median(ours):6.2f} ({min(plain) / min(ours):.2f})"
    print(f"{name:44} {cells[0]:>22} {cells[1]:>22} {gains:>15} {bar}")


def ops(repeats: int = 101) -> None:
    for shape in SHAPES:
        channels = shape[1]
        x, g = torch.randn(shape), torch.randn(shape)
        gamma, beta, mean, var = (
            torch.rand(channels) + 0.5,
            torch.randn(channels),
            torch.randn(channels),
            torch.rand(channels) + 0.5,
        )
        pre = F.batch_norm(x, mean, var, gamma, beta, False, eps=1e-3)
        mask = op.pack(pre >= 0)

        def pair(x=x, mean=mean, var=var, gamma=gamma, beta=beta) -> Tensor:
            return F.hardswish(F.batch_norm(x, mean, var, gamma, beta, False, eps=1e-3))

        def pair_backward(both: bool, x=x, g=g, pre=pre, mean=mean, var=var, gamma=gamma) -> Any:
            g_pre = aten.hardswish_backward(g, pre)
            return aten.native_batch_norm_backward(
                g_pre, x, gamma, mean, var, None, None, False, 1e-3, [True, both, True]
            )

        times = interleaved(
            [
                lambda pre=pre: F.hardswish(pre),
                lambda pre=pre: op.signed_act(pre, "hardswish", True),
                lambda g=g, pre=pre: aten.hardswish_backward(g, pre),
                lambda g=g, mask=mask: op.signed_act_backward(g, mask),
                pair,
                lambda: op.shift_norm_act(x, gamma, beta, mean, var, 1e-3, "hardswish", True, False),  # noqa: B023
                lambda: pair_backward(True),
                lambda: pair_backward(False),
                lambda: op.shift_norm_act_backward(g, mask, gamma, var, 1e-3, [True, True]),  # noqa: B023
            ],
            repeats,
        )
        size = "x".join(map(str, shape))
        row(f"{size} hard-swish forward, with mask", times[0], times[1])
        row(f"{size} hard-swish backward", times[2], times[3])
        row(f"{size} norm + hard-swish forward", times[4], times[5], "bar 2.5")
        row(f"{size} norm + hard-swish backward", times[6], times[8], "bar 4.5")
        row(f"{size}   the same, γ frozen", times[7], times[8])


def block_inputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The input of each inverted residual block."""
    found: dict[str, Tensor] = {}
    names = inverted_residuals(model)
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, n=name: found.setdefault(n, args[0].detach())
        )
    with torch.no_grad():
        model(x)
    return found


def train_pass(block: nn.Module, x: Tensor) -> Callable[[], None]:
    leaf = x.clone().requires_grad_()
    g = torch.randn_like(block(leaf))

    def run() -> None:
        leaf.grad = None
        for p in block.parameters():
            p.grad = None
        block(leaf).backward(g)

    return run


def blocks(repeats: int = 15) -> None:
    model = load_model("torchvision:mobilenet_v3_large").model
    inputs = block_inputs(copy.deepcopy(model), torch.randn(8, 3, 224, 224))
    tuned = apply_method("mobiletl:blocks=all", model, torch.randn(1, 3, 224, 224))
    for name, x in inputs.items():
        pair = [train_pass(m.get_submodule(name).train(), x) for m in (model, tuned)]
        times = interleaved(pair, repeats)
        hidden = max(p.shape[0] for p in model.get_submodule(name).parameters())
        row(f"{name} {'x'.join(map(str, x.shape[1:]))} hidden {hidden}", *times, "bar 1")


def step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    labels = torch.arange(len(x))

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return run


def steps(repeats: int = 7) -> None:
    x = torch.randn(8, 3, 224, 224)
    for name in ("mobilenet_v3_small", "mobilenet_v3_large"):
        model = load_model(f"torchvision:{name}").model
        runs = [step(apply_method(s, model, x), x) for s in ("full", *(f"mobiletl:blocks={k}" for k in (1, 3, 5)))]
        full, *tuned = interleaved(runs, repeats)
        for k, times in zip((1, 3, 5), tuned):
            row(f"{name} step, all against last {k}", full, times, "bar 1.56 (FLOPs)" if k == 5 else "")


if __name__ == "__main__":
    if allocator_here() != "pinned":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **pinned_allocator()})
    torch.set_num_threads(1)
    torch.manual_seed(0)
    what = sys.argv[1] if len(sys.argv) > 1 else "all"
    repeats = [int(a) for a in sys.argv[2:3]]
    print(f"{'ms of CPU time: median (min)':44} {'PyTorch':>22} {'ours':>22} {'speed-up':>15}")
    for part in (ops, blocks, steps):
        if what in ("all", part.__name__):
            part(*repeats)
