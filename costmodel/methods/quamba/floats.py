"""The float side of a quantized Mamba: weights taken out of a `transformers` model, and a forward that is watched.

Blocks are plain tensors, so that rotations, foldings and reorderings are assignments, and calibration can look at every
quantization point of METHODS.md §3-4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import CostmodelError
from ...kernels.causal_conv1d import causal_conv1d
from ...kernels.hadamard import hadamard_matrix
from ...kernels.selective_scan import from_panels, selective_scan
from ...kernels.ssd_scan import ssd_scan

__all__ = ["Block", "FloatMamba1", "FloatMamba2", "FloatModel", "Watch", "read_model", "rms_norm"]

Watch = Callable[[str, Tensor], None]
SEGMENT = 8  # tokens between looks at the recurrent state


def rms_norm(x: Tensor, weight: Tensor, eps: float, groups: int = 1) -> Tensor:
    """x / rms(x) · weight over the last dimension, in `groups` parts."""
    parts = x.unflatten(-1, (groups, -1))
    parts = parts * torch.rsqrt(parts.square().mean(-1, keepdim=True) + eps)
    return parts.flatten(-2) * weight


@dataclass
class FloatMamba1:
    """One block of Mamba-1, fp32. d model, D inner, R rank of dt, N states, K taps.

    Attributes:
        norm: (d,), in_proj: (2·D, d) rows [x; z], conv_w: (D, K), conv_b: (D,), x_proj: (R + 2·N, D) rows [dt, B, C],
        dt_proj: (D, R), dt_bias: (D,), A_log: (D, N), D: (D,), out_proj: (d, D), eps of the norm.
    """

    norm: Tensor
    in_proj: Tensor
    conv_w: Tensor
    conv_b: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    out_proj: Tensor
    eps: float

    @property
    def width(self) -> int:
        return self.D.shape[0]

    @property
    def rank(self) -> int:
        return self.dt_proj.shape[1]

    @property
    def states(self) -> int:
        return self.A_log.shape[1]

    def forward(self, hidden: Tensor, watch: Watch) -> Tensor:
        """hidden (1, L, d) to the block's output; `watch` sees input, x, z, u, dt_low, B, C, delta, y, h."""
        n = rms_norm(hidden, self.norm, self.eps)
        x, z = F.linear(n, self.in_proj).chunk(2, -1)
        u = causal_conv1d(x, self.conv_w, self.conv_b)
        dt_low, b, c = F.linear(u, self.x_proj).split([self.rank, self.states, self.states], -1)
        delta = F.linear(dt_low, self.dt_proj)
        a = -torch.exp(self.A_log)
        parts, h = [], None
        for s in range(0, hidden.shape[1], SEGMENT):
            rows = (t[:, s : s + SEGMENT] for t in (u, delta, b, c, z))
            us, ds, bs, cs, zs = rows
            y, h = selective_scan(us, ds, a, bs, cs, self.D, zs, self.dt_bias, h)
            parts.append(y)
            watch("h", from_panels(h))
        y = torch.cat(parts, 1)
        names = {"input": n, "x": x, "z": z, "u": u, "dt_low": dt_low, "B": b, "C": c, "delta": delta, "y": y}
        for name, value in names.items():
            watch(name, value)
        return hidden + F.linear(y, self.out_proj)


@dataclass
class FloatMamba2:
    """One block of Mamba-2, fp32. H heads of P channels, G groups of N states; D = H·P.

    Attributes:
        norm: (d,), in_proj: (2·D + 2·G·N + H, d) rows [z, x, B, C, dt], conv_w: (D + 2·G·N, K), conv_b, dt_bias, A_log,
        D: (H,), gate_norm: (D,), out_proj: (d, D); heads, groups, states, eps; limit of dt.
    """

    norm: Tensor
    in_proj: Tensor
    conv_w: Tensor
    conv_b: Tensor
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor
    gate_norm: Tensor
    out_proj: Tensor
    heads: int
    groups: int
    states: int
    eps: float
    limit: tuple[float, float]

    @property
    def width(self) -> int:
        return self.out_proj.shape[1]

    @property
    def splits(self) -> list[int]:
        """Rows of in_proj: z, x, B, C, dt."""
        bc = self.groups * self.states
        return [self.width, self.width, bc, bc, self.heads]

    def forward(self, hidden: Tensor, watch: Watch) -> Tensor:
        """hidden (1, L, d) to the block's output; `watch` sees input, z, x, B, C, dt, u, Bc, Cc, y, h."""
        n = rms_norm(hidden, self.norm, self.eps)
        z, x, b, c, dt = F.linear(n, self.in_proj).split(self.splits, -1)
        conv = causal_conv1d(torch.cat([x, b, c], -1), self.conv_w, self.conv_b)
        u, bc, cc = conv.split(self.splits[1:4], -1)
        heads = u.unflatten(-1, (self.heads, -1))
        bg, cg = (t.unflatten(-1, (self.groups, self.states)) for t in (bc, cc))
        a = -torch.exp(self.A_log)
        parts, h = [], None
        for s in range(0, hidden.shape[1], SEGMENT):
            us, ds, bs, cs = (t[:, s : s + SEGMENT] for t in (heads, dt, bg, cg))
            y, h = ssd_scan(us, ds, a, bs, cs, self.D, self.dt_bias, h, self.limit)
            parts.append(y)
            watch("h", h)
        y = torch.cat(parts, 1).flatten(2)
        y = rms_norm(y * F.silu(z), self.gate_norm, self.eps, self.groups)
        names = {"input": n, "z": z, "x": x, "B": b, "C": c, "dt": dt, "u": u, "Bc": bg, "Cc": cg, "y": y}
        for name, value in names.items():
            watch(name, value)
        return hidden + F.linear(y, self.out_proj)


