"""``model.onnx``: an ONNX file without the Python that made it, run operator by operator in torch.

The file is data and is read as such: external weights are never opened (their shapes are what costs), and nothing in it
is executed. Shapes and constants are computed once, beside the model, as a runtime would fold them; what is traced is
the rest. An operator that has no torch form here is a gap: where the file or ONNX's shape inference says the shape of
its results, it becomes one op ``onnx::Name`` without a price, which every report lists; else the file is refused by
name.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CostmodelError, FileError, MissingExtra, UnknownName
from .inputs import Loaded, Wanted
from .onnx_ops import DTYPES, tensor
from .onnx_shapes import OPS

__all__ = ["build"]

_MOST_FOLDED = 1 << 16  # elements up to which an integer or scalar initialiser is a constant and not a weight
_MOST_BYTES = 1 << 40  # of weights that are only declared
_CONTROL = {"If", "Loop", "Scan", "SequenceMap"}
_gaps: dict[str, Any] = {}
_library: list[torch.library.Library] = []


def build(name: str, options: dict[str, Any], wanted: Wanted) -> Loaded:
    """The model in the file, with example inputs; symbolic sizes are the options' or what `wanted` says.

    A size that the file leaves open is set by its name, as in ``net.onnx,height=320``; an open first dimension is
    the batch, another the tokens.

    Raises:
        MissingExtra: onnx is not installed.
        FileError: not a model, damaged, or with an operator whose results have no known shape; names it.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtra("onnx", "onnx") from error
    path = Path(name)
    model = _read(onnx, path)
    graph = model.graph
    weights = {i.name: i for i in graph.initializer}
    opened = [i for i in graph.input if i.name not in weights]
    sizes = _Open(name, options, wanted)
    inputs = tuple(sizes.example(i) for i in opened)
    sizes.all_used()
    module = OnnxModule(onnx, path, model, [i.name for i in opened])
    if wanted.device == "meta":
        module = module.to("meta")
    producer = " ".join(filter(None, (model.producer_name, model.producer_version))) or "an unknown tool"
    task = (
        "image"
        if inputs and inputs[0].dim() == 4
        else "text"
        if inputs and not inputs[0].is_floating_point()
        else "other"
    )
    return Loaded(name, module, inputs, {}, task, f"onnx {onnx.__version__}, written by {producer}")


def _read(onnx: Any, path: Path) -> Any:
    """The model with the shapes that ONNX can infer; external weights stay closed."""
    if not path.is_file():
        raise FileError(path, "", "no such file")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors are no one class
        raise FileError(path, "", f"is not an ONNX model ({_line(error)})") from error
    if not model.graph.node or not model.graph.output:
        raise FileError(path, "graph", "has no nodes or no outputs: not a model")
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:
            raise FileError(path, "functions", f"cannot be inlined ({_line(error)})") from error
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception:  # too large to pass through it, or an operator that it does not know: shapes come from torch
        return model


class _Open:
    """Sizes that the file leaves open, and example inputs of them."""

    def __init__(self, name: str, options: dict[str, Any], wanted: Wanted) -> None:
        self.name, self.options, self.wanted = name, options, wanted
        self.names: set[str] = set()

    def example(self, declared: Any) -> Tensor:
        """A tensor for one input of the graph: noise, token ids, or ones."""
        kind = declared.type.tensor_type
        if kind.elem_type not in DTYPES:
            raise FileError(self.name, declared.name, "is not a tensor of numbers")
        dtype = DTYPES[kind.elem_type]
        shape = [self._size(declared.name, d, dim, len(kind.shape.dim)) for d, dim in enumerate(kind.shape.dim)]
        device = self.wanted.input_device
        if dtype.is_floating_point:
            return torch.randn(shape, dtype=dtype, device=device)
        return torch.ones(shape, dtype=dtype, device=device)

    def _size(self, of: str, position: int, dim: Any, rank: int) -> int:
        wanted = self.wanted
        if dim.HasField("dim_value") and dim.dim_value > 0:
            if position == 0 and wanted.batch not in (1, dim.dim_value) and rank > 1:
                raise CostmodelError(f"{self.name} was exported with batch {dim.dim_value}: leave --batch out")
            return int(dim.dim_value)
        symbol = dim.dim_param or f"{of}_{position}"
        self.names.add(symbol)
        if symbol in self.options:
            return int(self.options[symbol])
        if position == 0 or re.search(r"batch|^n$", symbol, re.IGNORECASE):
            return wanted.batch
        if wanted.input_size is not None and rank == len(wanted.input_size) + 1:
            return wanted.input_size[position - 1]
        if re.search(r"past|cache", symbol, re.IGNORECASE):
            return wanted.seq or 128
        if rank == 4:
            return 3 if position == 1 else 224
        return 1 if wanted.mode == "decode" else wanted.seq or 128

    def all_used(self) -> None:
        for key in self.options:
            if key not in self.names:
                raise UnknownName(f"open size of {self.name}", key, self.names)


