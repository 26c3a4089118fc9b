"""A job: one step of one model as words, so that a fresh process can build, trace and run the same thing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..capture import capture
from ..errors import UnknownName
from ..estimate import ALLOCATORS
from ..graph import OpGraph
from ..methods import apply_method
from ..models import Loaded, load_model
from ..models.step import Step, make_step

__all__ = ["LAYOUTS", "Job"]

LAYOUTS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Job:
    """What to run: the command line's options with one meaning everywhere.

    Attributes:
        layout: ``contiguous``, or ``channels_last`` for the weights and inputs of images.
        allocator: ``pinned`` keeps freed memory (`latency.pinned_allocator`); ``default`` is glibc's own.
    """

    model: str
    mode: str = "infer"
    method: str | None = None
    batch: int = 1
    input_size: str | None = None
    seq: int | None = None
    dtype: str = "float32"
    threads: int = 1
    optimizer: str = "sgd"
    layout: str = "contiguous"
    allocator: str = "pinned"

    def __post_init__(self) -> None:
        for what, given, allowed in (("layout", self.layout, LAYOUTS), ("allocator", self.allocator, ALLOCATORS)):
            if given not in allowed:
                raise UnknownName(what, given, allowed)

    @property
    def name(self) -> str:
        """Short and unique: what a progress bar and a report say."""
        size = self.input_size or (f"seq{self.seq}" if self.seq else "")
        optimizer = "" if self.optimizer == "sgd" else self.optimizer
        parts = (self.model, self.method or "", self.mode, f"b{self.batch}", size, optimizer, self.setting)
        return " ".join(filter(None, parts))

    @property
    def setting(self) -> str:
        """What differs from fp32 on one thread, contiguous, with memory kept; empty if nothing does."""
        parts = (
            "" if self.dtype == "float32" else self.dtype,
            "" if self.threads == 1 else f"{self.threads} threads",
            "" if self.layout == "contiguous" else self.layout,
            "" if self.allocator == "pinned" else f"{self.allocator} allocator",
        )
        return ", ".join(filter(None, parts))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load(self, device: str = "cpu") -> tuple[Loaded, Any]:
        """The model with the method applied, and its inputs; on ``meta`` they have shapes only."""
        loaded = self._load(self.mode, device)
        if self.method is None:
            return loaded, loaded.model
        # a decode step reads one token, but a method that calibrates needs a sequence
        inputs = self._load("prefill", device).inputs if self.mode == "decode" else loaded.inputs
        return loaded, apply_method(self.method, loaded.model, inputs)

    def _load(self, mode: str, device: str) -> Loaded:
        loaded = load_model(
            self.model,
            mode=mode,
            batch=self.batch,
            input_size=self.input_size,
            seq=self.seq,
            dtype=self.dtype,
            device=device,
        )
        return loaded if self.layout == "contiguous" else _channels_last(loaded)

    def step(self) -> Step:
        """The step on real tensors."""
        loaded, model = self.load()
        return make_step(model, loaded.inputs, mode=self.mode, optimizer=self.optimizer, seq=self.seq)

    def trace(self, device: str = "cpu") -> OpGraph:
        """The op graph of the same step."""
        loaded, model = self.load(device)
        return capture(
            model,
            loaded.inputs,
            mode=self.mode,
            optimizer=self.optimizer,
            seq=self.seq,
            name=self.model,
            method=self.method,
            assumed=loaded.assumed,
        )


def _channels_last(loaded: Loaded) -> Loaded:
    def convert(leaf: Any) -> Any:
        images = isinstance(leaf, Tensor) and leaf.dim() == 4
        return leaf.contiguous(memory_format=torch.channels_last) if images else leaf

    args, kwargs = pytree.tree_map(convert, (loaded.args, loaded.kwargs))
    model = loaded.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return replace(loaded, model=model, args=args, kwargs=kwargs)
