"""What a formula takes (`OpSpec`) and gives (`Cost`): shapes in, work and traffic out, nothing measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

__all__ = ["DTYPE_BYTES", "Cost", "OpSpec", "TensorSpec", "op"]

DTYPE_BYTES: dict[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "complex64": 8, "complex128": 16,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
    "uint16": 2, "uint32": 4, "uint64": 8, "qint8": 1, "quint8": 1, "qint32": 4,
}  # fmt: skip


class TensorSpec(NamedTuple):
    """Shape, dtype name and strides (in elements; empty means contiguous) of one tensor."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    stride: tuple[int, ...] = ()

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of the elements themselves: an expanded dimension (stride 0) is counted once."""
        if 0 not in self.stride:
            return self.numel * self.itemsize
        return prod(n for n, s in zip(self.shape, self.stride) if s != 0) * self.itemsize

    @property
    def contiguous(self) -> bool:
        """Row-major without gaps (dimensions of size 1 may have any stride)."""
        if not self.stride:
            return True
        expected = 1
        for n, s in zip(reversed(self.shape), reversed(self.stride)):
            if n != 1 and s != expected:
                return False
            expected *= n
        return True


class OpSpec(NamedTuple):
    """One op as it was traced: name without overload, tensors in the order of the schema, other arguments by name.

    `threads` and `lanes` say what it is to run on, where the algorithm depends on it: `lanes` are fp32 elements of a
    vector of oneDNN's kernels, 16 (AVX-512, and where nothing is known) or 8 (AVX2).
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attrs: Mapping[str, Any]
    threads: int = 1
    lanes: int = 16

    def attr(self, name: str, default: Any = None) -> Any:
        """The argument called `name`, or `default` where the call left it out."""
        value = self.attrs.get(name)
        return default if value is None else value


@dataclass(frozen=True, slots=True)
class Cost:
    """What one op costs on any machine.

    Attributes:
        flops: floating-point (or integer) operations that the result needs; one multiply-add is 2. Exact.
        kind: the class of algorithm that runs it, for example ``gemm`` or ``conv_direct``; time constants are
            fitted one set a kind.
        work: operations that the hardware really issues: `flops` padded to the micro-kernel. None means `flops`.
            Priced at the peak of `unit` times an efficiency where a device has no fitted constants for `kind`.
        unit: the execution unit, ``fp32``, ``bf16``, ``fp16``, ``int8``, ``fp64``; empty takes it from the inputs.
        terms: features of the fitted time model of `kind` (name to count); seconds a unit are fitted.
            Empty means ``{"work": work}``.
        read: bytes that are read of each input, in the order of the inputs; None means all of each.
        write: bytes that are written of each output; None means all of each. A view writes (0, ...).
        workspace: bytes that the op takes from torch's allocator while it runs and gives back at its end.
        scratch: bytes that the op's library takes outside torch's allocator (oneDNN, MKL): in RSS, not in live.
        calls: kernels launched on a GPU.
    """

    flops: int
    kind: str
    work: float | None = None
    unit: str = ""
    terms: Mapping[str, float] = field(default_factory=dict)
    read: Sequence[int] | None = None
    write: Sequence[int] | None = None
    workspace: int = 0
    scratch: int = 0
    calls: int = 1

    def bytes_read(self, op: OpSpec) -> tuple[int, ...]:
        """Bytes read of each input of `op`."""
        return tuple(t.nbytes for t in op.inputs) if self.read is None else tuple(self.read)

    def bytes_written(self, op: OpSpec) -> tuple[int, ...]:
        """Bytes written of each output of `op`."""
        return tuple(t.nbytes for t in op.outputs) if self.write is None else tuple(self.write)


def op(
    name: str,
    inputs: Sequence[Sequence[int] | TensorSpec],
    outputs: Sequence[Sequence[int] | TensorSpec],
    threads: int = 1,
    dtype: str = "float32",
    lanes: int = 16,
    **attrs: Any,
) -> OpSpec:
    """An `OpSpec` from bare shapes, for tests, doctests and people.

    >>> op("aten::mm", [(2, 3), (3, 4)], [(2, 4)]).inputs[1].nbytes
    48
    """

    def spec(t: Sequence[int] | TensorSpec) -> TensorSpec:
        return t if isinstance(t, TensorSpec) else TensorSpec(tuple(t), dtype)

    return OpSpec(name, tuple(map(spec, inputs)), tuple(map(spec, outputs)), attrs, threads, lanes)
