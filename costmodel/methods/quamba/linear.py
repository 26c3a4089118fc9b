"""A linear layer whose weights stay packed: int8 or 4-bit panels, multiplied as integers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...kernels.gemm_int4 import gemm_int4, gemm_int4_add, gemm_int4_quantized, pack_int4
from ...kernels.gemm_int8 import gemm_int8, gemm_int8_add, gemm_int8_quantized, pack_int8
from ...kernels.panels import PANEL
from .quantizer import int4_groups, int8_splits, scale_of

__all__ = ["QuantizedLinear", "channel_scales", "expand_runs"]


class QuantizedLinear(nn.Module):
    """y = x Wᵀ with packed weights.

    Kept in the state_dict: panels; for 8 bits a scale each split of the outputs, for 4 bits fp16 group scales and, on
    int8 inputs, a fp32 scale an output (the second level); the scales of the outputs where they are int8. Derived
    from these: `aux` (row sums of 8 bits) and `column`, what a sum is multiplied by on its way out.

    Args:
        splits: outputs, in runs that share a weight scale and an output scale.
        inputs: K.
        bits: 8 or 4.
        wide: inputs are 16 bits in two int8 rows, with a scale a row.
        int8_out: outputs are int8 with a static scale each split.
        like: a tensor on the device (or in the fake mode) to build on.
    """

    panels: Tensor
    weight_scale: Tensor
    group_scale: Tensor
    channel_scale: Tensor
    out_scale: Tensor
    aux: Tensor
    column: Tensor

    def __init__(
        self, splits: Sequence[int], inputs: int, bits: int, wide: bool, int8_out: bool, like: Tensor, group: int = 128
    ) -> None:
        super().__init__()
        self.splits, self.inputs, self.bits, self.wide = list(splits), inputs, bits, wide
        self.outputs, self.int8_out, self.group = sum(splits), int8_out, group
        blocks = -(-self.outputs // PANEL)
        if bits == 8:
            shape = (blocks, -(-inputs // 4), PANEL // 16, 16, 4)
            self.register_buffer("panels", like.new_empty(shape, dtype=torch.int8))
            self.register_buffer("weight_scale", like.new_empty(len(self.splits), dtype=torch.float32))
        else:
            self.register_buffer("panels", like.new_empty(blocks, -(-inputs // 4), 2, 64, dtype=torch.uint8))
            scales = like.new_empty(blocks, -(-inputs // group), PANEL, dtype=torch.float16)
            self.register_buffer("group_scale", scales)
            if not wide:
                self.register_buffer("channel_scale", like.new_empty(self.outputs, dtype=torch.float32))
        if int8_out:
            self.register_buffer("out_scale", like.new_empty(len(self.splits), dtype=torch.float32))
        self.derive()

    @property
    def second(self) -> Tensor:
        """What the kernels take beside the panels: row sums of 8 bits, group scales of 4."""
        return self.aux if self.bits == 8 else self.group_scale

    def fill(self, w: Tensor, out_scale: Tensor | None = None, quantized: tuple[Tensor, Tensor] | None = None) -> None:
        """Quantize and pack fp32 (N, K); `quantized` takes 4-bit values and group scales that GPTQ has found."""
        if self.bits == 8:
            q, scale = int8_splits(w, self.splits)
            self.panels.copy_(pack_int8(q)[0])
            self.weight_scale.copy_(scale)
        else:
            channel = None if self.wide else channel_scales(w)
            values, scale = quantized or int4_groups(w, self.group, channel)
            self.panels.copy_(pack_int4(values))
            self.group_scale.copy_(_panel_scales(scale))
            if channel is not None:
                self.channel_scale.copy_(channel)
        if self.int8_out:
            assert out_scale is not None
            self.out_scale.copy_(out_scale)
        self.derive()

    def derive(self) -> None:
        """Compute what is not stored again; after filling or loading."""
        if self.bits == 8:
            self.register_buffer("aux", self.panels.sum((1, 4), dtype=torch.int32).flatten(), persistent=False)
            column = _repeat(self.weight_scale, self.splits)
        elif self.wide:
            column = torch.ones_like(self.group_scale, dtype=torch.float32)[:, 0].flatten()[: self.outputs]
        else:
            column = self.channel_scale
        if self.int8_out:
            column = column / _repeat(self.out_scale, self.splits)
        padded = column.new_zeros(self.panels.shape[0] * PANEL)
        padded[: self.outputs] = column
        self.register_buffer("column", padded, persistent=False)

    def forward(self, x: Tensor, row_scale: Tensor, add_to: Tensor | None = None) -> Tensor:
        """x int8 (…, K) (or (…, 2, K) if wide) to int8 or fp32 (…, N), or added to `add_to` in place."""
        arguments = (x, self.panels, self.second, self.column, row_scale, self.outputs, self.wide)
        if add_to is not None:
            (gemm_int8_add if self.bits == 8 else gemm_int4_add)(*arguments, add_to)
            return add_to
        if self.int8_out:
            out: Tensor = (gemm_int8_quantized if self.bits == 8 else gemm_int4_quantized)(*arguments)
        else:
            out = (gemm_int8 if self.bits == 8 else gemm_int4)(*arguments)
        return out


def channel_scales(w: Tensor) -> Tensor:
    """The first level of W4A8: max|W| / 127 of each output, fp32."""
    return scale_of(w.abs().amax(1))


def _panel_scales(scale: Tensor) -> Tensor:
    """(N, K/group) to (N/64, K/group, 64), padded with zeros."""
    n, groups = scale.shape
    padded = scale.new_zeros(-(-n // PANEL) * PANEL, groups)
    padded[:n] = scale
    return padded.reshape(-1, PANEL, groups).transpose(1, 2)


def _repeat(values: Tensor, splits: Sequence[int]) -> Tensor:
    """One value a split to one value an output."""
    return torch.cat([v.expand(n) for v, n in zip(values, splits)])


def expand_runs(values: Tensor, ends: Tensor, width: int) -> Tensor:
    """A value (or row) a run of channels to one a channel; `ends` (runs,) are where they end, the last at `width`."""
    channels = torch.arange(width, device=ends.device, dtype=ends.dtype)
    runs = torch.searchsorted(ends, channels, right=True).clamp(max=values.shape[0] - 1)
    return values[runs]
