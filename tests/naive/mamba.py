"""Mamba's recurrences token by token in plain torch, differentiable, in float64: what the kernels are held to."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def selective_scan(u, delta, A, B, C, D, z, delta_bias, h=None):
    """y (B, L, D) and the last state (B, D, N)."""
    dt = F.softplus(delta + delta_bias)
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1]) if h is None else h
    ys = []
    for t in range(u.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(-1) + D * u[:, t])
    return torch.stack(ys, 1) * F.silu(z), h


def causal_conv1d(x, weight, bias, state=None):
    """silu of the causal depthwise convolution of x (B, L, D)."""
    taps = weight.shape[1]
    state = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if state is None else state
    padded = torch.cat([state, x], 1)
    terms = [padded[:, k : k + x.shape[1]] * weight[:, k] for k in range(taps)]
    return F.silu(sum(terms) + bias)


def ssd_scan(x, delta, A, B, C, D, delta_bias, limit=(0.0, float("inf")), h=None):
    """Mamba-2: x (B, L, H, P), delta (B, L, H), A, D, delta_bias (H), B and C (B, L, G, N); y and h (B, H, P, N)."""
    heads = x.shape[2] // B.shape[2]
    dt = F.softplus(delta + delta_bias).clamp(*limit)
    B, C = B.repeat_interleave(heads, 2), C.repeat_interleave(heads, 2)
    h = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[3]) if h is None else h
    ys = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[:, :, None, None]
        h = decay * h + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        ys.append((h * C[:, t, :, None, :]).sum(-1) + D[:, None] * x[:, t])
    return torch.stack(ys, 1), h
