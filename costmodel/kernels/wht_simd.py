# ruff: noqa: ARG001  # numba passes an intrinsic its context and signature
"""Walsh-Hadamard projection and its transpose in vector code: sixteen channels a lane set, tiles walked row by row.

A pass is a 1-D transform of many channels at once whose inputs and outputs are given by tables of addresses: the
tokens of one row of a tile, places of a small buffer, or coefficients. Padding, reflection and unselected bases are
then addresses too (of zeros to read, of a dump to write), and the code has no other branch. The recursion that the
emitter follows is the one that `costs/lbp_wht.py` counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from ..costs.lbp_wht import halves
from .simd import LANES, Simd, Vec, intrinsic, require
from .wht import TILES

__all__ = ["CASE", "backward_pass", "forward_pass", "grid_tables", "project_tokens", "unproject_tokens"]

require(1)
_BUFFER_FLOATS = 65536
CASE = TILES[-1] + 1  # a pass of a tile that keeps so many sequencies is case tile·CASE + keep


def _transform(simd: Simd, x: list[Vec], needed: frozenset[int]) -> dict[int, Vec]:
    """Coefficients of the needed sequencies of a row of tokens."""
    tile = len(x)
    if tile == 1:
        return {0: x[0]}
    low, high = halves(tile, needed)
    out: dict[int, Vec] = {}
    if low:
        sums = [x[2 * m] + x[2 * m + 1] for m in range(tile // 2)]
        out |= _transform(simd, sums, low)
    if high:
        differences = [x[2 * m] - x[2 * m + 1] for m in range(tile // 2)]
        out |= {tile - 1 - k: v for k, v in _transform(simd, differences, high).items()}
    return out


def _inverse(simd: Simd, c: dict[int, Vec], tile: int) -> list[Vec]:
    """The tokens of a row from its coefficients; sequencies that are not given are zero."""
    if tile == 1:
        return [c[0]]
    low, high = halves(tile, frozenset(c))
    even = _inverse(simd, {k: c[k] for k in low}, tile // 2) if low else []
    odd = _inverse(simd, {k: c[tile - 1 - k] for k in high}, tile // 2) if high else []
    if not odd:
        return [v for v in even for _ in range(2)]
    if not even:
        return [w for v in odd for w in (v, -v)]
    return [w for a, b in zip(even, odd) for w in (a + b, a - b)]


_ELEMENTS = {types.float32: "f32", types.int16: "bf16"}


def _load(s: Simd, table: ir.Value, k: int, offset: ir.Value, kind: Any) -> Vec:
    """Sixteen channels at the k-th address of a table, `offset` channels further on."""
    element = _ELEMENTS[kind.dtype]
    return s.load_f32(s.scalar(table, "i64", k), element, offset)


def _store(s: Simd, table: ir.Value, k: int, offset: ir.Value, kind: Any, value: Vec) -> None:
    element = _ELEMENTS[kind.dtype]
    s.store(s.address(s.scalar(table, "i64", k), element, offset), value if element == "f32" else _to_bf16(s, value))


def _to_bf16(s: Simd, value: Vec) -> Vec:
    """f32 to bf16, halves to even, as int16 lanes."""
    bits = s.bitcast(value, "i32")
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    return Vec(s, s.builder.trunc((rounded >> 16).value, ir.VectorType(ir.IntType(16), value.lanes)))


def _fetch(s: Simd, table: ir.Value, count: int, offset: ir.Value, kind: Any, write: bool) -> None:
    """Fetch `count` vectors into L1, each of sixteen channels `offset` channels after an address of a table."""
    for k in range(count):
        s.prefetch(s.address(s.scalar(table, "i64", k), _ELEMENTS[kind.dtype], offset), write)


# every (tile, sequencies kept): a pass jumps to the code of its own
_CASES = [(tile, keep) for tile in TILES for keep in range(1, tile + 1)]


def _pass(body: Callable[..., None], context: Any, builder: Any, args: Any) -> Any:
    """Emit `body` once a case, in a loop over the channels; the first argument selects the case."""
    s = Simd(builder)
    case, source, at, target, to, channels, ahead = args[:7]
    done = builder.append_basic_block("done")
    switch = builder.switch(s.i64(case), done)
    for tile, keep in _CASES:
        block = builder.append_basic_block(f"wht{tile}_{keep}")
        switch.add_case(ir.Constant(ir.IntType(64), tile * CASE + keep), block)
        builder.position_at_end(block)
        with s.loop(0, channels, LANES) as c:
            body(s, tile, keep, source, builder.add(at, c), target, builder.add(to, c), ahead)
        builder.branch(done)
    builder.position_at_end(done)
    return context.get_dummy_value()


@intrinsic
def forward_pass(
    typingctx: Any, case: Any, source: Any, at: Any, target: Any, to: Any, channels: Any, ahead: Any, scale: Any,
    x: Any, y: Any,
) -> Any:  # fmt: skip
    """y[k][to …] = scale · Σ w_k[m] x[m][at …] for `channels` channels; x and y are the tables source and target.

    Fetches as it goes what the table `ahead` has at [at …]: the tokens of the next pass.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def body(s: Simd, tile: int, keep: int, source: Any, at: Any, target: Any, to: Any, ahead: Any) -> None:
            factor = s.splat(args[7])
            _fetch(s, ahead, tile, at, x, False)
            tokens = [_load(s, source, m, at, x) for m in range(tile)]
            for k, value in _transform(s, tokens, frozenset(range(keep))).items():
                _store(s, target, k, to, y, value * factor)

        return _pass(body, context, builder, args)

    return types.void(case, source, at, target, to, channels, ahead, scale, x, y), codegen


