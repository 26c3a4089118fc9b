"""What is quantized how: the choices that a quantized model is built from, saved with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from ...errors import CostmodelError

__all__ = ["BlockRecipe", "Recipe", "Sizes", "State"]

State = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a Mamba or Mamba-2 language model.

    Attributes:
        vocab, hidden, layers, states, taps: V, d, blocks, N, K.
        width: D, inner channels.
        rank: rank of dt (Mamba-1; 0 in Mamba-2).
        heads, groups: H and G (Mamba-2; 0 in Mamba-1).
        tied: the head is the embedding.
        eps: of every norm.
        limit: bounds of dt (Mamba-2).
    """

    vocab: int
    hidden: int
    layers: int
    width: int
    states: int
    taps: int
    rank: int
    heads: int
    groups: int
    tied: bool
    eps: float
    limit: tuple[float, float]

    @property
    def is_mamba2(self) -> bool:
        return self.heads > 0

    @property
    def padded_rank(self) -> int:
        """Rank of dt rounded up to a vector: x_proj has zero rows there."""
        return -(-self.rank // 16) * 16

    @property
    def conv_width(self) -> int:
        """Channels of the convolution: x, and in Mamba-2 also B and C."""
        return self.width + 2 * self.groups * self.states

    @classmethod
    def of(cls, config: Any, tied: bool) -> Sizes:
        """From a `transformers` configuration."""
        common = {
            "vocab": config.vocab_size, "hidden": config.hidden_size, "layers": config.num_hidden_layers,
            "width": int(config.expand * config.hidden_size), "states": config.state_size, "taps": config.conv_kernel,
            "tied": tied, "eps": float(config.layer_norm_epsilon),
        }  # fmt: skip
        if config.model_type == "mamba":
            return cls(**common, rank=int(config.time_step_rank), heads=0, groups=0, limit=(0.0, float("inf")))
        low, high = map(float, config.time_step_limit)
        return cls(**common, rank=0, heads=config.num_heads, groups=config.n_groups, limit=(low, high))


@dataclass(frozen=True)
class BlockRecipe:
    """One block.

    Attributes:
        weight_bits: 8 or 4, of in_proj and out_proj (x_proj and dt_proj are int8).
        wide: activations are fp32 between GEMMs and 16 bits in them (A16), else static int8 (A8).
        rotate: Hadamard transform of y, folded into out_proj.
        state: type of the recurrent state.
        group: weights of K that share a 4-bit scale.
        folded: norm weights are inside the linears.
        clusters: (head groups, channel groups) of the scales of x and of the state.
    """

    weight_bits: int = 8
    wide: bool = False
    rotate: bool = True
    state: State = "float16"
    group: int = 128
    folded: bool = False
    clusters: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.weight_bits not in (4, 8):
            raise CostmodelError(f"weights of {self.weight_bits} bits: there are 4 and 8")

    @property
    def state_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}[self.state]

    @property
    def conv_dtype(self) -> torch.dtype:
        return torch.float16 if self.wide else torch.int8


@dataclass(frozen=True)
class Recipe:
    """The whole model: its method's name, blocks, and the bits of embedding and head (16: fp16)."""

    method: str
    blocks: tuple[BlockRecipe, ...]
    embedding_bits: int = 16
    head_bits: int = 16
    head_wide: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        blocks = tuple(BlockRecipe(**b | {"clusters": tuple(b["clusters"])}) for b in values["blocks"])
        return cls(**values | {"blocks": blocks})
