"""Fused scan: `transformers`' Mamba and Mamba-2 with the scan as one op, forward and backward, in fp32.

The reference loop issues some twenty ops a token; here a mixer is in_proj, `causal_conv1d`, x_proj, dt_proj,
`selective_scan` (or `ssd_scan`), out_proj. Parameters, their names and the outputs (within 1e-5) are unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CostmodelError
from ..kernels.causal_conv1d import causal_conv1d
from ..kernels.selective_scan import from_panels, selective_scan, to_panels
from ..kernels.ssd_scan import ssd_scan

__all__ = ["FusedMamba2Mixer", "FusedMambaMixer", "apply"]


class FusedMambaMixer(nn.Module):
    """A `MambaMixer` that shares its parameters and calls fused ops; drop-in for forward, cache and training."""

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        _require_silu(mixer)
        self.conv1d: nn.Conv1d = mixer.conv1d
        self.in_proj: nn.Linear = mixer.in_proj
        self.x_proj: nn.Linear = mixer.x_proj
        self.dt_proj: nn.Linear = mixer.dt_proj
        self.out_proj: nn.Linear = mixer.out_proj
        self.A_log, self.D = mixer.A_log, mixer.D
        self.layer_idx = mixer.layer_idx
        self.splits = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
        self.taps = mixer.conv_kernel_size

    def forward(
        self,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """(B, L, d) to (B, L, d); reads and updates the layer's entry of `cache_params` if there is one."""
        x, z = self.in_proj(_masked(hidden_states, attention_mask)).chunk(2, dim=-1)
        conv_state, ssm_state = _cached(cache_params, self.layer_idx, self.taps)
        bias = self.conv1d.bias if self.conv1d.bias is not None else x.new_zeros(x.shape[-1])
        u = causal_conv1d(x, self.conv1d.weight.squeeze(1), bias, conv_state)
        _keep_inputs(cache_params, self.layer_idx, x, self.taps)  # in place: after the old ones were read
        u = _masked(u, attention_mask)
        low_rank, b, c = self.x_proj(u).split(self.splits, dim=-1)
        delta = F.linear(low_rank, self.dt_proj.weight)
        h0 = None if ssm_state is None else to_panels(ssm_state)
        a = -torch.exp(self.A_log.float())
        y, h = selective_scan(u, delta, a, b, c, self.D.float(), z, self.dt_proj.bias, h0)
        if cache_params is not None:
            cache_params.update_recurrent_state(from_panels(h), self.layer_idx)
        out: Tensor = self.out_proj(y)
        return out


class FusedMamba2Mixer(nn.Module):
    """A `Mamba2Mixer` that shares its parameters and calls fused ops; drop-in for forward, cache and training."""

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        _require_silu(mixer)
        self.conv1d: nn.Conv1d = mixer.conv1d
        self.in_proj: nn.Linear = mixer.in_proj
        self.norm: nn.Module = mixer.norm
        self.out_proj: nn.Linear = mixer.out_proj
        self.dt_bias, self.A_log, self.D = mixer.dt_bias, mixer.A_log, mixer.D  # in the order of the original
        self.layer_idx = mixer.layer_idx
        self.heads, self.head_dim = mixer.num_heads, mixer.head_dim
        self.groups, self.states = mixer.n_groups, mixer.ssm_state_size
        self.limit = tuple(map(float, mixer.time_step_limit))
        self.taps = mixer.conv_kernel_size

    def forward(
        self, hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """(B, L, d) to (B, L, d); reads and updates the layer's entry of `cache_params` if there is one."""
        batch, length, _d = hidden_states.shape
        inner, bc = self.heads * self.head_dim, self.groups * self.states
        z, xbc, delta = self.in_proj(_masked(hidden_states, attention_mask)).split(
            [inner, inner + 2 * bc, self.heads], dim=-1
        )
        conv_state, ssm_state = _cached(cache_params, self.layer_idx, self.taps)
        bias = self.conv1d.bias if self.conv1d.bias is not None else xbc.new_zeros(xbc.shape[-1])
        u = causal_conv1d(xbc, self.conv1d.weight.squeeze(1), bias, conv_state)
        _keep_inputs(cache_params, self.layer_idx, xbc, self.taps)
        x, b, c = _masked(u, attention_mask).split([inner, bc, bc], dim=-1)
        y, h = ssd_scan(
            x.unflatten(-1, (self.heads, self.head_dim)),
            delta,
            -torch.exp(self.A_log.float()),
            b.unflatten(-1, (self.groups, self.states)),
            c.unflatten(-1, (self.groups, self.states)),
            self.D.float(),
            self.dt_bias.float(),
            ssm_state,
            (self.limit[0], self.limit[1]),
        )
        if cache_params is not None:
            cache_params.update_recurrent_state(h, layer_idx=self.layer_idx)
        out: Tensor = self.out_proj(self.norm(y.reshape(batch, length, inner), z))
        return out


def _require_silu(mixer: Any) -> None:
    if mixer.activation not in ("silu", "swish"):
        raise CostmodelError(f"the fused scan has SiLU only, the model uses {mixer.activation!r}")


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask[:, :, None].to(x.dtype)


def _cached(cache: Any, layer: int, taps: int) -> tuple[Tensor | None, Tensor | None]:
    """The last taps - 1 inputs (B, taps - 1, D) and the state (B, D, N), or None each."""
    if cache is None:
        return None, None
    conv, state = cache.get_conv_state(layer, state_idx=0), cache.get_recurrent_state(layer, state_idx=0)
    return None if conv is None else conv[:, :, 1 - taps :].transpose(1, 2), state


def _keep_inputs(cache: Any, layer: int, x: Tensor, taps: int) -> None:
    if cache is not None:
        cache.update_conv_state(x.transpose(1, 2), layer, conv_kernel_size=taps)


_FUSED: dict[str, Any] = {"MambaMixer": FusedMambaMixer, "Mamba2Mixer": FusedMamba2Mixer}


def apply(model: nn.Module, _inputs: Any = None) -> nn.Module:
    """Replace the mixers of `model` in place and return it.

    Raises:
        CostmodelError: the model holds no Mamba mixer of `transformers`, or one that is not fp32.
    """
    targets = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child).__name__ in _FUSED
    ]
    if not targets:
        raise CostmodelError(f"fused_scan takes a Mamba of transformers, {type(model).__name__} holds no mixer of it")
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes != {torch.float32}:
        raise CostmodelError(f"fused_scan runs in float32, the model is {', '.join(map(str, dtypes))}; call .float()")
    replacements = [(parent, name, _FUSED[type(child).__name__](child)) for parent, name, child in targets]
    for parent, name, mixer in replacements:
        setattr(parent, name, mixer)
    return model
