"""A job: one step of one model as words, so that a fresh process can build, trace and run the same thing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..capture import capture
from ..graph import OpGraph
from ..methods import apply_method
from ..models import Loaded, load_model
from ..models.step import Step, make_step

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """What to run: the command line's options with one meaning everywhere (DESIGN.md §8)."""

    model: str
    mode: str = "infer"
    method: str | None = None
    batch: int = 1
    input_size: str | None = None
    seq: int | None = None
    dtype: str = "float32"
    threads: int = 1
    optimizer: str = "sgd"

    @property
    def name(self) -> str:
        """Short and unique: what a progress bar and a report say."""
        size = self.input_size or (f"seq{self.seq}" if self.seq else "")
        extra = "" if self.optimizer == "sgd" else self.optimizer
        parts = (self.model, self.method or "", self.mode, f"b{self.batch}", size, extra)
        return " ".join(filter(None, parts))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load(self) -> tuple[Loaded, Any]:
        """The model with the method applied, and its inputs."""
        loaded = self._load(self.mode)
        if self.method is None:
            return loaded, loaded.model
        # a decode step reads one token, but a method that calibrates needs a sequence
        inputs = self._load("prefill").inputs if self.mode == "decode" else loaded.inputs
        return loaded, apply_method(self.method, loaded.model, inputs)

    def _load(self, mode: str) -> Loaded:
        return load_model(
            self.model, mode=mode, batch=self.batch, input_size=self.input_size, seq=self.seq, dtype=self.dtype
        )

    def step(self) -> Step:
        """The step on real tensors."""
        loaded, model = self.load()
        return make_step(model, loaded.inputs, mode=self.mode, optimizer=self.optimizer, seq=self.seq)

    def trace(self) -> OpGraph:
        """The op graph of the same step."""
        loaded, model = self.load()
        return capture(
            model,
            loaded.inputs,
            mode=self.mode,
            optimizer=self.optimizer,
            seq=self.seq,
            name=self.model,
            method=self.method,
        )
