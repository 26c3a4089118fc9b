"""Scans and causal convolutions of state-space models, fp32, forward and backward: our own fused ops.

The chunk length and the scratch that the kernels and their price share are here: `kernels/` imports them.
Counted a state element: 1 for an add or a product, 2 for a multiply-add, `EXP` for an exponential.
"""

from __future__ import annotations

from math import prod

from .elementwise import EXP
from .spec import Cost, OpSpec

__all__ = ["CHUNK", "FORMULAS", "LANES", "SILU", "SOFTPLUS", "STATE", "scan_flops", "ssd_flops"]

LANES = 16  # channels (Mamba-1) or states (Mamba-2) in a vector
CHUNK = 32  # tokens between kept states
SILU, SOFTPLUS = EXP + 4, 2 * EXP + 3
STATE = EXP + 6  # dt·A and its exponential, decay·h + du·B, C·h
_ROWS = 4  # channels of Mamba-2 in flight


def scan_flops(tokens: int, width: int, states: int) -> int:
    """Selective scan of Mamba-1: `STATE` a state; dt, du, D·u, silu(z) and the gate a channel.

    >>> scan_flops(1, 1, 16) == 16 * (8 + 6) + (1 + 19) + 1 + 2 + 12 + 1
    True
    """
    return tokens * width * (states * STATE + (1 + SOFTPLUS) + 1 + 2 + SILU + 1)


def ssd_flops(tokens: int, heads: int, width: int, states: int) -> int:
    """Scan of Mamba-2: 1 + 2 + 2 a state; du and D·x a channel; dt and its exponential a head.

    >>> ssd_flops(1, 1, 2, 16) == 2 * 16 * 5 + 2 * 3 + 1 + 19 + 2 + 1 + 8
    True
    """
    return tokens * (heads * width * (5 * states + 3) + heads * (1 + SOFTPLUS + 2 + 1 + EXP))


def _scan_terms(batch: int, length: int, width: int, states: int) -> dict[str, float]:
    """Recurrence, channels, tokens (what is loaded of B and C), and states that are opened and closed."""
    tokens = float(batch * length)
    return {
        "states": tokens * width * states, "channels": tokens * width, "tokens": tokens * states,
        "kept": float(batch * width * states),
    }  # fmt: skip


def _selective_scan(op: OpSpec) -> Cost:
    """u, delta, A (D, N), …; saves a state a chunk for the backward where `checkpoint` is set.

    >>> from .spec import op
    >>> u, bc = (1, 64, 32), (1, 64, 16)
    >>> c = _selective_scan(op("costmodel::selective_scan", [u, u, (32, 16), bc, bc, (32,), u, (32,)], [u]))
    >>> c.flops == scan_flops(64, 32, 16), c.workspace
    (True, 2048)
    """
    batch, length, width = op.inputs[0].shape
    states = op.inputs[2].shape[1]
    flops = scan_flops(batch * length, width, states)
    terms = _scan_terms(batch, length, width, states)
    return Cost(flops=flops, kind="scan", unit="fp32", terms=terms, workspace=4 * width * states)


