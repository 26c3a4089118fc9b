"""Walsh-Hadamard projection of a token grid, tile by tile: the reference in torch, for every dtype and device.

x has the tokens of each image in rows, (B, prefix + h·w, C). Reduced rows are a matrix of `rank` coefficients of each
tile, images outermost, and then the prefix tokens of all images as they are: (B·T·r + B·prefix, C). Source: LBP-WHT,
arXiv 2309.15275, section 3; padding and normalisation as METHODS.md §1 says.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..costs.lbp_wht import reduced_rows, tile_count
from ..errors import CostmodelError

__all__ = ["FAMILIES", "PADDINGS", "TILES", "Tiling", "project", "select_bases", "unproject", "walsh"]

TILES = (4, 8, 16)
FAMILIES = ("l1", "linf")
PADDINGS = ("zero", "reflect")


class Tiling(NamedTuple):
    """How the tokens of a layer are tiled and which bases are kept; plain values, the attributes of the ops.

    Attributes:
        grid: (h, w) tokens of one image, row-major.
        prefix: class and distillation tokens before the grid; they are exact.
        tile: side of a tile, 4, 8 or 16.
        bases: kept B_{i,j} as i·tile + j, w_i down and w_j across, in the order of the coefficients.
        padding: ``zero`` (exact at full rank) or ``reflect`` (the paper's).
    """

    grid: tuple[int, int]
    prefix: int
    tile: int
    bases: tuple[int, ...]
    padding: str

    @property
    def tokens(self) -> int:
        """Tokens of one image, prefix included."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def tiles(self) -> int:
        return tile_count(self.grid, self.tile)

    @property
    def rank(self) -> int:
        return len(self.bases)

    def rows(self, images: int) -> int:
        """Reduced rows of so many images."""
        return reduced_rows(images, self.grid, self.prefix, self.tile, self.rank)

    def check(self) -> None:
        """Raise `CostmodelError` unless tile, bases and padding are ones that exist and fit each other."""
        if self.tile not in TILES:
            raise CostmodelError(f"tile={self.tile} is not a tile side: use {', '.join(map(str, TILES))}")
        if self.padding not in PADDINGS:
            raise CostmodelError(f"padding={self.padding!r}: use {' or '.join(PADDINGS)}")
        size = self.tile**2
        if not self.bases or len(set(self.bases)) < self.rank or not all(0 <= b < size for b in self.bases):
            raise CostmodelError(f"bases must be distinct pairs i.j with i, j < {self.tile}, at least one")
        if min(self.grid) < 1 or self.prefix < 0:
            raise CostmodelError(f"a grid of {self.grid[0]}x{self.grid[1]} with {self.prefix} prefix tokens")
        if self.padding == "reflect":
            for n in self.grid:
                if -(-(-n % self.tile) // 2) >= n:
                    raise CostmodelError(
                        f"{n} tokens cannot be padded to {n + -n % self.tile} by reflection: "
                        f"use padding=zero or a smaller tile than {self.tile}"
                    )


@cache
def walsh(order: int) -> np.ndarray:
    """Walsh functions of an order that is a power of two, in rows by sequency (row k changes sign k times).

    >>> print(walsh(4))
    [[ 1  1  1  1]
     [ 1  1 -1 -1]
     [ 1 -1 -1  1]
     [ 1 -1  1 -1]]
    """
    rows = np.ones((1, 1), np.int8)
    while len(rows) < order:
        rows = np.concatenate([np.kron(rows, [1, 1]), np.kron(rows, [1, -1])[::-1]]).astype(np.int8)
    return rows


def select_bases(order: int, family: str, tile: int) -> tuple[int, ...]:
    """LP_L1-o (i + j < o, the paper's default) or LP_L∞-o (max(i, j) < o), row-major.

    >>> [len(select_bases(o, "l1", 8)) for o in (1, 2, 3, 4, 6, 8, 9, 10, 12, 15)]
    [1, 3, 6, 10, 21, 36, 43, 49, 58, 64]
    >>> select_bases(2, "linf", 8)
    (0, 1, 8, 9)
    """
    if family not in FAMILIES:
        raise CostmodelError(f"family={family!r}: use {' or '.join(FAMILIES)}")
    highest = 2 * tile - 1 if family == "l1" else tile
    if not 1 <= order <= highest:
        raise CostmodelError(f"order={order} with family={family} and tile={tile}: use 1 to {highest}")
    norm = (lambda i, j: i + j) if family == "l1" else max
    return tuple(i * tile + j for i in range(tile) for j in range(tile) if norm(i, j) < order)


@cache
def source_rows(n: int, tile: int, padding: str) -> np.ndarray:
    """Which of n tokens stands at each place of the padded axis, (ceil(n/tile)·tile,); -1 is a zero.

    >>> source_rows(3, 4, "zero"), source_rows(6, 8, "reflect")
    (array([ 0,  1,  2, -1]), array([1, 0, 1, 2, 3, 4, 5, 4]))
    """
    pad = -n % tile
    if padding == "zero":
        return np.concatenate([np.arange(n), np.full(pad, -1)])
    before = -(-pad // 2)
    place = np.abs(np.arange(-before, n + pad - before))
    return np.where(place < n, place, 2 * (n - 1) - place)


@cache
def token_map(grid: tuple[int, int], tile: int, padding: str) -> np.ndarray:
    """Token at each place of each tile, (T, tile²), row-major tiles and places; -1 where a zero is padded."""
    down, across = (source_rows(n, tile, padding) for n in grid)
    tokens = np.where((down[:, None] < 0) | (across < 0), -1, down[:, None] * grid[1] + across)
    blocks = tokens.reshape(len(down) // tile, tile, len(across) // tile, tile)
    return np.ascontiguousarray(blocks.swapaxes(1, 2).reshape(-1, tile**2))


@cache
def home_map(grid: tuple[int, int], tile: int, padding: str) -> np.ndarray:
    """Where each token itself (not a reflection of it) lives, (T, tile²): its token or -1; each token once."""
    down, across = (_home(n, tile, padding) for n in grid)
    tokens = np.where((down[:, None] < 0) | (across < 0), -1, down[:, None] * grid[1] + across)
    blocks = tokens.reshape(len(down) // tile, tile, len(across) // tile, tile)
    return np.ascontiguousarray(blocks.swapaxes(1, 2).reshape(-1, tile**2))


def _home(n: int, tile: int, padding: str) -> np.ndarray:
    before = 0 if padding == "zero" else -(-(-n % tile) // 2)
    place = np.arange(-(-n // tile) * tile) - before
    return np.where((place < 0) | (place >= n), -1, place)


def _basis(tiling: Tiling, like: Tensor) -> Tensor:
    """The kept bases in rows, (r, tile²), ±1."""
    w = walsh(tiling.tile)
    rows = np.stack([np.outer(w[b // tiling.tile], w[b % tiling.tile]).ravel() for b in tiling.bases])
    return torch.from_numpy(rows).to(like.device, _sum_dtype(like))


def _sum_dtype(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def project(x: Tensor, tiling: Tiling, *, mean: bool) -> Tensor:
    """Reduced rows of x (B, prefix + h·w, C): sums (or means) of each tile with each base, prefix tokens as they are.

    Sums are taken in fp32 (fp64 for fp64) and rounded once to x's dtype.
    """
    channels = x.shape[2]
    places = torch.from_numpy(token_map(tiling.grid, tiling.tile, tiling.padding)).to(x.device)
    grid = torch.nn.functional.pad(x[:, tiling.prefix :], (0, 0, 1, 0))  # row 0: the zero of padding
    tiles = grid[:, places + 1].to(_sum_dtype(x))  # (B, T, tile², C)
    basis = _basis(tiling, x) / (tiling.tile**2 if mean else 1)
    rows = torch.matmul(basis, tiles).reshape(-1, channels).to(x.dtype)
    return torch.cat([rows, x[:, : tiling.prefix].reshape(-1, channels)]) if tiling.prefix else rows


def unproject(rows: Tensor, images: int, tiling: Tiling) -> Tensor:
    """Tokens (B, prefix + h·w, C) from reduced rows: each tile the sum of its bases by its coefficients."""
    channels = rows.shape[1]
    split = images * tiling.tiles * tiling.rank
    coefficients = rows[:split].view(images, tiling.tiles, tiling.rank, channels).to(_sum_dtype(rows))
    tiles = torch.matmul(_basis(tiling, rows).T, coefficients).to(rows.dtype)
    home = home_map(tiling.grid, tiling.tile, tiling.padding).ravel()
    place_of_token = torch.from_numpy(np.argsort(home)[np.count_nonzero(home < 0) :]).to(rows.device)
    grid = tiles.view(images, -1, channels)[:, place_of_token]
    if not tiling.prefix:
        return grid
    return torch.cat([rows[split:].view(images, tiling.prefix, channels), grid], dim=1)
