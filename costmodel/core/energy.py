"""Joules of each op: idle power over its time, plus what its operations and bytes cost."""

from __future__ import annotations

import numpy as np
from numba import njit

from .table import F8

__all__ = ["op_energy"]


@njit(cache=True)
def op_energy(seconds: F8, flops: F8, level_bytes: F8, idle_w: float, flop_j: float, byte_j: F8) -> F8:
    """``E = P_idle · t + ε_flop · F + Σ ε_level · bytes_level``.

    Args:
        seconds: (n,) duration of each op.
        flops: (n,) operations of each op.
        level_bytes: (n, L) bytes from each level.
        idle_w: watts that the board draws whatever it does.
        flop_j: joules an operation.
        byte_j: (L,) joules a byte of each level.

    Returns:
        (n,) joules.
    """
    joules = np.empty(seconds.shape[0])
    for i in range(seconds.shape[0]):
        e = idle_w * seconds[i] + flop_j * flops[i]
        for level in range(byte_j.shape[0]):
            e += byte_j[level] * level_bytes[i, level]
        joules[i] = e
    return joules
