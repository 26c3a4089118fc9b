"""Backward of an LBP-WHT layer (both gradients, transforms included) against exact mm + mm, one thread, interleaved.

Prints a row a shape and order: medians and minima of CPU time, the speed-up, the ratio of FLOPs by METHODS.md's
formulas (butterflies included), and the share of it that was reached: the bar is 0.8 for o = 2, 0.9 above. The last
column is the share that a roofline would reach: products as fast as out of L2, g_y read and both gradients
written once, at the speed of torch's own sum and fill on the same tensors in the same turn.

Runs itself again with malloc keeping what is freed: a fault of a page costs more than the work on it.

    taskset -c 1 python tests/benchmarks/bench_lbp_wht.py [repeats [order ...]]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from costmodel.costs.lbp_wht import tile_count
from costmodel.kernels.gemm_f32 import gemm
from costmodel.kernels.lbp_wht import lbp_wht_backward
from costmodel.kernels.wht import Tiling, project, select_bases
from costmodel.measure.latency import allocator_here, pinned_allocator

# name, images, side of the token grid, channels in and out
SHAPES = [
    ("ViT-S 14x14 fc1", 8, 14, 384, 1536),
    ("ViT-S 14x14 fc2", 8, 14, 1536, 384),
    ("ViT-S 16x16 fc1", 8, 16, 384, 1536),
    ("ViT-S 16x16 fc2", 8, 16, 1536, 384),
    ("Swin 8x8 fc1", 32, 8, 384, 1536),
    ("Swin 8x8 fc1", 16, 8, 768, 3072),
    ("EfficientFormer fc1", 32, 7, 448, 1792),
    ("EfficientFormer fc2", 32, 7, 1792, 448),
]
ORDERS = (2, 3, 4, 6, 8)


def flop_ratio(images: int, side: int, inputs: int, outputs: int, rank: int) -> float:
    """Exact backward over LBP-WHT's, METHODS.md §1: matmuls and 2·3·64·T adds a channel."""
    tiles = tile_count((side, side), 8)
    exact = 4 * side * side * inputs * outputs
    return exact / (4 * rank * tiles * inputs * outputs + 2 * 3 * 64 * tiles * (inputs + outputs))


def interleaved(functions: list[Callable[[], object]], g: Tensor, repeats: int) -> list[list[float]]:
    """CPU seconds of each function, taken in turn, each just after g_y was written, as it is in a backward pass."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(-2, repeats):
        for function, taken in zip(functions, times):
            g.neg_()
            start = time.thread_time()
            function()
            if repeat >= 0:
                taken.append(time.thread_time() - start)
    return times


def case(
    images: int, side: int, inputs: int, outputs: int, orders: tuple[int, ...]
) -> tuple[list[Callable[[], object]], Tensor]:
    """The exact backward, then that of each order; and g_y."""
    tokens = images * side * side
    x, g, w = torch.randn(tokens, inputs), torch.randn(images, side * side, outputs), torch.randn(outputs, inputs)

    def exact() -> tuple[Tensor, Tensor]:
        flat = g.view(tokens, outputs)
        return flat @ w, flat.T @ x

    functions: list[Callable[[], object]] = [exact]
    for order in orders:
        tiling = Tiling((side, side), 0, 8, select_bases(order, "l1", 8), "zero")
        x_hat = project(x.view(images, -1, inputs), tiling, mean=False)
        functions.append(lambda t=tiling, h=x_hat: lbp_wht_backward(g, h, w, *t, [True, True, False]))
    return functions, g


def roofs(g: Tensor, inputs: int, outputs: int) -> list[Callable[[], object]]:
    """Read g_y; write gradients as large as g_x and g_W; a product of `HOT` FLOPs in L2, by torch and by us."""
    g_x, g_w = torch.empty(*g.shape[:2], inputs), torch.empty(outputs, inputs)
    a, b, c = torch.randn(96, 384), torch.randn(384, 384), torch.empty(96, 384)

    def hot() -> None:
        torch.mm(a, b, out=c)

    def hot_ours() -> None:
        gemm(96, 384, 384, a.data_ptr(), 1536, 4, b.data_ptr(), 1536, c.data_ptr(), c.data_ptr(), 96, 1536, 0)

    return [g.sum, lambda: (g_x.fill_(1.0), g_w.fill_(1.0)), hot, hot_ours]


HOT = 2 * 96 * 384 * 384


def main(repeats: int = 21, orders: tuple[int, ...] = ORDERS) -> None:
    torch.set_num_threads(1)
    print(f"{repeats} repeats, CPU time, ms: median (min)")
    print(
        f"{'case':22} {'B':>3} {'o':>2} {'exact':>15} {'lbp-wht':>15} {'speed-up':>8} {'FLOPs':>6} share (of min)  roof"
    )
    for name, images, side, inputs, outputs in SHAPES:
        functions, g = case(images, side, inputs, outputs, orders)
        exact, *others = interleaved([*functions, *roofs(g, inputs, outputs)], g, repeats)
        fast, (read, written, *hot) = others[: len(orders)], others[len(orders) :]
        for order, taken in zip(orders, fast):
            rank = len(select_bases(order, "l1", 8))
            ratio = flop_ratio(images, side, inputs, outputs, rank)
            products = 4 * images * tile_count((side, side), 8) * rank * inputs * outputs
            least = median(read) + median(written) + products * min(map(min, hot)) / HOT
            gain, best, roof = median(exact) / median(taken), min(exact) / min(taken), median(exact) / least
            cells = [f"{1e3 * median(t):7.2f} ({1e3 * min(t):.2f})" for t in (exact, taken)]
            reached = "" if gain / ratio >= (0.8 if order == 2 else 0.9) else "  <"
            shape = f"{name} {inputs}"
            print(
                f"{shape:22} {images:3} {order:2} {cells[0]:>15} {cells[1]:>15} {gain:8.2f} {ratio:6.2f}"
                f" {gain / ratio:5.2f} ({best / ratio:.2f}) {roof / ratio:11.2f}{reached}"
            )


if __name__ == "__main__":
    if allocator_here() != "pinned":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **pinned_allocator()})
    given = [int(a) for a in sys.argv[1:]]
    main(*given[:1], *([tuple(given[1:])] if given[1:] else []))
