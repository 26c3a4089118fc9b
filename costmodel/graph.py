"""The op graph: columns inside, a networkx view outside, compressed JSON on disk.

Three tables. **Ops** in the order in which they ran: name, phase, module, attributes, input and output tensors.
**Tensors**: a storage, an offset, shape, strides and dtype. **Storages**: bytes, role, birth and death as positions in
the op order. A storage is live during op *k* when ``birth <= k < death``; what existed before the step is born at -1,
what outlives it dies at ``len(graph)``.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CostmodelError, FileError

if TYPE_CHECKING:
    import networkx

__all__ = ["MAX_TRACE_BYTES", "PHASES", "ROLES", "GraphMeta", "OpGraph", "load", "write_atomic"]

SCHEMA = 1
PHASES = ("forward", "backward", "optimizer")
ROLES = ("parameter", "buffer", "input", "gradient", "optimizer_state", "activation", "temporary")
MAX_TRACE_BYTES = 1 << 30
_MAX_STORAGE_BYTES = 1 << 50
_DTYPES = frozenset(
    [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "complex64",
        "complex128",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "bool",
        "uint16",
        "uint32",
        "uint64",
        "qint8",
        "quint8",
        "qint32",
    ]
)


@dataclass(frozen=True)
class GraphMeta:
    """What was traced."""

    model: str = ""
    mode: str = "infer"
    method: str | None = None
    batch: int = 1
    dtype: str = "float32"
    optimizer: str | None = None
    producer: str = ""
    assumed: str = ""  # what the trace takes for granted: sizes and experts that activations decide, inputs left out

    def as_dict(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in self.__dataclass_fields__}


@dataclass(eq=False)
class OpGraph:
    """Ops, tensors and storages of one step, as columns.

    Attributes:
        meta: what was traced.
        op_name, op_phase, op_module: one string an op (phase from `PHASES`; module is the dotted path).
        op_inputs, op_outputs: tensor numbers an op, in the order of the schema.
        op_attrs: the arguments that are not tensors, by name.
        tensor_storage, tensor_offset, tensor_shape, tensor_stride, tensor_dtype: one entry a tensor; offset and
            strides in elements.
        storage_bytes, storage_role, storage_birth, storage_death, storage_name: one entry a storage (name of the
            parameter or buffer, else empty).
    """

    meta: GraphMeta = field(default_factory=GraphMeta)
    op_name: list[str] = field(default_factory=list)
    op_phase: list[str] = field(default_factory=list)
    op_module: list[str] = field(default_factory=list)
    op_inputs: list[tuple[int, ...]] = field(default_factory=list)
    op_outputs: list[tuple[int, ...]] = field(default_factory=list)
    op_attrs: list[Mapping[str, Any]] = field(default_factory=list)
    tensor_storage: list[int] = field(default_factory=list)
    tensor_offset: list[int] = field(default_factory=list)
    tensor_shape: list[tuple[int, ...]] = field(default_factory=list)
    tensor_stride: list[tuple[int, ...]] = field(default_factory=list)
    tensor_dtype: list[str] = field(default_factory=list)
    storage_bytes: list[int] = field(default_factory=list)
    storage_role: list[str] = field(default_factory=list)
    storage_birth: list[int] = field(default_factory=list)
    storage_death: list[int] = field(default_factory=list)
    storage_name: list[str] = field(default_factory=list)
    file = ""  # that it was loaded from; not a column

    def __len__(self) -> int:
        return len(self.op_name)

    def __repr__(self) -> str:
        return (
            f"OpGraph({self.meta.model or 'model'}, {self.meta.mode}, {len(self):,} ops, "
            f"{len(self.tensor_storage):,} tensors, {len(self.storage_bytes):,} storages)"
        )

    @cached_property
    def nx(self) -> networkx.DiGraph:
        """The graph for people: a node an op (attributes ``op``, ``phase``, ``module``), an edge where one op reads
        what another wrote (attributes ``bytes`` and ``tensors``). Estimates add ``latency_s``, ``flops``, ``bytes``
        and ``bound`` to each node."""
        import networkx

        graph = networkx.DiGraph(**self.meta.as_dict())
        writer: dict[int, int] = {}  # storage -> the op that wrote it last
        maker: dict[int, int] = {}  # tensor -> the op that returned it last (a view is written by nobody)
        for k, (name, phase, module) in enumerate(zip(self.op_name, self.op_phase, self.op_module)):
            graph.add_node(k, op=name, phase=phase, module=module)
            edges: dict[int, list[int]] = {}
            for t in self.op_inputs[k]:
                source = maker.get(t, writer.get(self.tensor_storage[t]))
                if source is not None:
                    edges.setdefault(source, []).append(t)
            for source, tensors in edges.items():
                graph.add_edge(source, k, bytes=sum(map(self.tensor_bytes, tensors)), tensors=tensors)
            for t in self.op_outputs[k]:
                writer[self.tensor_storage[t]] = maker[t] = k
        return graph

    def tensor_bytes(self, tensor: int) -> int:
        """Bytes of the elements of a tensor (an expanded dimension counts once)."""
        from .costs.spec import TensorSpec

        return TensorSpec(self.tensor_shape[tensor], self.tensor_dtype[tensor], self.tensor_stride[tensor]).nbytes

    def check(self) -> OpGraph:
        """Raise `CostmodelError` at the first value that cannot be; else return the graph."""
        for key, problem in self._problems():
            raise CostmodelError(f"{key}: {problem}")
        return self

    def _problems(self) -> Iterator[tuple[str, str]]:
        n, n_tensors, n_storages = len(self), len(self.tensor_storage), len(self.storage_bytes)
        for column, length in self._columns():
            have = len(getattr(self, column))
            if have != length:
                yield column, f"has {have} entries where the table has {length}"
                return
        for s in range(n_storages):
            if not 0 <= self.storage_bytes[s] <= _MAX_STORAGE_BYTES:
                yield f"storage_bytes[{s}]", f"{self.storage_bytes[s]} bytes is not a size (0 to 2^50)"
            if self.storage_role[s] not in ROLES:
                yield f"storage_role[{s}]", f"{self.storage_role[s]!r} is none of {', '.join(ROLES)}"
            if not -1 <= self.storage_birth[s] <= self.storage_death[s] <= n or self.storage_birth[s] >= max(n, 1):
                yield (
                    f"storage_birth[{s}]",
                    f"lives from {self.storage_birth[s]} to {self.storage_death[s]}, outside -1 to {n} or reversed",
                )
        for t in range(n_tensors):
            s = self.tensor_storage[t]
            if not 0 <= s < n_storages:
                yield f"tensor_storage[{t}]", f"storage {s} does not exist (there are {n_storages})"
                continue
            shape, stride, dtype = self.tensor_shape[t], self.tensor_stride[t], self.tensor_dtype[t]
            if dtype not in _DTYPES:
                yield f"tensor_dtype[{t}]", f"{dtype!r} is not a dtype"
                continue
            if len(shape) != len(stride) or not all(0 <= d <= _MAX_STORAGE_BYTES for d in shape):
                yield f"tensor_shape[{t}]", f"shape {shape} and strides {stride} do not fit"
                continue
            if 0 not in shape:
                from .costs.spec import DTYPE_BYTES

                last = self.tensor_offset[t] + sum((d - 1) * st for d, st in zip(shape, stride))
                if self.tensor_offset[t] < 0 or (last + 1) * DTYPE_BYTES[dtype] > self.storage_bytes[s]:
                    yield (
                        f"tensor_shape[{t}]",
                        f"shape {shape} reaches outside its storage of {self.storage_bytes[s]} bytes",
                    )
        for k in range(n):
            if self.op_phase[k] not in PHASES:
                yield f"op_phase[{k}]", f"{self.op_phase[k]!r} is none of {', '.join(PHASES)}"
            for t in (*self.op_inputs[k], *self.op_outputs[k]):
                if not 0 <= t < n_tensors:
                    yield f"op_inputs[{k}]", f"tensor {t} does not exist (there are {n_tensors})"
                elif (
                    not self.storage_birth[self.tensor_storage[t]]
                    <= k
                    < max(self.storage_death[self.tensor_storage[t]], 0)
                ):
                    yield (
                        f"op_inputs[{k}]",
                        f"tensor {t} is not alive when op {k} ({self.op_name[k]}) uses it",
                    )

    def _columns(self) -> Iterator[tuple[str, int]]:
        for column in self.__dataclass_fields__:
            if column.startswith("op_"):
                yield column, len(self.op_name)
            elif column.startswith("tensor_"):
                yield column, len(self.tensor_storage)
            elif column.startswith("storage_"):
                yield column, len(self.storage_bytes)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the graph as gzip-compressed JSON (``.json.gz``), whole or not at all."""
        document: dict[str, Any] = {"schema": SCHEMA, "kind": "costmodel-trace", "meta": self.meta.as_dict()}
        for column, _ in self._columns():
            values = getattr(self, column)
            # repeated strings, shapes and attributes are stored once: values and indices
            if values and isinstance(values[0], (str, tuple, Mapping)):
                table: dict[str, int] = {}
                index = [table.setdefault(json.dumps(v, sort_keys=True), len(table)) for v in values]
                document[column] = {"values": [json.loads(v) for v in table], "index": index}
            else:
                document[column] = list(values)
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        return write_atomic(path, gzip.compress(text, compresslevel=6, mtime=0))


