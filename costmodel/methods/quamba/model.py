"""A quantized language model: embedding, blocks, head; prefill, generation, its cache, its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import FileError
from ...kernels.linear_f16 import embed_rows, linear_f16, pack_f16
from ...kernels.pages import place_buffers
from ...kernels.panels import PANEL
from ...kernels.rms_norm import rms_norm_quantize, rms_norm_split
from .calibration import LayerStatistics
from .floats import FloatModel
from .linear import QuantizedLinear
from .mamba1 import QuantizedMamba1
from .mamba2 import QuantizedMamba2
from .quantizer import int8, scale_of
from .recipe import Recipe, Sizes

__all__ = ["VERSION", "GenerationCache", "LanguageOutput", "QuantizedMamba", "load", "save"]

VERSION = 1  # of the file format: raised whenever a tensor changes its name, layout or meaning


class GenerationCache(NamedTuple):
    """The states of all blocks, updated in place; constant in the length of the context.

    Attributes:
        conv: last K - 1 inputs of each convolution, int8 or fp16 (B, K-1, channels).
        ssm: recurrent states, Mamba-1 (B, D/16, N, 16), Mamba-2 (B, H, P, N), fp32, fp16 or int8.
    """

    conv: tuple[Tensor, ...]
    ssm: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.conv, *self.ssm))


class LanguageOutput(NamedTuple):
    """Logits fp32 (B, L, V) and the cache after these tokens, if one was asked for."""

    logits: Tensor
    cache_params: GenerationCache | None


class QuantizedMamba(nn.Module):
    """Quantized Mamba or Mamba-2, called as its `transformers` original: ``model(input_ids, cache=…)``.

    Args:
        sizes, recipe: dimensions and choices.
        like: a tensor on the device (or in the fake mode) to build on; the weights are zeros until filled or loaded.
    """

    table: Tensor
    table_scale: Tensor
    head_weight: Tensor
    head_input_scale: Tensor
    norm: Tensor
    norm32: Tensor

    def __init__(self, sizes: Sizes, recipe: Recipe, like: Tensor) -> None:
        super().__init__()
        self.sizes, self.recipe = sizes, recipe
        v, d = sizes.vocab, sizes.hidden
        bits = recipe.embedding_bits
        panels = (-(-v // PANEL), d, PANEL)
        shape, dtype = {16: (panels, torch.float16), 8: ((v, d), torch.int8), 4: ((v, d // 2), torch.uint8)}[bits]
        self.register_buffer("table", like.new_zeros(shape, dtype=dtype))
        if bits < 16:
            self.register_buffer("table_scale", like.new_zeros(v, dtype=torch.float32))
        kind: Any = QuantizedMamba2 if sizes.is_mamba2 else QuantizedMamba1
        self.blocks = nn.ModuleList([kind(sizes, block, like) for block in recipe.blocks])
        self.register_buffer("norm", like.new_ones(d, dtype=torch.float16))
        self.head: QuantizedLinear | None = None
        if recipe.head_bits < 16:
            self.head = QuantizedLinear([v], d, recipe.head_bits, recipe.head_wide, False, like, recipe.blocks[0].group)
            if not recipe.head_wide:
                self.register_buffer("head_input_scale", like.new_ones(1))
        elif not sizes.tied or bits != 16:
            self.register_buffer("head_weight", like.new_zeros(panels, dtype=torch.float16))
        self.derive()

    def fill_ends(self, model: FloatModel, seen: LayerStatistics, head: tuple[Tensor, Tensor] | None = None) -> None:
        """Embedding, final norm and head; `head` takes 4-bit values and scales that GPTQ has found."""
        bits = self.recipe.embedding_bits
        if bits == 16:
            self.table.copy_(pack_f16(model.embedding))
        else:
            levels = 127.0 if bits == 8 else 7.0
            scale = scale_of(model.embedding.abs().amax(1), levels)
            self.table_scale.copy_(scale)
            q = int8(model.embedding, scale[:, None])
            self.table.copy_(q if bits == 8 else _pack_nibbles(q))
        self.norm.copy_(model.norm)
        if self.head is not None:
            self.head.fill(model.head, quantized=head)
            if not self.recipe.head_wide:
                self.head_input_scale.copy_(scale_of(seen.top("input")))
        elif "head_weight" in self._buffers:
            self.head_weight.copy_(pack_f16(model.head))
        self.derive()

    def derive(self) -> None:
        """Compute what is not stored again; after filling or loading."""
        for block in self.blocks:
            block.derive()  # type: ignore[operator]  # our blocks
        if self.head is not None:
            self.head.derive()
        self.register_buffer("norm32", self.norm.float(), persistent=False)
        if self.recipe.embedding_bits == 16:
            self.register_buffer("table_scale", self.norm32.new_ones(1), persistent=False)

    def init_cache(self, batch: int, device: torch.device | str | None = None) -> GenerationCache:
        """Empty states for `batch` sequences."""
        pairs = [block.init_state(batch) for block in self.blocks]  # type: ignore[operator]
        return GenerationCache(tuple(c.to(device) for c, _ in pairs), tuple(s.to(device) for _, s in pairs))

    def forward(
        self,
        input_ids: Tensor,
        cache: GenerationCache | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> LanguageOutput:
        """Next-token logits.

        Args:
            input_ids: (B, L) int64; L tokens after those that `cache` has seen.
            cache: states before these tokens, updated in place; None starts from nothing.
            use_cache: return the states also where no cache was given.
            logits_to_keep: logits of only that many last tokens (0: all), as in `transformers`.
        """
        states = self.init_cache(input_ids.shape[0]) if cache is None else cache
        hidden = embed_rows(input_ids, self.table, self.table_scale)
        batch, length, d = hidden.shape
        if length == 1:
            flat = hidden.view(batch, d)
            for block, conv, ssm in zip(self.blocks, *states):
                block.step(flat, conv, ssm)  # type: ignore[operator]
        else:
            for block, conv, ssm in zip(self.blocks, *states):
                block(hidden, conv, ssm)
        logits = self._logits(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        return LanguageOutput(logits, states if use_cache or cache is not None else None)

    def _logits(self, hidden: Tensor) -> Tensor:
        eps, norm = self.sizes.eps, self.norm32
        if self.head is None:
            weight = self._buffers.get("head_weight", self.table)
            normed = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps) * norm
            out: Tensor = linear_f16(normed, weight, self.sizes.vocab)
            return out
        if self.recipe.head_wide:
            q, row = rms_norm_split(hidden, norm, eps)
        else:
            q, row = rms_norm_quantize(hidden, norm, self.head_input_scale, eps), self.head_input_scale
        logits: Tensor = self.head(q, row)
        return logits

    @torch.no_grad()
    def generate(self, input_ids: Tensor, max_new_tokens: int) -> Tensor:
        """Greedy continuation (B, L + max_new_tokens)."""
        cache = self.init_cache(input_ids.shape[0])
        tokens = [input_ids]
        logits = self(input_ids, cache, logits_to_keep=1).logits
        for _ in range(max_new_tokens):
            tokens.append(logits[:, -1].argmax(-1, keepdim=True))
            logits = self(tokens[-1], cache).logits
        return torch.cat(tokens, 1)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `nn.Module`; derived tensors are computed again."""
        result = super().load_state_dict(state_dict, strict, assign)
        self.derive()
        return result


