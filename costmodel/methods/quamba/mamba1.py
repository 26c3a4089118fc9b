"""A quantized Mamba-1 block: packed weights, static int8 (or 16-bit) activations, its own state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import Weights
from ...kernels.conv_int8 import conv_silu
from ...kernels.hadamard import rotate_quantize, rotate_split
from ...kernels.mamba_step import WEIGHTS, mamba_step
from ...kernels.rms_norm import rms_norm_quantize, rms_norm_split
from ...kernels.scan_int8 import scan_quantized
from ...kernels.selective_scan import decay_panels, to_panels
from .calibration import LayerStatistics, point_scales
from .floats import FloatMamba1
from .linear import QuantizedLinear, expand_runs
from .quantizer import int8_weight, scale_of
from .recipe import BlockRecipe, Sizes
from .rotation import fold_rotation

__all__ = ["QuantizedMamba1"]


class QuantizedMamba1(nn.Module):
    """One block; hidden (B, L, d) fp32 is updated in place, and so are the states.

    Args:
        sizes, recipe: dimensions and choices.
        like: a tensor on the device (or in the fake mode) to build on.
    """

    norm: Tensor
    conv_w: Tensor
    conv_w_scale: Tensor
    conv_b: Tensor
    dt_b: Tensor
    A_log: Tensor
    D: Tensor
    small_scales: Tensor
    input_scale: Tensor
    y_scale: Tensor
    u_groups: Tensor
    u_ends: Tensor
    state_groups: Tensor

    def __init__(self, sizes: Sizes, recipe: BlockRecipe, like: Tensor) -> None:
        super().__init__()
        self.sizes, self.recipe = sizes, recipe
        self._collected: list[Tensor] = []
        d, width, rank, n, wide = sizes.hidden, sizes.width, sizes.padded_rank, sizes.states, recipe.wide
        bits, group = recipe.weight_bits, recipe.group
        self.in_proj = QuantizedLinear([width, width], d, bits, wide, not wide, like, group)
        self.x_proj = QuantizedLinear([rank, n, n], width, 8, wide, not wide, like)
        self.dt_proj = QuantizedLinear([width], rank, 8, wide, not wide, like)
        self.out_proj = QuantizedLinear([d], width, bits, wide, False, like, group)
        f32, f16, i8 = torch.float32, torch.float16, torch.int8
        stored = {
            "conv_w": ((sizes.taps, width), i8), "conv_b": ((width,), f16), "dt_b": ((width,), f16),
            "A_log": ((width, n), i8), "D": ((width,), i8), "small_scales": ((3,), f32),
        }  # fmt: skip
        if not recipe.folded:
            stored["norm"] = ((d,), f16)
        if not wide:
            groups = recipe.clusters[0] * recipe.clusters[1]
            stored |= {"input_scale": ((1,), f32), "y_scale": ((1,), f32)}
            stored |= {"u_groups": ((groups,), f32), "u_ends": ((groups,), torch.int32)}
            if recipe.state == "int8":
                stored["state_groups"] = ((groups, n), f32)
        for name, (shape, dtype) in stored.items():
            self.register_buffer(name, like.new_zeros(shape, dtype=dtype))
        self.derive()

    def fill(
        self,
        block: FloatMamba1,
        seen: LayerStatistics,
        percentile: float,
        ends: Tensor | None = None,
        quantized: dict[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """Quantize the block with the scales that its statistics give.

        Args:
            percentile: of |u|, in per cent; above it u is clamped.
            ends: (clusters,) ends of the runs of channels that share a scale; one run without.
            quantized: 4-bit values and scales of in_proj and out_proj that GPTQ has found.
        """
        found = quantized or {}
        self._set_small(block)
        rank, pad = block.rank, self.sizes.padded_rank - block.rank
        dt_rows, bc_rows = block.x_proj[:rank], block.x_proj[rank:]
        x_proj = torch.cat([dt_rows, dt_rows.new_zeros(pad, block.width), bc_rows])
        dt_proj = torch.cat([block.dt_proj, block.dt_proj.new_zeros(block.width, pad)], 1)
        out_proj = fold_rotation(block.out_proj) if self.recipe.rotate else block.out_proj
        if self.recipe.wide:
            self.in_proj.fill(block.in_proj, None, found.get("in_proj"))
            self.x_proj.fill(x_proj)
            self.dt_proj.fill(dt_proj)
        else:
            self.input_scale.copy_(scale_of(seen.top("input")))
            self.y_scale.copy_(scale_of(seen.top("y_rotated" if self.recipe.rotate else "y")))
            ends = torch.tensor([block.width]) if ends is None else ends
            self.u_ends.copy_(ends)
            self._fill_u_scales(seen, percentile)
            per_channel = expand_runs(self.u_groups, self.u_ends, self.sizes.width)
            self.in_proj.fill(block.in_proj, point_scales(seen, "x", "z"), found.get("in_proj"))
            self.x_proj.fill(x_proj * per_channel, point_scales(seen, "dt_low", "B", "C"))
            self.dt_proj.fill(dt_proj, point_scales(seen, "delta"))
        self.out_proj.fill(out_proj, None, found.get("out_proj"))
        self.derive()

    def _fill_u_scales(self, seen: LayerStatistics, percentile: float) -> None:
        """The scale of each run of channels: its maximum, clamped where the percentile of the whole lies below."""
        top = seen.percentile(percentile)
        start = 0
        for i, end in enumerate(self.u_ends.tolist()):
            largest = torch.minimum(seen.largest["u"][start:end].max(), top)
            self.u_groups[i] = scale_of(largest)
            if self.recipe.state == "int8":
                self.state_groups[i] = scale_of(seen.largest["h"][start:end].amax(0))
            start = end

    def _set_small(self, block: FloatMamba1) -> None:
        """Norm, convolution, A_log, D and dt_bias."""
        if not self.recipe.folded:
            self.norm.copy_(block.norm)
        conv, conv_scale = int8_weight(block.conv_w.T.contiguous())
        a_log, a_scale = int8_weight(block.A_log)
        skip, d_scale = int8_weight(block.D)
        self.conv_w.copy_(conv)
        self.A_log.copy_(a_log)
        self.D.copy_(skip)
        self.small_scales.copy_(torch.stack([conv_scale, a_scale, d_scale]))
        self.conv_b.copy_(block.conv_b)
        self.dt_b.copy_(block.dt_bias)

    def derive(self) -> None:
        """Compute what the kernels take and the state_dict does not hold; after filling or loading."""
        for linear in (self.in_proj, self.x_proj, self.dt_proj, self.out_proj):
            linear.derive()
        like, width = self.small_scales, self.sizes.width
        conv_scale, a_scale, d_scale = self.small_scales
        ones = like.new_ones(width)
        a = -torch.exp(self.A_log.float() * a_scale)
        derived = {
            "norm32": like.new_ones(self.sizes.hidden) if self.recipe.folded else self.norm.float(),
            "conv_bias": self.conv_b.float(),
            "dt_bias": self.dt_b.float(),
            "skip": self.D.float() * d_scale,
            "a2": decay_panels(a)[0],
            "u_scale": ones,
            "conv_inverse": ones,
            "conv_scale": conv_scale * ones,
            "scales": like.new_ones(4),
            "statics": like.new_ones(4),
            "state_scale": like.new_ones(1),
        }
        if not self.recipe.wide:
            x_scale, z_scale = self.in_proj.out_scale
            dt_scale, b_scale, c_scale = self.x_proj.out_scale
            delta_scale = self.dt_proj.out_scale[0]
            per_channel = expand_runs(self.u_groups, self.u_ends, self.sizes.width)
            derived |= {
                "u_scale": per_channel,
                "conv_inverse": 1.0 / per_channel,
                "conv_scale": (conv_scale * x_scale).expand(width).contiguous(),
                "scales": torch.stack([delta_scale, b_scale, c_scale, z_scale]),
                "statics": torch.stack([self.input_scale[0], like.new_ones(()), dt_scale, self.y_scale[0]]),
            }
            if self.recipe.state == "int8":
                derived["state_scale"] = to_panels(expand_runs(self.state_groups, self.u_ends, self.sizes.width)[None])[
                    0
                ]
        for name, value in derived.items():
            self.register_buffer(name, value, persistent=False)

    def weights(self) -> list[Tensor]:
        """The tensors of `WEIGHTS`, in that order; collected again where the buffers are others (fake ones, moved)."""
        if torch.compiler.is_compiling():
            return self._collect()  # an export watches attributes
        if not self._collected or self._collected[0] is not self._buffers["norm32"]:
            self._collected = Weights(self._collect())
        return self._collected

    def _collect(self) -> list[Tensor]:
        own, linears = self._buffers, {"in": self.in_proj, "x": self.x_proj, "dt": self.dt_proj, "out": self.out_proj}
        renamed = {"norm": "norm32", "D": "skip"}
        found = []
        for name in WEIGHTS:
            kind, _, part = name.partition("_")
            linear = linears.get(kind) if part in ("w", "aux", "scale") else None
            if linear is None:
                value = own[renamed.get(name, name)]
            else:
                value = {"w": linear.panels, "aux": linear.second, "scale": linear.column}[part]
            assert value is not None
            found.append(value)
        return found

    def step(self, hidden: Tensor, conv_state: Tensor, ssm_state: Tensor) -> None:
        """One token: hidden (B, d) and the states are updated in place, by one op."""
        sizes, recipe = self.sizes, self.recipe
        mamba_step(
            hidden, conv_state, ssm_state, self.weights(), sizes.padded_rank, sizes.eps, recipe.weight_bits == 4,
            recipe.wide, recipe.rotate,
        )  # fmt: skip

    def forward(self, hidden: Tensor, conv_state: Tensor, ssm_state: Tensor) -> None:
        """Any number of tokens: hidden (B, L, d) and the states are updated in place."""
        b = self._buffers
        sizes, statics, wide = self.sizes, self.get_buffer("statics"), self.recipe.wide
        norm = self.get_buffer("norm32")
        if wide:
            q, row = rms_norm_split(hidden, norm, sizes.eps)
        else:
            q, row = rms_norm_quantize(hidden, norm, statics[0:1], sizes.eps), statics[0:1]
        x, z = self.in_proj(q, row).chunk(2, -1)
        u = conv_silu(x, self.conv_w, b["conv_scale"], b["conv_bias"], b["conv_inverse"], conv_state)
        q, row = rotate_split(u, False) if wide else (u, statics[1:2])
        dt_low, bb, cc = self.x_proj(q, row).split([sizes.padded_rank, sizes.states, sizes.states], -1)
        q, row = rotate_split(dt_low, False) if wide else (dt_low, statics[2:3])
        delta = self.dt_proj(q, row)
        y = scan_quantized(
            u,
            delta,
            bb,
            cc,
            z,
            b["u_scale"],
            b["scales"],
            b["a2"],
            b["skip"],
            b["dt_bias"],
            ssm_state,
            b["state_scale"],
        )
        rotate = self.recipe.rotate
        q, row = rotate_split(y, rotate) if wide else (rotate_quantize(y, statics[3:4], rotate), statics[3:4])
        self.out_proj(q, row, hidden)

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Conv state (B, K-1, D) and ssm state (B, D/16, N, 16), zeros."""
        like, sizes = self.small_scales, self.sizes
        conv = like.new_zeros(batch, sizes.taps - 1, sizes.width, dtype=self.recipe.conv_dtype)
        shape = (batch, sizes.width // 16, sizes.states, 16)
        return conv, like.new_zeros(shape, dtype=self.recipe.state_dtype)