class OnnxModule(nn.Module):
    """The graph of a file, run node by node; intermediate results are dropped after their last use."""

    def __init__(self, onnx: Any, path: Path, model: Any, inputs: list[str]) -> None:
        super().__init__()
        graph = model.graph
        self._inputs, self._outputs = inputs, [o.name for o in graph.output]
        self._constants: dict[str, Any] = {}
        self._weights: dict[str, str] = {}
        for initializer in graph.initializer:
            self._initialise(onnx, path, initializer)
        self._nodes = [_node(onnx, node) for node in graph.node]
        shapes = {v.name: v for v in (*graph.value_info, *graph.output)}
        self._check(path, shapes)
        self._last = {n: k for k, (_, _, ins, _) in enumerate(self._nodes) for n in ins}
        self._last |= dict.fromkeys(self._outputs, len(self._nodes))

    def _initialise(self, onnx: Any, path: Path, initializer: Any) -> None:
        """A weight, or a constant where it is small and whole: shapes, axes, indices."""
        dims, kind = list(initializer.dims), initializer.data_type
        if kind not in DTYPES:
            raise FileError(path, initializer.name, f"has data type {kind}, which torch does not have")
        dtype, count = DTYPES[kind], math.prod(dims)
        external = initializer.data_location == 1
        if count * dtype.itemsize > _MOST_BYTES or any(d < 0 for d in dims):
            raise FileError(path, initializer.name, f"declares {dims}, which is no size of a weight")
        value: Tensor | None = None
        if not external:
            try:
                array = np.array(onnx.numpy_helper.to_array(initializer))
            except Exception as error:
                raise FileError(path, initializer.name, f"cannot be read ({_line(error)})") from error
            if array.size <= 1 or (not dtype.is_floating_point and array.size <= _MOST_FOLDED):
                self._constants[initializer.name] = array
                return
            value = torch.from_numpy(array).to(dtype)
        if value is None:  # its bytes are in another file, which is left closed: only its shape costs
            value = torch.empty(dims, dtype=dtype, device="meta")
        attribute = f"w{len(self._weights)}"
        self._weights[initializer.name] = attribute
        if dtype.is_floating_point:
            self.register_parameter(attribute, nn.Parameter(value))
        else:
            self.register_buffer(attribute, value)

    def _check(self, path: Path, shapes: dict[str, Any]) -> None:
        """Refuse control flow, and operators without a torch form whose results have no known shape."""
        self._gap_shapes: dict[str, tuple[list[int], torch.dtype]] = {}
        missing: list[str] = []
        for kind, _, _, outputs in self._nodes:
            if kind in _CONTROL:
                raise FileError(path, kind, "is control flow: which nodes run depends on data; export a straight graph")
            if kind in OPS or kind == "Constant":
                continue
            for output in filter(None, outputs):
                declared = shapes.get(output)
                dims = declared.type.tensor_type.shape.dim if declared is not None else []
                sizes = [int(d.dim_value) for d in dims]
                if declared is None or not all(sizes) or declared.type.tensor_type.elem_type not in DTYPES:
                    missing.append(kind)
                    break
                self._gap_shapes[output] = sizes, DTYPES[declared.type.tensor_type.elem_type]
        if missing:
            listed = ", ".join(sorted(set(missing)))
            raise FileError(
                path, listed, "has no torch form here and no known shape; export with fixed shapes to list it as a gap"
            )

    def forward(self, *inputs: Tensor) -> Any:
        held: dict[str, Any] = dict(zip(self._inputs, inputs)) | self._constants
        for k, (kind, attributes, names, outputs) in enumerate(self._nodes):
            values = [self._value(held, n) for n in names]
            results = self._run(kind, attributes, values, outputs)
            held.update(zip(outputs, results))
            del values, results
            for n in {*names, *outputs}:
                if self._last.get(n, -1) <= k and n not in self._constants:
                    held.pop(n, None)
        found = tuple(tensor(self._value(held, n)) for n in self._outputs)
        return found[0] if len(found) == 1 else found

    def _value(self, held: dict[str, Any], name: str) -> Any:
        if not name:
            return None
        return getattr(self, self._weights[name]) if name in self._weights else held[name]

    def _run(self, kind: str, attributes: dict[str, Any], values: list[Any], outputs: list[str]) -> tuple[Any, ...]:
        if kind == "Constant":
            return (attributes["value"],)
        function = OPS.get(kind)
        if function is None:
            given = [v for v in values if isinstance(v, Tensor)]
            return tuple(_gap(kind)(given, *self._gap_shapes[o]) for o in outputs)
        while values and values[-1] is None:
            values.pop()
        known = kind not in {"Shape", "Size"} and not any(isinstance(v, Tensor) for v in values)
        results = _fold(function, attributes, values) if known else function(attributes, *values)
        return results if isinstance(results, tuple) else (results,)


