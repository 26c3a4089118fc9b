# ruff: noqa: ARG001  # numba passes an intrinsic its context and signature
"""The projection of `wht_simd.py` for convolutions: maps (B, C, h, w), turned sixteen channels at a time.

Sixteen planes become rows of sixteen channels, one a token, in a buffer that stays in the caches; the passes over the
tiles then find their tokens there. fp32, at least 16 channels and 16 positions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types

from .simd import LANES, Simd, Vec, intrinsic, require
from .wht_simd import CASE, backward_pass, forward_pass, grid_tables

__all__ = ["project_planes", "unproject_planes"]

require(1)


def _transposed(s: Simd, rows: list[Vec]) -> list[Vec]:
    """Sixteen vectors of sixteen lanes as a matrix, transposed: four rounds of exchanging blocks of 1, 2, 4, 8."""
    for size in (1, 2, 4, 8):
        low = [i for i in range(LANES) if not i & size]
        out: list[Vec] = list(rows)
        for i in low:
            a, b = rows[i], rows[i + size]
            out[i] = s.shuffle(a, b, [lane + (LANES - size if lane & size else 0) for lane in range(LANES)])
            out[i + size] = s.shuffle(a, b, [lane + (LANES if lane & size else size) for lane in range(LANES)])
        rows = out
    return rows


@intrinsic
def _turn(typingctx: Any, source: Any, source_step: Any, target: Any, target_step: Any) -> Any:
    """A 16×16 block of fp32 transposed; steps between rows are in elements."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s = Simd(builder)
        source_, source_step_, target_, target_step_ = args
        rows = [s.load(source_, "f32", builder.mul(s.i64(k), s.i64(source_step_))) for k in range(LANES)]
        for k, row in enumerate(_transposed(s, rows)):
            s.store(target_, row, builder.mul(s.i64(k), s.i64(target_step_)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@njit(cache=True)
def project_planes(
    x: int, image_step: int, out: int, out_step: int, images: int, channels: int, positions: int,
    places: np.ndarray, tile: int, along: int, down: np.ndarray, slots: np.ndarray, rank: int, scale: float,
) -> None:  # fmt: skip
    """Coefficients of every tile of every image into rows; arguments as `wht_simd.project_tokens` has them.

    x is the address of (channels, positions) of the first image, the next one `image_step` elements further on.
    """
    tiles, area = places.shape[0], tile * tile
    turned = np.empty((positions, LANES), np.float32)
    zeros, dump = np.zeros(LANES, np.float32), np.empty(LANES, np.float32)
    buffer = np.empty(area * LANES, np.float32)
    sources, targets = np.empty(tiles * area, np.int64), np.empty(area, np.int64)
    by_row, by_column = np.empty(tile * along, np.int64), np.empty(along * tile, np.int64)
    grid_tables(buffer.ctypes.data, tile, along, LANES, by_row, by_column)
    for p in range(tiles * area):
        token = places[p // area, p % area]
        sources[p] = zeros.ctypes.data if token < 0 else turned.ctypes.data + token * LANES * 4
    for image in range(images):
        for group in range(-(-channels // LANES)):
            c = min(group * LANES, channels - LANES)  # the last sixteen channels may be done twice
            planes = x + (image * image_step + c * positions) * 4
            for block in range(-(-positions // LANES)):
                p = min(block * LANES, positions - LANES)
                _turn(planes + p * 4, positions, turned.ctypes.data + p * LANES * 4, LANES)
            for t in range(tiles):
                rows = out + ((image * tiles + t) * rank * out_step + c) * 4
                for q in range(area):
                    slot = slots[q // tile, q % tile]
                    targets[q] = dump.ctypes.data if slot < 0 else rows + slot * out_step * 4
                for i in range(tile):
                    forward_pass(
                        tile * CASE + along, sources.ctypes.data + (t * area + i * tile) * 8, 0,
                        by_row.ctypes.data + i * along * 8, 0, LANES,
                        sources.ctypes.data, np.float32(1), buffer, buffer,
                    )  # fmt: skip
                for j in range(along):
                    forward_pass(
                        tile * CASE + down[j], by_column.ctypes.data + j * tile * 8, 0,
                        targets.ctypes.data + j * tile * 8, 0, LANES,
                        sources.ctypes.data, np.float32(scale), buffer, buffer,
                    )  # fmt: skip


@njit(cache=True)
def unproject_planes(
    rows: int, x: int, image_step: int, images: int, channels: int, positions: int,
    places: np.ndarray, tile: int, along: int, down: np.ndarray, slots: np.ndarray, rank: int,
) -> None:  # fmt: skip
    """Maps from coefficients: the transpose of `project_planes`. `places` is where each token lives.

    The coefficients of an image are copied before it is written, and images are taken in order: rows that lie
    right-aligned in x itself are read before they are overwritten.
    """
    tiles, area = places.shape[0], tile * tile
    turned = np.empty((positions, LANES), np.float32)
    mine = np.empty((tiles * rank, channels), np.float32)
    zeros, dump = np.zeros(channels, np.float32), np.empty(LANES, np.float32)
    buffer = np.empty(area * LANES, np.float32)
    sources, targets = np.empty(tiles * area, np.int64), np.empty(tiles * area, np.int64)
    by_row, by_column = np.empty(tile * along, np.int64), np.empty(along * tile, np.int64)
    grid_tables(buffer.ctypes.data, tile, along, LANES, by_row, by_column)
    for p in range(tiles * area):
        token, slot = places[p // area, p % area], slots[p % area // tile, p % tile]
        targets[p] = dump.ctypes.data if token < 0 else turned.ctypes.data + token * LANES * 4
        row = mine.ctypes.data + (p // area * rank + slot) * channels * 4
        sources[p] = zeros.ctypes.data if slot < 0 else row
    for image in range(images):
        _copy(rows + image * tiles * rank * channels * 4, mine)
        for group in range(-(-channels // LANES)):
            c = min(group * LANES, channels - LANES)
            for t in range(tiles):
                for j in range(along):
                    backward_pass(
                        tile * CASE + max(down[j], 1), sources.ctypes.data + (t * area + j * tile) * 8, c,
                        by_column.ctypes.data + j * tile * 8, 0, LANES,
                        by_column.ctypes.data, buffer, buffer,
                    )  # fmt: skip
                for i in range(tile):
                    backward_pass(
                        tile * CASE + along, by_row.ctypes.data + i * along * 8, 0,
                        targets.ctypes.data + (t * area + i * tile) * 8, 0, LANES,
                        by_column.ctypes.data, buffer, buffer,
                    )  # fmt: skip
            planes = x + (image * image_step + c * positions) * 4
            for block in range(-(-positions // LANES)):
                p = min(block * LANES, positions - LANES)
                _turn(turned.ctypes.data + p * LANES * 4, LANES, planes + p * 4, positions)


@intrinsic
def _vector_copy(typingctx: Any, source: Any, target: Any, count: Any) -> Any:
    """`count` fp32, a multiple of 16 or at least 16: the last vector may be copied twice."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        s = Simd(builder)
        source_, target_, count_ = args
        last = builder.sub(s.i64(count_), s.i64(LANES))
        with s.loop(0, last, LANES) as i:
            s.store(target_, s.load(source_, "f32", i), i)
        s.store(target_, s.load(source_, "f32", last), last)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@njit(cache=True)
def _copy(source: int, target: np.ndarray) -> None:
    _vector_copy(source, target.ctypes.data, target.size)
