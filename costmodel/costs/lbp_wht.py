"""LBP-WHT layers: exact forward with a projection of the input, low-rank backward (arXiv 2309.15275).

The numbers that the kernels and their price share (reduced rows, tiles a block, adds of a transform) are here, so
that what is priced is what runs: `kernels/lbp_wht.py` imports them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import NamedTuple

from .layout import ceil_to
from .matmul import LANES, gemm_terms, padded_flops
from .spec import Cost, OpSpec

__all__ = [
    "FORMULAS",
    "Blocks",
    "backward_blocks",
    "kept_sequencies",
    "naive_transform_adds",
    "project_adds",
    "reduced_rows",
    "tile_count",
    "unproject_adds",
    "wht_adds",
]


# Channels of ĝ at a time: the K block of kernels/gemm_f32.py where they are allocated; where g_x holds them as many as
# keep ĝ in a cache (4 MB); with fewer than the least, panels are not worth packing.
_BLOCK_CHANNELS, _BLOCK_FLOATS, _LEAST_CHANNELS = 384, 2**20, 32


def tile_count(grid: Sequence[int], tile: int) -> int:
    """Tiles that cover a grid of ``h × w`` tokens.

    >>> tile_count((14, 14), 8), tile_count((7, 9), 8)
    (4, 2)
    """
    return prod(-(-n // tile) for n in grid)


def reduced_rows(images: int, grid: Sequence[int], prefix: int, tile: int, rank: int) -> int:
    """Rows of x̂: each image has its prefix tokens as they are and `rank` coefficients a tile.

    >>> reduced_rows(8, (14, 14), 1, 8, 3)
    104
    """
    return images * (prefix + tile_count(grid, tile) * rank)


@cache
def wht_adds(tile: int, needed: frozenset[int]) -> int:
    """Adds of one 1-D Walsh-Hadamard transform of which only the sequencies in `needed` are wanted.

    Neighbours are added and subtracted first: the sums' half-length transform gives w_0 … w_(tile/2-1), the
    differences' gives the others, last one first. A half that nothing needs is not computed.

    >>> [wht_adds(8, frozenset(range(keep))) for keep in (1, 2, 3, 4, 5, 6, 8)]
    [7, 8, 11, 12, 19, 20, 24]
    """
    low, high = halves(tile, needed)
    return sum(tile // 2 + wht_adds(tile // 2, half) for half in (low, high) if half) if tile > 1 else 0


@cache
def unwht_adds(tile: int, given: frozenset[int]) -> int:
    """Adds of the transposed transform, tokens from the coefficients in `given`: a missing half costs nothing.

    >>> [unwht_adds(8, frozenset(range(keep))) for keep in (1, 2, 3, 4, 8)]
    [0, 2, 6, 8, 24]
    """
    if tile == 1:
        return 0
    low, high = halves(tile, given)
    return (tile if low and high else 0) + sum(unwht_adds(tile // 2, half) for half in (low, high) if half)


def halves(tile: int, sequencies: frozenset[int]) -> tuple[frozenset[int], frozenset[int]]:
    """Which sequencies of the half-length transforms of sums and of differences make up `sequencies`.

    >>> halves(8, frozenset({0, 3, 7}))  # w_7 = +-+-+-+- is a sum of differences
    (frozenset({0, 3}), frozenset({0}))
    """
    half = tile // 2
    return (
        frozenset(k for k in sequencies if k < half),
        frozenset(tile - 1 - k for k in sequencies if k >= half),
    )


def kept_sequencies(tile: int, bases: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Sequencies that the two passes keep: the first so many of each row, then the first so many of each column.

    A base is ``i·tile + j``: w_i down the tile, w_j along its rows.

    >>> kept_sequencies(8, (0, 1, 8))
    (2, (2, 1))
    """
    columns = [0] * tile
    for base in bases:
        columns[base % tile] = max(columns[base % tile], base // tile + 1)
    along = max(j for j in range(tile) if columns[j]) + 1
    return along, tuple(columns[:along])


def project_adds(tile: int, bases: Sequence[int]) -> int:
    """Adds a tile and channel of the projection: rows first, then the columns of what the rows kept.

    >>> project_adds(8, range(64)), project_adds(8, (0,)), project_adds(8, (0, 1, 8))
    (384, 63, 79)
    """
    along, down = kept_sequencies(tile, bases)
    rows = tile * wht_adds(tile, frozenset(range(along)))
    return rows + sum(wht_adds(tile, frozenset(range(n))) for n in down if n)


def unproject_adds(tile: int, bases: Sequence[int]) -> int:
    """Adds a tile and channel of the un-projection: columns first, then rows.

    >>> unproject_adds(8, range(64)), unproject_adds(8, (0,)), unproject_adds(8, (0, 1, 8))
    (384, 0, 18)
    """
    along, down = kept_sequencies(tile, bases)
    rows = tile * unwht_adds(tile, frozenset(j for j in range(along) if down[j]))
    return rows + sum(unwht_adds(tile, frozenset(range(n))) for n in down if n)


class Blocks(NamedTuple):
    """How the backward of a layer of rows of tokens is blocked, and what it takes from the allocator.

    Attributes:
        channels: output channels of ĝ that are projected and multiplied at a time.
        inside: whether that block of ĝ lies in the part of g_x that is not yet written.
        spilled: rows of tiles, of the last images, whose product ĝW does not fit behind what g_x is written over.
        workspace: elements that are allocated and freed.
    """

    channels: int
    inside: bool
    spilled: int
    workspace: int


@cache
def backward_blocks(
    images: int, grid: tuple[int, int], prefix: int, tile: int, rank: int, padding: str,
    inputs: int, outputs: int, needs_input: bool, convolution: bool = False,
) -> Blocks:  # fmt: skip
    """Blocks that keep the peak at that of the exact layer: g_x itself holds ĝ and ĝW until it is written.

    ĝW stands right-aligned in g_x, so that un-projecting from the first row of tiles on overwrites only what has been
    read; a block of ĝ stands in front of it. Where rT ≥ n there is no such room and both are allocated. A convolution
    is un-projected an image at a time, from a copy of its coefficients outside the allocator.

    >>> backward_blocks(8, (14, 14), 0, 8, 3, "zero", 384, 1536, True)
    Blocks(channels=1536, inside=True, spilled=0, workspace=0)
    >>> backward_blocks(8, (7, 7), 1, 8, 64, "zero", 384, 1536, True)  # rank 64 > 49 tokens
    Blocks(channels=384, inside=False, spilled=8, workspace=399360)
    """
    tokens = prefix + grid[0] * grid[1]
    coefficients = images * tile_count(grid, tile) * rank
    rows = coefficients + images * prefix
    room = (images * tokens - coefficients) * inputs // rows
    if not needs_input:  # no g_x to lie in: a block is at most what x̂ is smaller than x
        channels = _fitted(min(max(room, _LEAST_CHANNELS), _BLOCK_CHANNELS, outputs), outputs)
        return Blocks(channels, False, 0, rows * channels)
    inside = room >= min(_LEAST_CHANNELS, outputs) if outputs % LANES == 0 else room >= outputs
    widest = max(_BLOCK_CHANNELS, _BLOCK_FLOATS // rows) if inside else _BLOCK_CHANNELS
    channels = _fitted(min(widest, room, outputs) if inside else min(widest, outputs), outputs)
    if convolution:
        fits = coefficients <= images * tokens
        spilled = 0 if fits else images * -(-grid[0] // tile)
    else:
        spilled = _spilled(images, grid, prefix, tile, rank, padding)
    if (
        inputs % LANES and not convolution
    ):  # the last vector of channels is done twice, which must not read what was written
        spilled = images * -(-grid[0] // tile)
    kept_outside = spilled * -(-grid[1] // tile) * rank + images * prefix
    return Blocks(channels, inside, spilled, kept_outside * inputs + (0 if inside else rows * channels))


def _fitted(channels: int, outputs: int) -> int:
    """Blocks of whole vectors, none wider than `channels` and all of about a width; one where there are no vectors."""
    if outputs % LANES:
        return outputs
    widest = channels // LANES * LANES
    return ceil_to(-(-outputs // -(-outputs // widest)), LANES)


def _spilled(images: int, grid: tuple[int, int], prefix: int, tile: int, rank: int, padding: str) -> int:
    tokens = prefix + grid[0] * grid[1]
    down, across = (-(-n // tile) for n in grid)
    lines, line_rows = images * down, across * rank
    before = -(-(-grid[0] % tile) // 2) if padding == "reflect" else 0
    for line in range(lines):
        image, i = divmod(line - 1, down)
        written = image * tokens + prefix + min((i + 1) * tile - before, grid[0]) * grid[1] if line else 0
        if images * tokens - (lines - line) * line_rows < written:
            return lines - line
    return 0


def naive_transform_adds(rank: int, tokens: int, inputs: int, outputs: int) -> int:
    """Adds of a transform by masks over `tokens` positions: project by `rank` sums, un-project by products.

    Both channels are projected and one gradient comes back: METHODS.md's count for the backward of a layer.

    >>> naive_transform_adds(3, 64, 2, 5)  # 3·63·7 + 3·64·2
    1707
    """
    return rank * (tokens - 1) * (inputs + outputs) + rank * tokens * inputs


class _Layer(NamedTuple):
    """Sizes of a layer, from the attributes and shapes of one of its ops."""

    images: int
    tokens: int
    inputs: int
    outputs: int
    grid: tuple[int, int]
    prefix: int
    tile: int
    bases: tuple[int, ...]
    padding: str

    @property
    def rows(self) -> int:
        return reduced_rows(self.images, self.grid, self.prefix, self.tile, len(self.bases))

    @property
    def tiles(self) -> int:
        return self.images * tile_count(self.grid, self.tile)

    def project_adds(self, channels: int) -> int:
        return self.tiles * project_adds(self.tile, self.bases) * channels

    def unproject_adds(self, channels: int) -> int:
        return self.tiles * unproject_adds(self.tile, self.bases) * channels


def _layer(op: OpSpec, activation: int, weight: int) -> _Layer:
    x, (outputs, inputs) = op.inputs[activation].shape, op.inputs[weight].shape[:2]
    h, w = op.attr("grid")
    prefix = int(op.attr("prefix", 0))
    return _Layer(
        x[0], prefix + h * w, inputs, outputs, (h, w), prefix, int(op.attr("tile", 8)),
        tuple(op.attr("bases")), op.attr("padding", "zero"),
    )  # fmt: skip


def _of_maps(op: OpSpec, weight: int) -> str:
    """Suffix of the kind of a 1×1 convolution, whose maps are turned into rows of channels and back."""
    return "_conv" if len(op.inputs[weight].shape) == 4 else ""


def lbp_wht(op: OpSpec) -> Cost:
    """The exact product, 2·n·Ci·Co an image, and the projection of the input, its adds counted as they run.

    >>> from .spec import op
    >>> made = {"grid": (8, 8), "prefix": 0, "tile": 8, "bases": (0, 1, 8), "padding": "zero"}
    >>> lbp_wht(op("costmodel::lbp_wht", [(1, 64, 3), (5, 3)], [(1, 64, 5), (3, 3)], **made)).flops  # 2·64·15 + 79·3
    2157
    """
    layer = _layer(op, 0, 1)
    positions = layer.images * layer.tokens
    adds = layer.project_adds(layer.inputs)
    return Cost(
        2 * positions * layer.inputs * layer.outputs + adds,
        f"gemm_lbp{_of_maps(op, 1)}",
        work=padded_flops(positions, layer.outputs, layer.inputs) + adds,
        terms=gemm_terms(positions, layer.outputs, layer.inputs)
        | {"adds": float(adds), "walked": float(positions * layer.inputs)},
        calls=2,
    )


def lbp_wht_backward(op: OpSpec) -> Cost:
    """Two products of reduced rows, 2·R·Ci·Co each, the projection of g_y and the un-projection, and Σ g_y.

    What `mask` does not ask for is not run.

    >>> from .spec import op
    >>> made = {"grid": (8, 8), "prefix": 0, "tile": 8, "bases": (0, 1, 8), "padding": "zero"}
    >>> shapes = [(1, 64, 5), (3, 3), (5, 3)], [(1, 64, 3), (5, 3), (5,)]
    >>> lbp_wht_backward(op("costmodel::lbp_wht_backward", *shapes, **made, mask=[True, True, False])).flops
    629
    >>> 2 * 2 * 3 * 15 + 79 * 5 + 18 * 3
    629
    """
    layer = _layer(op, 0, 2)
    to_x, to_w, to_b = op.attr("mask", [True] * 3)
    rows, inputs, outputs = layer.rows, layer.inputs, layer.outputs
    projected = layer.project_adds(outputs) if to_x or to_w else 0
    unprojected = layer.unproject_adds(inputs) if to_x else 0
    summed = layer.images * layer.tokens * outputs if to_b else 0
    padded = padded_flops(rows, inputs, outputs) * to_x + padded_flops(outputs, inputs, rows) * to_w
    adds = projected + unprojected
    positions = layer.images * layer.tokens
    return Cost(
        2 * rows * inputs * outputs * (to_x + to_w) + adds + summed,
        f"gemm_lbp{_of_maps(op, 2)}_backward",
        work=padded + adds + summed,
        terms={
            "mnk": float(rows * inputs * outputs * (to_x + to_w)),
            "mnk_panels": padded / 2,
            "nk": float(inputs * outputs * (to_x + to_w)),  # W is packed, g_W is written
            "mk": float(rows * (inputs * (to_x + to_w) + outputs * (to_x or to_w))),
            "adds": float(adds),
            "walked": float(positions * outputs * (to_x or to_w)),
            "written": float(positions * inputs * to_x),
            "summed": float(summed),
        },
        workspace=_workspace(op, layer, to_x, to_w),
        calls=to_x + to_w + 1,
    )


def _workspace(op: OpSpec, layer: _Layer, to_x: bool, to_w: bool) -> int:
    if not (to_x or to_w):
        return 0
    blocks = backward_blocks(
        layer.images, layer.grid, layer.prefix, layer.tile, len(layer.bases), layer.padding,
        layer.inputs, layer.outputs, bool(to_x), len(op.inputs[2].shape) == 4,
    )  # fmt: skip
    return blocks.workspace * op.inputs[0].itemsize


FORMULAS = {"costmodel::lbp_wht": lbp_wht, "costmodel::lbp_wht_backward": lbp_wht_backward}