def _selective_scan_backward(op: OpSpec) -> Cost:
    """gy, [gh,] u, delta, A, …, saved: the forward again, then 15 operations a state and the gates' derivatives."""
    state = next(t for t in op.inputs if len(t.shape) == 2)
    width, states = state.shape
    batch, length, _ = op.inputs[0].shape
    tokens = batch * length
    # a state: gh (2), gC (2), gB (2), g_du (2), decay (1), exponent (1), gA (2), g_decay (2), carry (1)
    backward = tokens * width * (15 * states + 2 * (EXP + 3) + SOFTPLUS + 20)
    lane_sums = tokens * states * 2 * (width // LANES) * (LANES - 1)
    flops = scan_flops(tokens, width, states) + backward + lane_sums
    scratch = 4 * CHUNK * LANES * (4 * states + 1)
    terms = _scan_terms(batch, length, width, states)
    return Cost(
        flops=flops, kind="scan_backward", unit="fp32", terms=terms, workspace=2 * 4 * width * states + scratch
    )  # fmt: skip


def _ssd_scan(op: OpSpec) -> Cost:
    """x (B, L, H, P), delta (B, L, H), A, B (B, L, G, N), …

    >>> from .spec import op
    >>> c = _ssd_scan(op("costmodel::ssd_scan", [(1, 64, 4, 8), (1, 64, 4), (4,), (1, 64, 2, 16)], [(1, 64, 4, 8)]))
    >>> c.flops == ssd_flops(64, 4, 8, 16), c.workspace
    (True, 2048)
    """
    batch, length, heads, width = op.inputs[0].shape
    states = op.inputs[3].shape[3]
    tokens = batch * length
    terms = _scan_terms(batch, length, heads * width, states)
    return Cost(
        flops=ssd_flops(tokens, heads, width, states), kind="ssd", unit="fp32", terms=terms,
        workspace=2 * 4 * tokens * heads,
    )  # fmt: skip


def _ssd_scan_backward(op: OpSpec) -> Cost:
    """gy, [gh,] x, delta, A, B, …, saved: the forward again, then 11 operations a state."""
    x = op.inputs[0]
    batch, length, heads, width = x.shape
    states = op.inputs[-1].shape[-1]
    tokens = batch * length
    # a state: gh (2), gC (2), gB (2), g_drive (2), g_decay (2), carry (1); a channel: sums, gx, gdt, gD
    backward = tokens * heads * width * (11 * states + 12) + tokens * heads * (3 * EXP)
    scratch = 4 * _ROWS * (states * (CHUNK + 1) + CHUNK)
    terms = _scan_terms(batch, length, heads * width, states)
    return Cost(
        flops=ssd_flops(tokens, heads, width, states) + backward, kind="ssd_backward", unit="fp32", terms=terms,
        workspace=4 * 4 * tokens * heads + scratch,
    )  # fmt: skip


def conv_flops(elements: int, taps: int) -> int:
    """Multiply-adds of the taps, the bias and SiLU.

    >>> conv_flops(10, 4) == 10 * (8 + 12)
    True
    """
    return elements * (2 * taps + SILU)


_FAR = 1 << 16  # bytes of rows, weights and results of a token of which nothing stays in L1


def _conv_terms(elements: int, width: int, rows: int) -> dict[str, float]:
    """Elements, tokens, channels (weights are transposed), and elements of tokens whose `rows` arrays leave L1."""
    far = min(1.0, 4 * rows * width / _FAR)
    return {
        "n": float(elements), "far": elements * far, "rows": float(elements // width), "channels": float(width),
    }  # fmt: skip


def _causal_conv1d(op: OpSpec) -> Cost:
    """x (B, L, D), weight (D, K), bias.

    >>> from .spec import op
    >>> _causal_conv1d(op("costmodel::causal_conv1d", [(1, 8, 16), (16, 4), (16,)], [(1, 8, 16)])).flops
    2560
    """
    (batch, _, width), (_, taps) = op.inputs[0].shape, op.inputs[1].shape
    elements = prod(op.inputs[0].shape)
    return Cost(
        flops=conv_flops(elements, taps), kind="conv_causal", unit="fp32",
        terms=_conv_terms(elements, width, 2 * taps + 2),
        workspace=4 * taps * width + (4 * batch * (taps - 1) * width if len(op.inputs) < 4 else 0),
    )  # fmt: skip


def _causal_conv1d_backward(op: OpSpec) -> Cost:
    """gy, x, weight, bias[, state]: the forward again, then gx and gw, a multiply-add a tap each."""
    elements, taps = prod(op.inputs[0].shape), op.inputs[2].shape[1]
    width = op.inputs[0].shape[2]
    return Cost(
        flops=elements * (2 * taps + EXP + 8 + 1 + 4 * taps), kind="conv_causal_backward", unit="fp32",
        terms=_conv_terms(elements, width, 6 * taps + 3),
        workspace=2 * 4 * taps * width,
    )  # fmt: skip


FORMULAS = {
    "costmodel::selective_scan": _selective_scan,
    "costmodel::selective_scan_backward": _selective_scan_backward,
    "costmodel::ssd_scan": _ssd_scan,
    "costmodel::ssd_scan_backward": _ssd_scan_backward,
    "costmodel::causal_conv1d": _causal_conv1d,
    "costmodel::causal_conv1d_backward": _causal_conv1d_backward,
}
