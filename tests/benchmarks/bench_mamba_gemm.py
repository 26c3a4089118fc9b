"""Integer GEMV and GEMM against the read bandwidth and against torch, one thread, interleaved in one process.

GEMV: copies of a weight in rotation, L3-resident or in DRAM, in huge pages as a quantized model has them, GB/s of
weights and scales beside a read-only sum over the same number of bytes. GEMM: GOP/s.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit

from costmodel.kernels.gemm_int4 import gemm_int4, multiply_int4, pack_int4
from costmodel.kernels.gemm_int8 import gemm_int8_quantized, multiply_int8, pack_int8
from costmodel.kernels.pages import place
from costmodel.kernels.panels import FLOAT, split16

N, K = 3072, 768


@njit(cache=True)
def total(x):
    s = 0
    for i in range(len(x)):
        s += x[i]
    return s


def timed(call, *arguments) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def gemv(copies: int, repeats: int) -> None:
    """One row through `copies` weights in rotation."""
    ones, scale = torch.ones(1), torch.rand(N)
    x8 = torch.randint(-128, 128, (1, K), dtype=torch.int8)
    x16, row = split16(torch.randn(1, K))
    int8 = [t for _ in range(copies) for t in pack_int8(torch.randint(-128, 128, (N, K), dtype=torch.int8))]
    w8 = list(zip(*[iter(place(int8))] * 2))
    w4 = place([pack_int4(torch.randint(0, 16, (N, K), dtype=torch.uint8)) for _ in range(copies)])
    groups = torch.rand(N // 64, K // 128, 64).half()
    plain = [t.numpy() for t in place([torch.ones(N * K // 8, dtype=torch.int64) for _ in range(copies)])]
    out, work = torch.empty(N), torch.empty(4 * K, dtype=torch.int8)
    tensors = {"x8": x8, "x16": x16, "out": out, "work": work, "s": scale, "one": ones, "row": row}
    p = {name: t.data_ptr() for name, t in tensors.items()}
    g, o, w = groups.data_ptr(), p["out"], p["work"]
    a8 = [(panels.data_ptr(), rowsum.data_ptr()) for panels, rowsum in w8]
    a4 = [panels.data_ptr() for panels in w4]
    calls = {  # the kernels as a block's step calls them: a torch op would add 7 us to 30
        "read-only sum": lambda i: total(plain[i]),
        "W8A8": lambda i: multiply_int8(p["x8"], K, w, *a8[i], p["s"], p["one"], 0, FLOAT, o, 1, K, N, 0),
        "W4A8": lambda i: multiply_int4(p["x8"], w, a4[i], g, p["s"], p["one"], 0, FLOAT, o, 1, K, 128, N, 0),
        "W4A16": lambda i: multiply_int4(p["x16"], w, a4[i], g, p["s"], p["row"], 1, FLOAT, o, 1, K, 128, N, 1),
    }
    sizes = {"read-only sum": N * K, "W8A8": N * K + 8 * N}
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for r in range(repeats + 1):
        for name, call in calls.items():
            for _ in range(2):  # the first brings into L3 what fits there
                seconds = sum(timed(call, i) for i in range(copies)) / copies
            if r:
                rates[name].append(sizes.get(name, N * K / 2 + N * K / 64 + 4 * N) / seconds / 1e9)
    base = np.median(rates["read-only sum"])
    print(f"GEMV {N}x{K}, {copies} copies in rotation ({copies * N * K / 2**20:.0f} MiB int8), {repeats} repeats")
    for name, values in rates.items():
        median = np.median(values)
        print(f"  {name:14s} median {median:6.1f} max {max(values):6.1f} GB/s  of read {median / base:5.2f}")


def gemm(rows: int, repeats: int) -> None:
    """`rows` rows through one weight."""
    x = torch.randint(-128, 128, (rows, K), dtype=torch.int8)
    w = torch.randint(-128, 128, (N, K), dtype=torch.int8)
    x16, row = split16(torch.randn(rows, K))
    panels, rowsum = pack_int8(w)
    q, groups = pack_int4(torch.randint(0, 16, (N, K), dtype=torch.uint8)), torch.rand(N // 64, K // 128, 64).half()
    ones, scale = torch.ones(1), torch.rand(N) * 1e-3
    xf, wf, wt = x.float(), w.float(), w.t().contiguous()
    calls = {
        "W8A8 to int8": lambda: gemm_int8_quantized(x, panels, rowsum, scale, ones, N, False),
        "W4A8": lambda: gemm_int4(x, q, groups, scale, ones, N, False),
        "W4A16": lambda: gemm_int4(x16, q, groups, scale, row, N, True),
        "torch._int_mm": lambda: torch._int_mm(x, wt),
        "torch fp32": lambda: F.linear(xf, wf),
    }
    if rows <= 16:
        del calls["torch._int_mm"]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for r in range(repeats + 1):
        for name, call in calls.items():
            spent = timed(call)
            if r:
                seconds[name].append(spent)
    print(f"GEMM {rows}x{N}x{K}, {repeats} repeats")
    for name, values in seconds.items():
        operations = 2 * rows * N * K
        print(
            f"  {name:14s} median {np.median(values) * 1e3:7.3f} min {min(values) * 1e3:7.3f} ms "
            f"{operations / np.median(values) / 1e9:6.0f} GOP/s"
        )


def main() -> None:
    torch.set_num_threads(1)
    gemv(6, 40)
    gemv(60, 12)
    for rows in (8, 32, 512):
        gemm(rows, 15)


if __name__ == "__main__":
    main()