@intrinsic
def backward_pass(
    typingctx: Any, case: Any, source: Any, at: Any, target: Any, to: Any, channels: Any, ahead: Any, x: Any, y: Any
) -> Any:
    """y[m][to …] = Σ w_k[m] x[k][at …] for `channels` channels: the transpose of `forward_pass`.

    Fetches for writing what the table `ahead` has at [to …].
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def body(s: Simd, tile: int, keep: int, source: Any, at: Any, target: Any, to: Any, ahead: Any) -> None:
            _fetch(s, ahead, tile, to, y, True)
            given = {k: _load(s, source, k, at, x) for k in range(keep)}
            for m, value in enumerate(_inverse(s, given, tile)):
                _store(s, target, m, to, y, value)

        return _pass(body, context, builder, args)

    return types.void(case, source, at, target, to, channels, ahead, x, y), codegen


@njit(cache=True)
def _chunk_width(places: int, channels: int) -> int:
    """Channels a chunk: as many as keep a buffer of `places` rows in half of an L2 cache, long streams of tokens."""
    return min(max(_BUFFER_FLOATS // places // LANES * LANES, LANES), 512, channels // LANES * LANES)


@njit(cache=True)
def _chunk(number: int, width: int, channels: int) -> tuple[int, int]:
    """First channel and length of a chunk: whole vectors, and where some are left the last sixteen once more."""
    first, whole = number * width, channels // LANES * LANES
    return (first, min(width, whole - first)) if first < whole else (channels - LANES, LANES)


@njit(cache=True)
def _chunks(width: int, channels: int) -> int:
    whole = channels // LANES * LANES
    return -(-whole // width) + (channels > whole)


@njit(cache=True)
def grid_tables(buffer: int, tile: int, along: int, width: int, by_row: np.ndarray, by_column: np.ndarray) -> None:
    """Addresses of the places (row i, sequency j) of a tile's buffer, in the order of either pass."""
    for i in range(tile):
        for j in range(along):
            by_row[i * along + j] = by_column[j * tile + i] = buffer + (i * along + j) * width * 4