def write_atomic(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file whole or not at all: to a temporary neighbour first, then renamed.

    A pipe or a device (``/dev/null``, ``/dev/stdout``) is written to: a rename would put a plain file in its place.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if target.exists() and not target.is_file():
            target.write_bytes(data)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        problem = getattr(error, "strerror", None) or str(error)
        raise FileError(target, "", f"cannot be written ({problem}); choose another path") from error
    return target


def read_bounded(path: Path, limit: int = MAX_TRACE_BYTES) -> bytes:
    """A file's bytes, unpacked if gzip, refused past `limit`: an archive cannot fill the memory."""
    try:
        with open(path, "rb") as raw:
            if raw.read(2) != b"\x1f\x8b":
                raw.seek(0)
                data = raw.read(limit + 1)
            else:
                raw.seek(0)
                with gzip.open(raw) as unpacked:
                    data = unpacked.read(limit + 1)
    except FileNotFoundError:
        raise FileError(path, "", "no such file") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: a path with a null byte
        raise FileError(
            path, "", f"cannot be read ({error}); the file is cut off or not a trace, trace again"
        ) from error
    if len(data) > limit:
        raise FileError(path, "", f"holds more than {limit:,} bytes; not a trace of this tool")
    return data


def load(path: str | os.PathLike[str]) -> OpGraph:
    """Read a saved trace; `FileError` names the file, the key and the fix. Nothing in it is ever executed."""
    path = Path(path)
    data = read_bounded(path)
    try:
        document = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise FileError(path, "", f"is not a trace: {error}; write one with `costmodel trace`") from error
    if not isinstance(document, dict) or document.get("kind") != "costmodel-trace":
        raise FileError(path, "kind", "is not a trace of this tool; write one with `costmodel trace`")
    if document.get("schema") != SCHEMA:
        raise FileError(path, "schema", f"is {document.get('schema')!r}, this version reads {SCHEMA}; trace again")
    graph = OpGraph(meta=_read_meta(path, document.get("meta")))
    try:
        for column, _ in OpGraph()._columns():
            setattr(graph, column, _read_column(column, document[column]))
    except KeyError as error:
        raise FileError(path, str(error.args[0]), "is missing; the file is cut off or edited, trace again") from None
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise FileError(path, column, f"cannot be used ({error}); trace again") from None
    for key, problem in graph._problems():
        raise FileError(path, key, f"{problem}; trace again")
    graph.file = os.fspath(path)
    return graph


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    keys = [k for k, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return dict(pairs)


def _read_meta(path: Path, meta: Any) -> GraphMeta:
    known = GraphMeta.__dataclass_fields__
    if not isinstance(meta, dict) or set(meta) - set(known):
        raise FileError(path, "meta", f"must have the keys {', '.join(known)} only; trace again")
    for key, value in meta.items():
        right = isinstance(value, int) and value >= 0 if key == "batch" else value is None or isinstance(value, str)
        if not right or isinstance(value, bool):
            raise FileError(path, f"meta.{key}", f"{value!r} is not usable; trace again")
    return GraphMeta(**meta)


def _integers(values: Iterable[Any]) -> tuple[int, ...]:
    result = tuple(values)
    if any(type(v) is not int for v in result):
        raise TypeError("holds a value that is not an integer")
    return result


def _read_column(column: str, raw: Any) -> list[Any]:
    """One column, its values of the type that the column has."""
    if isinstance(raw, list):
        if not raw:
            return []
        if column in ("tensor_storage", "tensor_offset", "storage_bytes", "storage_birth", "storage_death"):
            return list(_integers(raw))
        raise TypeError("must be an object with 'values' and 'index'")
    values, index = raw["values"], _integers(raw["index"])
    if any(i < 0 for i in index):
        raise ValueError("holds a negative index")
    if column == "op_attrs":
        if not all(isinstance(v, dict) for v in values):
            raise TypeError("holds a value that is not an object")
    elif column in ("op_inputs", "op_outputs", "tensor_shape", "tensor_stride"):
        values = [_integers(v) for v in values]
    elif not all(isinstance(v, str) for v in values):
        raise TypeError("holds a value that is not a string")
    return [values[i] for i in index]
