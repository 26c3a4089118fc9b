"""MobileTL's ops in numpy float64, one loop or one formula each, independent of the kernels."""

from __future__ import annotations

import numpy as np


def activation(a: np.ndarray, act: str) -> np.ndarray:
    return {
        "hardswish": lambda: a * np.clip(a + 3, 0, 6) / 6,
        "relu6": lambda: np.clip(a, 0, 6),
        "relu": lambda: np.maximum(a, 0),
    }[act]()


def packed(a: np.ndarray, act: str) -> np.ndarray:
    """One bit an element, element i in bit i % 8 of byte i // 8."""
    out = np.zeros(-(-a.size // 8), np.uint8)
    for i, value in enumerate(a.ravel()):
        if value > 0 or (value == 0 and act != "relu"):
            out[i // 8] |= np.uint8(1 << (i % 8))
    return out


def shift_norm(x, weight, bias, mean, var, eps):
    gain = weight / np.sqrt(var + eps)
    return gain[:, None, None] * (x - mean[:, None, None]) + bias[:, None, None]


def shift_norm_backward(g, weight, var, eps):
    return g * (weight / np.sqrt(var + eps))[:, None, None], g.sum((0, 2, 3))


def train_norm_backward(g, x, weight, eps):
    """g_x, g_γ and g_β of a norm with the statistics of the batch."""
    n = x.size // x.shape[1]
    mean = x.mean((0, 2, 3))[:, None, None]
    sigma = np.sqrt(x.var((0, 2, 3)) + eps)[:, None, None]
    z = (x - mean) / sigma
    g_b, g_w = g.sum((0, 2, 3)), (g * z).sum((0, 2, 3))
    g_x = weight[:, None, None] / sigma * (g - g_b[:, None, None] / n - z * g_w[:, None, None] / n)
    return g_x, g_w, g_b