def _fold(function: Any, attributes: dict[str, Any], values: list[Any]) -> Any:
    """A node of constants alone is computed beside the model, with torch's modes off: a runtime folds it."""
    with torch._C._DisableTorchDispatch(), torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
        results = function(attributes, *values)
        many = results if isinstance(results, tuple) else (results,)
        arrays = tuple(r.numpy() if isinstance(r, Tensor) else r for r in many)
    return arrays if isinstance(results, tuple) else arrays[0]


def _node(onnx: Any, node: Any) -> tuple[str, dict[str, Any], list[str], list[str]]:
    """(operator, attributes, inputs, outputs) of a node."""
    kind = str(node.op_type)  # bytes where it is no text
    attributes: dict[str, Any] = {"outputs": len(node.output), "operator": kind}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif hasattr(value, "data_type"):
            try:
                value = np.array(onnx.numpy_helper.to_array(value))
            except Exception as error:
                raise CostmodelError(f"{attribute.name} of a node {kind!r} cannot be read ({_line(error)})") from error
        attributes[attribute.name.removeprefix("value_") if node.op_type == "Constant" else attribute.name] = value
    if node.op_type == "Constant":
        given = [v for k, v in attributes.items() if k not in ("outputs", "operator")]
        attributes["value"] = np.array(given[0])
        if isinstance(given[0], float) or (isinstance(given[0], list) and given[0] and isinstance(given[0][0], float)):
            attributes["value"] = attributes["value"].astype(np.float32)
    return kind, attributes, list(node.input), list(node.output)


def _gap(kind: str) -> Any:
    """An op ``onnx::Kind`` of which only the shape of its result is known."""
    if kind not in _gaps:
        if not re.fullmatch(r"[A-Za-z]\w*", kind):
            raise CostmodelError(f"{kind!r} is not the name of an operator")
        if not _library:
            _library.append(torch.library.Library("onnx", "FRAGMENT"))
        _library[0].define(f"{kind}(Tensor[] inputs, SymInt[] shape, ScalarType dtype) -> Tensor")

        def shape(inputs: list[Tensor], shape: list[int], dtype: torch.dtype) -> Tensor:  # noqa: ARG001
            return torch.empty(shape, dtype=dtype)

        torch.library.register_fake(f"onnx::{kind}", shape, lib=_library[0])
        _gaps[kind] = getattr(torch.ops.onnx, kind)
    return _gaps[kind]


def _line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
