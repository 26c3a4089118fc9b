"""LBP-WHT layers: exact forward with a projection of the input, low-rank backward (arXiv 2309.15275).

The numbers that the kernels and their price share (reduced rows, tiles a block, adds of a transform) are here, so
that what is priced is what runs: `kernels/lbp_wht.py` imports them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod

__all__ = [
    "FORMULAS",
    "naive_transform_adds",
    "project_adds",
    "reduced_rows",
    "tile_count",
    "tiles_per_block",
    "unproject_adds",
    "wht_adds",
]


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


def naive_transform_adds(rank: int, tokens: int, inputs: int, outputs: int) -> int:
    """Adds of a transform by masks over `tokens` positions: project by `rank` sums, un-project by products.

    Both channels are projected and one gradient comes back: METHODS.md's count for the backward of a layer.

    >>> naive_transform_adds(3, 64, 2, 5)  # 3·63·7 + 3·64·2
    1707
    """
    return rank * (tokens - 1) * (inputs + outputs) + rank * tokens * inputs