def _pack_nibbles(q: Tensor) -> Tensor:
    """int8 in -8 … 7 (N, K) to q + 8 in bytes (N, K/2), the first of a pair in the low nibble."""
    shifted = (q.clamp(-8, 7) + 8).to(torch.uint8)
    return shifted[:, 0::2] | (shifted[:, 1::2] << 4)


def save(model: QuantizedMamba, path: str | Path) -> None:
    """Write weights and recipe as one safetensors file."""
    from safetensors.torch import save_file

    metadata = {
        "costmodel": json.dumps(
            {"version": VERSION, "sizes": asdict(model.sizes), "recipe": model.recipe.as_dict()}, default=str
        )
    }
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, str(path), metadata)


def load(path: str | Path) -> QuantizedMamba:
    """Read a file of `save`.

    Raises:
        FileError: not such a file, of another version, or with other tensors than its recipe needs.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            metadata = (file.metadata() or {}).get("costmodel")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise FileError(path, "", f"not a safetensors file ({error})") from error
    if metadata is None:
        raise FileError(path, "costmodel", "no recipe in its metadata: not a model that this package has quantized")
    head = json.loads(metadata)
    if head["version"] != VERSION:
        raise FileError(
            path, "version", f"is {head['version']}, this package reads {VERSION}: quantize the model again"
        )
    low, high = (float(v) for v in head["sizes"]["limit"])
    model = QuantizedMamba(
        Sizes(**head["sizes"] | {"limit": (low, high)}), Recipe.from_dict(head["recipe"]), torch.empty(0)
    )
    wanted = {name: (t.shape, t.dtype) for name, t in model.state_dict().items()}
    given = {name: (t.shape, t.dtype) for name, t in tensors.items()}
    different = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if different:
        raise FileError(path, different[0], f"{len(different)} tensors do not match the recipe in the file")
    model.load_state_dict(tensors)
    place_buffers(model)
    return model.eval()
