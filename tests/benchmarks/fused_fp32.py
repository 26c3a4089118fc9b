"""Our own fp32 decode of Mamba, as fused as the quantized ones: what their speed is held against, byte for byte.

A block of one token is one numba call, weights lie in panels of 64 outputs as those of the integer kernels do, and so
does the head: what is left between this and W8A8 is bytes.
"""

# numba infers the types of its functions; torch and numba dictate signatures
# mypy: allow-untyped-defs
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from costmodel.kernels.causal_conv1d import _conv_row
from costmodel.kernels.pages import place
from costmodel.kernels.rms_norm import norm_row
from costmodel.kernels.selective_scan import _forward, decay_panels
from costmodel.kernels.simd import LANES, Simd, intrinsic, require
from costmodel.kernels.ssd_scan import copy_floats

require(1)
PANEL, VECTORS = 64, 4


def panels(w: Tensor) -> Tensor:
    """(N, K) to (ceil(N/64), K, 64) fp32."""
    n, k = w.shape
    padded = w.new_zeros(-(-n // PANEL) * PANEL, k)
    padded[:n] = w
    return padded.reshape(-1, PANEL, k).transpose(1, 2).contiguous()


@intrinsic(prefer_literal=True)
def _column(typingctx, x, k, panel, out, left, add):
    """64 outputs of one row: out[:left] = panel · x, added to what is there with `add` (literal)."""
    adds = bool(add.literal_value)

    def codegen(context, builder, signature, args):
        s = Simd(builder)
        x, k, panel, out, left, _ = args
        sums = [[s.cell(s.splat(0.0)) for _ in range(VECTORS)] for _ in range(2)]  # two chains hide the latency
        with s.loop(0, k, 2) as i:
            for chain in range(2):
                at = builder.add(i, s.i64(chain))
                xv = s.splat(s.scalar(x, "f32", at))
                for v in range(VECTORS):
                    w = s.load(panel, "f32", builder.add(builder.mul(at, s.i64(PANEL)), s.i64(v * LANES)))
                    sums[chain][v].set(s.fma(w, xv, sums[chain][v].get()))
        for v in range(VECTORS):
            mask = s.first_lanes(builder.sub(left, s.i64(v * LANES)))
            total = sums[0][v].get() + sums[1][v].get()
            if adds:
                total = total + s.load_masked(out, "f32", mask, v * LANES)
            s.store_masked(out, total, mask, v * LANES)
        return context.get_dummy_value()

    return types.void(x, k, panel, out, left, add), codegen


@njit(cache=True, nogil=True)
def multiply(x, k, w, out, n, add):
    """out (n,) = W x, added to out with `add`; addresses; k even."""
    for first in range(0, n, PANEL):
        if add:
            _column(x, k, w + 4 * first * k, out + 4 * first, n - first, 1)
        else:
            _column(x, k, w + 4 * first * k, out + 4 * first, n - first, 0)


@njit(cache=True, nogil=True)
def step(hidden, conv, state, weights, d, width, taps, rank, states, eps, work):
    """One block; weights: addresses of norm, in, conv, conv bias, x, dt, A, D, dt bias, out."""
    norm, in_w, conv_w, conv_b, x_w, dt_w, a2, skip, dt_b, out_w = weights
    normed, xz = work, work + 4 * d
    u = xz + 8 * width
    small = u + 4 * width
    delta = small + 4 * (rank + 2 * states)
    y = delta + 4 * width
    norm_row(hidden, norm, d, eps, normed)
    multiply(normed, d, in_w, xz, 2 * width, 0)
    rows = np.empty(taps, np.int64)
    for t in range(taps - 1):
        rows[t] = conv + 4 * t * width
    rows[taps - 1] = xz
    _conv_row(rows.ctypes.data, taps, conv_w, conv_b, width, u)
    for t in range(taps - 1):
        copy_floats(rows[t + 1], rows[t], width)
    multiply(u, width, x_w, small, rank + 2 * states, 0)
    multiply(small, rank, dt_w, delta, width, 0)
    _forward(
        u, 0, 0, delta, 0, 0, xz + 4 * width, 0, 0, small + 4 * rank, small + 4 * (rank + states), 0, 0, a2, skip, dt_b,
        state, 0, y, 1, 1, width, states, 1,
    )  # fmt: skip
    multiply(y, width, out_w, hidden, d, 1)


class FusedFloatMamba:
    """Decode of a `transformers` Mamba, batch 1: ``logits = model(token)``, states inside."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self.d, self.states, self.taps = config.hidden_size, config.state_size, config.conv_kernel
        self.width, self.rank, self.eps = (
            config.intermediate_size,
            int(config.time_step_rank),
            config.layer_norm_epsilon,
        )
        self.embedding, self.norm = model.backbone.embeddings.weight, model.backbone.norm_f.weight
        self.vocab, (self.head,) = config.vocab_size, place([panels(model.lm_head.weight)])
        self.blocks = [place(self._tensors(layer)) for layer in model.backbone.layers]
        self.addresses = [tuple(t.data_ptr() for t in tensors) for tensors in self.blocks]
        self.conv = [torch.zeros(self.taps - 1, self.width) for _ in self.blocks]
        self.state = [torch.zeros(self.width // LANES, self.states, LANES) for _ in self.blocks]
        self.work = torch.empty(self.d + 5 * self.width + self.rank + 2 * self.states + 64)

    @staticmethod
    def _tensors(layer: Any) -> list[Tensor]:
        m = layer.mixer
        return [
            layer.norm.weight, panels(m.in_proj.weight), m.conv1d.weight.squeeze(1).T.contiguous(), m.conv1d.bias,
            panels(m.x_proj.weight), panels(m.dt_proj.weight), decay_panels(-torch.exp(m.A_log)), m.D, m.dt_proj.bias,
            panels(m.out_proj.weight),
        ]  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes that a token reads and writes: weights, head, states."""
        weights = sum(t.nbytes for tensors in self.blocks for t in tensors) + self.head.nbytes
        return weights + 2 * sum(t.nbytes for t in (*self.conv, *self.state))

    def __call__(self, token: int) -> Tensor:
        hidden = self.embedding[token].clone()
        for addresses, conv, state in zip(self.addresses, self.conv, self.state):
            step(
                hidden.data_ptr(), conv.data_ptr(), state.data_ptr(), addresses, self.d, self.width, self.taps,
                self.rank, self.states, self.eps, self.work.data_ptr(),
            )  # fmt: skip
        normed, logits = torch.empty(self.d), torch.empty(self.vocab)
        norm_row(hidden.data_ptr(), self.norm.data_ptr(), self.d, self.eps, normed.data_ptr())
        multiply(normed.data_ptr(), self.d, self.head.data_ptr(), logits.data_ptr(), self.vocab, 0)
        return logits
