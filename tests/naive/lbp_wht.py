"""LBP-WHT written out tile by tile in numpy float64, one basis at a time: slow, plain, independent of the kernels."""

from __future__ import annotations

import numpy as np

# METHODS.md's table of the order-8 Walsh functions
WALSH_8 = ["++++++++", "++++----", "++----++", "++--++--", "+--++--+", "+--+-++-", "+-+--+-+", "+-+-+-+-"]


def basis(i: int, j: int) -> np.ndarray:
    """B_{i,j} of an 8×8 tile, ±1."""
    w = np.array([[1.0 if sign == "+" else -1.0 for sign in row] for row in WALSH_8])
    return np.outer(w[i], w[j])


def padded(x: np.ndarray, padding: str) -> tuple[np.ndarray, int, int]:
    """(h, w, C) padded to multiples of 8, and the first row and column of the original."""
    down, across = -x.shape[0] % 8, -x.shape[1] % 8
    if padding == "zero":
        return np.pad(x, ((0, down), (0, across), (0, 0))), 0, 0
    top, left = (down + 1) // 2, (across + 1) // 2
    return np.pad(x, ((top, down - top), (left, across - left), (0, 0)), mode="reflect"), top, left


def coefficients(x: np.ndarray, pairs: list[tuple[int, int]], padding: str) -> np.ndarray:
    """Sums of each tile of one image (h, w, C) with each basis, (T, r, C)."""
    grid, _, _ = padded(x, padding)
    out = []
    for top in range(0, grid.shape[0], 8):
        for left in range(0, grid.shape[1], 8):
            tile = grid[top : top + 8, left : left + 8]
            out.append([(tile * basis(i, j)[:, :, None]).sum((0, 1)) for i, j in pairs])
    return np.array(out)


def tokens(c: np.ndarray, shape: tuple[int, int], pairs: list[tuple[int, int]], padding: str) -> np.ndarray:
    """The image (h, w, C) that coefficients (T, r, C) stand for."""
    grid, first_row, first_column = padded(np.zeros((*shape, c.shape[2])), padding)
    t = 0
    for top in range(0, grid.shape[0], 8):
        for left in range(0, grid.shape[1], 8):
            for k, (i, j) in enumerate(pairs):
                grid[top : top + 8, left : left + 8] += basis(i, j)[:, :, None] * c[t, k]
            t += 1
    return grid[first_row : first_row + shape[0], first_column : first_column + shape[1]]


def backward(
    x: np.ndarray, g: np.ndarray, w: np.ndarray, prefix: int, grid: tuple[int, int],
    pairs: list[tuple[int, int]], padding: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """g_x, g_W and g_b of a linear layer on x (B, prefix + h·w, Ci) with the gradient g (B, prefix + h·w, Co)."""
    g_x, g_w = np.zeros_like(x), np.zeros_like(w)
    for image in range(len(x)):
        g_x[image, :prefix] = g[image, :prefix] @ w
        g_w += g[image, :prefix].T @ x[image, :prefix]
        x_hat = coefficients(x[image, prefix:].reshape(*grid, -1), pairs, padding)
        g_hat = coefficients(g[image, prefix:].reshape(*grid, -1), pairs, padding) / 64
        g_x[image, prefix:] = tokens(g_hat @ w, grid, pairs, padding).reshape(-1, x.shape[2])
        g_w += np.einsum("trO,tri->Oi", g_hat, x_hat)
    return g_x, g_w, g.sum((0, 1))