Block = FloatMamba1 | FloatMamba2


@dataclass
class FloatModel:
    """Embedding (V, d), blocks, final norm (d,) and head (V, d), fp32; `config` is the `transformers` one."""

    embedding: Tensor
    blocks: list[Any]
    norm: Tensor
    head: Tensor
    eps: float
    config: Any

    @property
    def is_mamba2(self) -> bool:
        return isinstance(self.blocks[0], FloatMamba2)

    def fold_norms(self) -> None:
        """Norm weights into the next linear; the norms become ones."""
        for block in self.blocks:
            block.in_proj = block.in_proj * block.norm
            block.norm = torch.ones_like(block.norm)
            if isinstance(block, FloatMamba2):
                block.out_proj = block.out_proj * block.gate_norm
                block.gate_norm = torch.ones_like(block.gate_norm)
        self.head = self.head * self.norm
        self.norm = torch.ones_like(self.norm)

    def rotate_residual(self) -> None:
        """H_d/√d through the residual stream: embedding, in_proj, out_proj and head; needs folded norms."""
        d = self.embedding.shape[1]
        h = hadamard_matrix(d) / d**0.5

        def rotated(w: Tensor) -> Tensor:
            return (w.double() @ h.T).float()

        self.embedding, self.head = rotated(self.embedding), rotated(self.head)
        for block in self.blocks:
            block.in_proj = rotated(block.in_proj)
            block.out_proj = (h @ block.out_proj.double()).float()


def read_model(model: nn.Module) -> FloatModel:
    """The weights of a Mamba or Mamba-2 language model of `transformers`, copied as fp32.

    Raises:
        CostmodelError: anything else, or a variant whose forward the kernels do not have.
    """
    backbone: Any = getattr(model, "backbone", None)
    head: Any = getattr(model, "lm_head", None)
    mixers = [getattr(layer, "mixer", None) for layer in getattr(backbone, "layers", [])]
    known = ("MambaMixer", "FusedMambaMixer", "Mamba2Mixer", "FusedMamba2Mixer")
    if head is None or not mixers or any(type(m).__name__ not in known for m in mixers):
        raise CostmodelError(
            f"quantization takes MambaForCausalLM or Mamba2ForCausalLM of transformers, not {type(model).__name__}"
        )
    config: Any = getattr(model, "config", None)
    if config.hidden_act not in ("silu", "swish") or config.use_bias:
        raise CostmodelError(
            f"the quantized kernels have SiLU and no bias in in_proj and out_proj: the model has "
            f"hidden_act={config.hidden_act!r}, use_bias={config.use_bias}"
        )
    read = _read_mamba2 if "Mamba2" in type(mixers[0]).__name__ else _read_mamba1
    blocks = [read(layer, config) for layer in backbone.layers]
    eps = float(backbone.norm_f.variance_epsilon)
    embedding, final, out = (_copy(t) for t in (backbone.embeddings.weight, backbone.norm_f.weight, head.weight))
    return FloatModel(embedding, blocks, final, out, eps, config)


def _copy(t: Tensor) -> Tensor:
    return t.detach().float().clone()


def _conv_bias(conv: nn.Conv1d) -> Tensor:
    return conv.weight.new_zeros(conv.weight.shape[0]) if conv.bias is None else conv.bias


def _common(layer: Any) -> dict[str, Tensor]:
    m = layer.mixer
    found = {
        "norm": layer.norm.weight, "in_proj": m.in_proj.weight, "conv_w": m.conv1d.weight.squeeze(1),
        "conv_b": _conv_bias(m.conv1d), "A_log": m.A_log, "D": m.D, "out_proj": m.out_proj.weight,
    }  # fmt: skip
    return {name: _copy(t) for name, t in found.items()}


def _read_mamba1(layer: Any, _config: Any) -> FloatMamba1:
    m = layer.mixer
    own = (_copy(t) for t in (m.x_proj.weight, m.dt_proj.weight, m.dt_proj.bias))
    names = ("x_proj", "dt_proj", "dt_bias")
    return FloatMamba1(**_common(layer), **dict(zip(names, own)), eps=float(layer.norm.variance_epsilon))


def _read_mamba2(layer: Any, config: Any) -> FloatMamba2:
    low, high = map(float, config.time_step_limit)
    return FloatMamba2(
        **_common(layer),
        dt_bias=_copy(layer.mixer.dt_bias),
        gate_norm=_copy(layer.mixer.norm.weight),
        heads=config.num_heads,
        groups=config.n_groups,
        states=config.state_size,
        eps=float(layer.norm.variance_epsilon),
        limit=(low, high),
    )
