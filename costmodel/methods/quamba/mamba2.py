"""A quantized Mamba-2 block: packed weights, static int8 (or 16-bit) activations, its own state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels import Weights
from ...kernels.conv_int8 import conv_silu
from ...kernels.hadamard import rotate_quantize, rotate_split
from ...kernels.mamba2_step import WEIGHTS, mamba2_step
from ...kernels.rms_norm import gated_rms_norm, rms_norm_quantize, rms_norm_split
from ...kernels.simd import LOG2E
from ...kernels.ssd_int8 import ssd_quantized
from ...kernels.ssd_scan import ROWS
from .calibration import LayerStatistics, point_scales
from .clusters import Clusters
from .floats import FloatMamba2
from .linear import QuantizedLinear
from .quantizer import int8_weight, scale_of
from .recipe import BlockRecipe, Sizes
from .rotation import fold_rotation

__all__ = ["QuantizedMamba2"]


class QuantizedMamba2(nn.Module):
    """One block; hidden (B, L, d) fp32 is updated in place, and so are the states.

    Args:
        sizes, recipe: dimensions and choices.
        like: a tensor on the device (or in the fake mode) to build on.
    """

    norm: Tensor
    gate_norm: Tensor
    conv_w: Tensor
    conv_b: Tensor
    dt_b: Tensor
    A_log: Tensor
    D: Tensor
    small_scales: Tensor
    input_scale: Tensor
    y_scale: Tensor
    x_groups: Tensor
    head_ends: Tensor
    channel_ends: Tensor
    b_scale: Tensor
    c_scale: Tensor
    state_groups: Tensor

    def __init__(self, sizes: Sizes, recipe: BlockRecipe, like: Tensor) -> None:
        super().__init__()
        self.sizes, self.recipe = sizes, recipe
        self._collected: list[Tensor] = []
        d, width, heads, wide = sizes.hidden, sizes.width, sizes.heads, recipe.wide
        groups, bc = sizes.groups, sizes.groups * sizes.states
        self.splits = [width, width, bc, bc, heads]
        self.in_proj = QuantizedLinear(self.splits, d, recipe.weight_bits, wide, not wide, like, recipe.group)
        self.out_proj = QuantizedLinear([d], width, recipe.weight_bits, wide, False, like, recipe.group)
        f32, f16, i8, i32 = torch.float32, torch.float16, torch.int8, torch.int32
        conv = sizes.conv_width
        stored = {
            "conv_w": ((sizes.taps, conv), i8), "conv_b": ((conv,), f16), "dt_b": ((heads,), f16),
            "A_log": ((heads,), i8), "D": ((heads,), i8), "small_scales": ((3,), f32),
        }  # fmt: skip
        if not recipe.folded:
            stored |= {"norm": ((d,), f16), "gate_norm": ((width,), f16)}
        if not wide:
            m, n = recipe.clusters
            stored |= {"input_scale": ((1,), f32), "y_scale": ((1,), f32), "x_groups": ((groups, m, n), f32)}
            stored |= {"head_ends": ((groups, m), i32), "channel_ends": ((groups, m, n), i32)}
            stored |= {"b_scale": ((groups,), f32), "c_scale": ((groups,), f32)}
            if recipe.state == "int8":
                stored["state_groups"] = ((groups, m, n, sizes.states), f32)
        for name, (shape, dtype) in stored.items():
            self.register_buffer(name, like.new_zeros(shape, dtype=dtype))
        self.derive()

    def fill(
        self,
        block: FloatMamba2,
        seen: LayerStatistics,
        percentile: float,
        clusters: Clusters | None = None,
        quantized: dict[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """Quantize the block with the scales that its statistics give.

        Args:
            percentile: of |x| after the convolution, in per cent; above it x is clamped.
            clusters: runs of heads and channels that share a scale; one run a group without.
            quantized: 4-bit values and scales of in_proj and out_proj that GPTQ has found.
        """
        found = quantized or {}
        self._set_small(block)
        out_scale = None
        if not self.recipe.wide:
            self.input_scale.copy_(scale_of(seen.top("input")))
            self.y_scale.copy_(scale_of(seen.top("y_rotated" if self.recipe.rotate else "y")))
            runs = clusters or Clusters.single(self.sizes)
            self.head_ends.copy_(runs.head_ends)
            self.channel_ends.copy_(runs.channel_ends)
            self._fill_groups(seen, percentile)
            out_scale = point_scales(seen, "z", "x", "B", "C", "dt")
        out_proj = fold_rotation(block.out_proj) if self.recipe.rotate else block.out_proj
        self.in_proj.fill(block.in_proj, out_scale, found.get("in_proj"))
        self.out_proj.fill(out_proj, None, found.get("out_proj"))
        self.derive()

    def _fill_groups(self, seen: LayerStatistics, percentile: float) -> None:
        """Scales of x and of the state by run, of B and C by state group."""
        rows, (groups, m, n) = self._rows(), self.x_groups.shape
        top = torch.minimum(seen.largest["u"], seen.percentile(percentile))
        flat = self.x_groups.view(-1)
        for r in range(groups * m * n):
            mine = rows == r
            if bool(mine.any()):
                flat[r] = scale_of(top[mine].max())
        self.b_scale.copy_(scale_of(seen.largest["Bc"].amax(-1)))
        self.c_scale.copy_(scale_of(seen.largest["Cc"].amax(-1)))
        if self.recipe.state == "int8":
            states = seen.largest["h"].flatten(0, 1)
            table = self.state_groups.view(-1, self.sizes.states)
            for r in range(groups * m * n):
                mine = rows == r
                table[r] = scale_of(states[mine].amax(0) if bool(mine.any()) else table[r])

    def _set_small(self, block: FloatMamba2) -> None:
        if not self.recipe.folded:
            self.norm.copy_(block.norm)
            self.gate_norm.copy_(block.gate_norm)
        conv, conv_scale = int8_weight(block.conv_w.T.contiguous())
        a_log, a_scale = int8_weight(block.A_log)
        skip, d_scale = int8_weight(block.D)
        self.conv_w.copy_(conv)
        self.A_log.copy_(a_log)
        self.D.copy_(skip)
        self.small_scales.copy_(torch.stack([conv_scale, a_scale, d_scale]))
        self.conv_b.copy_(block.conv_b)
        self.dt_b.copy_(block.dt_bias)

    def _rows(self) -> Tensor:
        """The row of the scale tables of each channel (D,), from the ends of the runs."""
        sizes, (m, n) = self.sizes, self.recipe.clusters
        per_group, p = sizes.heads // sizes.groups, sizes.width // sizes.heads
        heads = torch.arange(per_group, device=self.head_ends.device, dtype=torch.int32)
        channels = torch.arange(p, device=self.head_ends.device, dtype=torch.int32)
        head_runs = (heads[None, :, None] >= self.head_ends[:, None, :]).sum(-1).clamp(max=m - 1)  # (G, H/G)
        ends = torch.gather(self.channel_ends, 1, head_runs[..., None].expand(-1, -1, n))  # (G, H/G, n)
        channel_runs = (channels[None, None, :, None] >= ends[:, :, None, :]).sum(-1).clamp(max=n - 1)
        group = torch.arange(sizes.groups, device=self.head_ends.device)[:, None, None]
        return ((group * m + head_runs[..., None]) * n + channel_runs).flatten()

    def derive(self) -> None:
        """Compute what the kernels take and the state_dict does not hold; after filling or loading."""
        self.in_proj.derive()
        self.out_proj.derive()
        sizes, recipe, like = self.sizes, self.recipe, self.small_scales
        conv_scale, a_scale, d_scale = self.small_scales
        width, conv, bc = sizes.width, sizes.conv_width, sizes.groups * sizes.states
        derived = {
            "norm32": like.new_ones(sizes.hidden) if recipe.folded else self.norm.float(),
            "gate_norm32": like.new_ones(width) if recipe.folded else self.gate_norm.float(),
            "conv_bias": self.conv_b.float(),
            "dt_bias": self.dt_b.float(),
            "skip": self.D.float() * d_scale,
            "a2": -torch.exp(self.A_log.float() * a_scale) * LOG2E,
            "conv_scale": conv_scale * like.new_ones(conv),
            "conv_inverse": like.new_ones(conv),
            "x_scale": like.new_ones(width),
            "delta_scale": like.new_ones(1),
            "b_unit": like.new_ones(sizes.groups),
            "c_unit": like.new_ones(sizes.groups),
            "statics": like.new_ones(3),
            "state_scale": like.new_ones(1, sizes.states),
            "state_rows": like.new_zeros(width // ROWS, dtype=torch.int32),
        }
        if not recipe.wide:
            z, x, b, c, dt = self.in_proj.out_scale
            rows = self._rows()
            x_scale = self.x_groups.flatten()[rows]
            b_out, c_out = (t.repeat_interleave(sizes.states, output_size=bc) for t in (self.b_scale, self.c_scale))
            derived |= {
                "conv_scale": conv_scale * torch.cat([x.expand(width), b.expand(bc), c.expand(bc)]),
                "conv_inverse": 1.0 / torch.cat([x_scale, b_out, c_out]),
                "x_scale": x_scale,
                "delta_scale": dt.reshape(1).clone(),
                "b_unit": self.b_scale.clone(),
                "c_unit": self.c_scale.clone(),
                "statics": torch.stack([self.input_scale[0], self.y_scale[0], z]),
            }
            if recipe.state == "int8":
                derived["state_scale"] = self.state_groups.view(-1, sizes.states).clamp_min(1e-30)
                derived["state_rows"] = rows[::ROWS].to(torch.int32).contiguous()
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
        own = self._buffers
        renamed = {"norm": "norm32", "gate_norm": "gate_norm32", "D": "skip", "b_scale": "b_unit", "c_scale": "c_unit"}
        found = []
        for name in WEIGHTS:
            kind, _, part = name.partition("_")
            if kind in ("in", "out") and part in ("w", "aux", "scale"):
                linear = self.in_proj if kind == "in" else self.out_proj
                value: Tensor | None = {"w": linear.panels, "aux": linear.second, "scale": linear.column}[part]
            else:
                value = own[renamed.get(name, name)]
            assert value is not None
            found.append(value)
        return found

    def step(self, hidden: Tensor, conv_state: Tensor, ssm_state: Tensor) -> None:
        """One token: hidden (B, d) and the states are updated in place, by one op."""
        recipe = self.recipe
        mamba2_step(
            hidden, conv_state, ssm_state, self.weights(), self.sizes.eps, *self.sizes.limit, recipe.weight_bits == 4,
            recipe.wide, recipe.rotate,
        )  # fmt: skip

    def forward(self, hidden: Tensor, conv_state: Tensor, ssm_state: Tensor) -> None:
        """Any number of tokens: hidden (B, L, d) and the states are updated in place."""
        b, sizes, wide, rotate = self._buffers, self.sizes, self.recipe.wide, self.recipe.rotate
        norm, statics = self.get_buffer("norm32"), self.get_buffer("statics")
        if wide:
            q, row = rms_norm_split(hidden, norm, sizes.eps)
        else:
            q, row = rms_norm_quantize(hidden, norm, statics[0:1], sizes.eps), statics[0:1]
        bc = sizes.groups * sizes.states
        z, xbc, dt = self.in_proj(q, row).split([sizes.width, sizes.conv_width, sizes.heads], -1)
        u = conv_silu(xbc, self.conv_w, b["conv_scale"], b["conv_bias"], b["conv_inverse"], conv_state)
        x, bb, cc = u.split([sizes.width, bc, bc], -1)
        y = ssd_quantized(
            x, dt, bb, cc, b["x_scale"], b["delta_scale"], b["b_unit"], b["c_unit"], b["a2"], b["skip"], b["dt_bias"],
            ssm_state, b["state_scale"], b["state_rows"], *sizes.limit,
        )  # fmt: skip
        y = gated_rms_norm(y, z, statics[2:3], b["gate_norm32"], sizes.eps, sizes.groups)
        q, row = rotate_split(y, rotate) if wide else (rotate_quantize(y, statics[1:2], rotate), statics[1:2])
        self.out_proj(q, row, hidden)

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """Conv state (B, K-1, D + 2·G·N) and ssm state (B, H, P, N), zeros."""
        like, sizes = self.small_scales, self.sizes
        conv = like.new_zeros(batch, sizes.taps - 1, sizes.conv_width, dtype=self.recipe.conv_dtype)
        shape = (batch, sizes.heads, sizes.width // sizes.heads, sizes.states)
        return conv, like.new_zeros(shape, dtype=self.recipe.state_dtype)
