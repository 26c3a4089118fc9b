"""The reduced matrix products of an LBP-WHT layer around the projections, for fp32 and bf16 rows of tokens on a CPU.

Blocked over output channels, so that nothing as large as ĝ is ever held (`costs.lbp_wht.backward_blocks` says where
the blocks lie), g_W is written once, and one block of ĝ serves both products out of the L2 cache.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
import torch
from numba.core import config
from torch import Tensor

from ..costs.lbp_wht import backward_blocks, kept_sequencies
from ..costs.matmul import LANES
from .gemm_f32 import gemm
from .wht import Tiling, home_map, token_map
from .wht_planes import project_planes, unproject_planes
from .wht_simd import project_tokens, unproject_tokens

__all__ = ["backward_rows", "fits", "project_rows"]

_KINDS: dict[torch.dtype, np.ndarray] = {torch.float32: np.empty(0, np.float32), torch.bfloat16: np.empty(0, np.int16)}


class _Tables(NamedTuple):
    """The arrays of a tiling that the kernels walk."""

    places: np.ndarray
    homes: np.ndarray
    along: int
    down: np.ndarray
    slots: np.ndarray


@cache
def _tables(tiling: Tiling) -> _Tables:
    tile = tiling.tile
    along, columns = kept_sequencies(tile, tiling.bases)
    down, slots = np.zeros(tile, np.int64), np.full((tile, tile), -1, np.int64)
    down[:along] = columns
    for slot, base in enumerate(tiling.bases):
        slots[base % tile, base // tile] = slot
    key = (tiling.grid, tile, tiling.padding)
    return _Tables(token_map(*key), home_map(*key), along, down, slots)


@cache
def _wide_registers() -> bool:
    """Whether the micro-kernel's 24 accumulators of sixteen floats are registers: elsewhere torch's GEMM wins."""
    if getattr(config, "CPU_NAME", None) not in (None, "", "host"):
        return False
    return bool(llvm.get_host_cpu_features().get("avx512f", False))


def fits(x: Tensor, weight: Tensor, tiling: Tiling) -> bool:
    """Whether the vector kernels take a layer: fp32 (or bf16 rows) on a CPU, 16 channels, a map of 16 positions."""
    outputs, inputs = weight.shape[:2]
    wide = min(outputs, inputs) >= LANES and x.dtype == weight.dtype
    if x.device.type != "cpu" or not wide:
        return False
    return x.dtype == torch.float32 and tiling.tokens >= LANES if weight.ndim == 4 else x.dtype in _KINDS


def project_rows(x: Tensor, tiling: Tiling, out: Tensor, scale: float) -> None:
    """Reduced rows of x (B, prefix + h·w, C) or (B, C, h, w) into out (rows, C).

    Either may be a slice of wider channels; at least 16 of them.
    """
    t, kind, prefix, images = _tables(tiling), _KINDS[x.dtype], tiling.prefix, x.shape[0]
    if x.ndim == 4:
        project_planes(
            x.data_ptr(), x.stride(0), out.data_ptr(), out.stride(0), images, x.shape[1], tiling.tokens,
            t.places, tiling.tile, t.along, t.down, t.slots, tiling.rank, scale,
        )  # fmt: skip
        return
    start = x.data_ptr() + prefix * x.stride(1) * kind.itemsize
    project_tokens(
        start, kind, x.stride(0), x.stride(1), out.data_ptr(), out.stride(0), images, x.shape[2],
        t.places, tiling.tile, t.along, t.down, t.slots, tiling.rank, scale,
    )  # fmt: skip
    if prefix:
        out[-images * prefix :].view(images, prefix, -1).copy_(x[:, :prefix])


def _unproject(g_x: Tensor, head: Tensor, tail: Tensor, spilled_lines: int, tiling: Tiling) -> None:
    """g_x from the coefficients of its first rows of tiles in `head` and of the others, and the prefix, in `tail`."""
    t, kind, prefix, images = _tables(tiling), _KINDS[g_x.dtype], tiling.prefix, g_x.shape[0]
    if g_x.ndim == 4:
        source = head if len(head) else tail
        unproject_planes(
            source.data_ptr(), g_x.data_ptr(), g_x.stride(0), images, g_x.shape[1], tiling.tokens,
            t.homes, tiling.tile, t.along, t.down, t.slots, tiling.rank,
        )  # fmt: skip
        return
    down, across = (-(-n // tiling.tile) for n in tiling.grid)
    lines, inputs = images * down, g_x.shape[2]
    start = g_x.data_ptr() + prefix * inputs * kind.itemsize
    for source, begin, stop in ((head, 0, lines - spilled_lines), (tail, lines - spilled_lines, lines)):
        unproject_tokens(
            source.data_ptr(), kind, start, g_x.stride(0), inputs, begin, stop, inputs,
            across, t.homes, tiling.tile, t.along, t.down, t.slots, tiling.rank,
        )  # fmt: skip
    if prefix:
        g_x[:, :prefix].copy_(tail[-images * prefix :].view(images, prefix, inputs))


def _multiply(a: Tensor, b: Tensor, out: Tensor, tail: Tensor, add: bool) -> None:
    """out and below it tail = (or +=) a @ b; a may be a transpose."""
    m, k = a.shape
    n, split = b.shape[1], out.shape[0]
    if a.dtype == torch.float32 and n % LANES == 0 and _wide_registers() and torch.get_num_threads() == 1:
        gemm(
            m, n, k, a.data_ptr(), 4 * a.stride(0), 4 * a.stride(1), b.data_ptr(), 4 * b.stride(0),
            out.data_ptr(), tail.data_ptr(), split, 4 * n, int(add),
        )  # fmt: skip
        return
    for rows, target in ((a[:split], out), (a[split:], tail)):
        if len(rows):
            torch.addmm(target, rows, b, out=target) if add else torch.mm(rows, b, out=target)


def backward_rows(
    g: Tensor, x_hat: Tensor, weight: Tensor, tiling: Tiling, needs_input: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """g_x and g_W of g (B, L, Co) or (B, Co, h, w), x̂ and W; an empty tensor for what is not needed."""
    images, (outputs, inputs) = g.shape[0], weight.shape[:2]
    convolution, flat_weight = g.ndim == 4, weight.view(outputs, inputs)
    coefficients = images * tiling.tiles * tiling.rank
    rows = coefficients + images * tiling.prefix
    blocks = backward_blocks(
        images, tiling.grid, tiling.prefix, tiling.tile, tiling.rank, tiling.padding, inputs, outputs,
        needs_input, convolution,
    )  # fmt: skip
    g_w = g.new_empty((outputs, inputs) if needs_weight else 0)
    shape = (images, inputs, *tiling.grid) if convolution else (images, tiling.tokens, inputs)
    g_x = g.new_empty(shape if needs_input else 0)
    head = tail = g_x
    if needs_input:
        end = images * tiling.tokens
        spilled = blocks.spilled * -(-tiling.grid[1] // tiling.tile) * tiling.rank
        body = g_x.view(end, inputs)
        head = body[end - coefficients : end - spilled] if spilled < coefficients else body[:0]
        tail = g.new_empty((spilled + images * tiling.prefix, inputs))
    block = g_x.view(-1) if blocks.inside else g.new_empty(rows * blocks.channels)
    for begin in range(0, outputs, blocks.channels):
        part = slice(begin, min(begin + blocks.channels, outputs))
        width = part.stop - part.start
        g_hat = block[: rows * width].view(rows, width)
        project_rows(g[:, part] if convolution else g[:, :, part], tiling, g_hat, 1 / tiling.tile**2)
        if needs_weight:
            _multiply(g_hat.T, x_hat, g_w[part], g_w[:0], add=False)
        if needs_input:
            _multiply(g_hat, flat_weight[part], head, tail, add=begin > 0)
    if needs_input:
        _unproject(g_x, head, tail, blocks.spilled, tiling)
    return g_x, g_w.view(weight.shape) if needs_weight else g_w