@njit(cache=True)
def project_tokens(
    x: int, kind: np.ndarray, image_step: int, token_step: int, out: int, out_step: int, images: int, channels: int,
    places: np.ndarray, tile: int, along: int, down: np.ndarray, slots: np.ndarray, rank: int, scale: float,
) -> None:  # fmt: skip
    """Coefficients of every tile of every image from tokens in rows.

    Args:
        x: address of the first grid token of the first image; steps between images and tokens are in elements.
        kind: an array of the element type, float32 or int16 (bf16); only its type is used.
        out: address of (images·T·rank) rows of the same type, `out_step` elements apart.
        channels: at least 16.
        places: (T, tile²) token at each place of a tile, -1 is zero.
        along, down: what the two passes keep (`costs.lbp_wht.kept_sequencies`), down as (tile,) with zeros.
        slots: (tile, tile) row of coefficient (j, i) among a tile's `rank`, -1 where it is not wanted.
        scale: factor of the sums.
    """
    size, tiles = kind.itemsize, places.shape[0]
    width = _chunk_width(tile * along, channels)
    zeros, dump = np.zeros(channels, np.float32), np.empty(channels, np.float32)
    buffer = np.empty(tile * along * width, np.float32)
    sources, targets = np.empty(tile * tile, np.int64), np.empty(tile * tile, np.int64)
    by_row, by_column = np.empty(tile * along, np.int64), np.empty(along * tile, np.int64)
    grid_tables(buffer.ctypes.data, tile, along, width, by_row, by_column)
    for t in range(images * tiles):
        image, rows = x + t // tiles * image_step * size, out + t * rank * out_step * size
        for p in range(tile * tile):
            token, slot = places[t % tiles, p], slots[p // tile, p % tile]
            sources[p] = zeros.ctypes.data if token < 0 else image + token * token_step * size
            targets[p] = dump.ctypes.data if slot < 0 else rows + slot * out_step * size
        for number in range(_chunks(width, channels)):
            start, count = _chunk(number, width, channels)
            for i in range(tile):
                forward_pass(
                    tile * CASE + along, sources.ctypes.data + i * tile * 8, start,
                    by_row.ctypes.data + i * along * 8, 0, count,
                    sources.ctypes.data + min(i + 1, tile - 1) * tile * 8, np.float32(1), kind, buffer,
                )  # fmt: skip
            for j in range(along):
                forward_pass(
                    tile * CASE + down[j], by_column.ctypes.data + j * tile * 8, 0,
                    targets.ctypes.data + j * tile * 8, start, count,
                    by_column.ctypes.data + j * tile * 8, np.float32(scale), buffer, kind,
                )  # fmt: skip


@njit(cache=True)
def unproject_tokens(
    rows: int, kind: np.ndarray, x: int, image_step: int, token_step: int, first: int, last: int, channels: int,
    across: int, places: np.ndarray, tile: int, along: int, down: np.ndarray, slots: np.ndarray, rank: int,
) -> None:  # fmt: skip
    """Tokens of the rows of tiles `first` to `last`, counted over all images: the transpose of `project_tokens`.

    All coefficients of a row of tiles are read, chunk by chunk, before a token of those channels is written, so
    that both may lie in one array where no later coefficient is overwritten.

    Args:
        rows: address of the coefficients of the first of these tiles, `channels` elements a row.
        across: tiles in a row of tiles.
        places: where each token lives (`wht.home_map`); what falls on padding is not written.
    """
    size, tiles = kind.itemsize, places.shape[0]
    area = tile * tile
    width = _chunk_width(across * tile * along, channels)
    zeros, dump = np.zeros(channels, np.float32), np.empty(channels, np.float32)
    buffer = np.empty(across * tile * along * width, np.float32)
    sources, targets = np.empty(across * area, np.int64), np.empty(across * area, np.int64)
    by_row, by_column = np.empty((across, tile * along), np.int64), np.empty((across, along * tile), np.int64)
    for t in range(across):
        grid_tables(buffer.ctypes.data + t * tile * along * width * 4, tile, along, width, by_row[t], by_column[t])
    for line in range(first, last):
        for p in range(across * area):
            t = line * across + p // area
            token, slot = places[t % tiles, p % area], slots[p % area // tile, p % tile]
            image, mine = x + t // tiles * image_step * size, rows + (t - first * across) * rank * channels * size
            targets[p] = dump.ctypes.data if token < 0 else image + token * token_step * size
            sources[p] = zeros.ctypes.data if slot < 0 else mine + slot * channels * size
        for number in range(_chunks(width, channels)):
            start, count = _chunk(number, width, channels)
            for t in range(across):
                for j in range(along):
                    # a sequency that no base needs has a column of zeros: one coefficient of it gives them
                    backward_pass(
                        tile * CASE + max(down[j], 1), sources.ctypes.data + (t * area + j * tile) * 8, start,
                        by_column.ctypes.data + (t * along + j) * tile * 8, 0, count,
                        by_column.ctypes.data + (t * along + j) * tile * 8, kind, buffer,
                    )  # fmt: skip
            for t in range(across):
                for i in range(tile):
                    backward_pass(
                        tile * CASE + along, by_row.ctypes.data + (t * tile + i) * along * 8, 0,
                        targets.ctypes.data + (t * area + i * tile) * 8, start, count,
                        targets.ctypes.data + (t * area + min(i + 1, tile - 1) * tile) * 8, buffer, kind,
                    )  # fmt: skip
