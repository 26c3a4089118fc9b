"""Broken and hostile ONNX files: bytes of protobuf, and fields of the message replaced by what does not belong."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .mutate import mutate_bytes

__all__ = ["make_onnx", "networks"]

_OPS = (
    "Relu", "Conv", "Gemm", "MatMul", "Add", "Reshape", "Transpose", "Concat", "Softmax", "Gather", "If", "Loop",
    "ConstantOfShape", "Range", "Expand", "Tile", "Pad", "Resize", "Einsum", "LSTM", "TopK", "NonZero",
    "PyOp", "aten::from_file", "__import__('os')", "",
)  # fmt: skip
_TEXTS = (
    "",
    "x",
    "../../../etc/passwd",
    "/dev/zero",
    "\0",
    "a" * 10_000,
    "ai.onnx.ml",
    "com.microsoft",
    "y",
    "w0",
    "{}",
)
_NUMBERS = (0, 1, -1, 2, 7, 255, 1 << 31, -(1 << 31), 1 << 40, (1 << 63) - 1, -(1 << 63))
_FLOATS = (0.0, -1.0, 1e38, float("nan"), float("inf"), 1e-45)


# Inputs that are right, to start from


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, Any]) -> bytes:
    named = [numpy_helper.from_array(w, name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, named)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="fuzz")
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


@cache
def networks() -> tuple[bytes, ...]:
    """Three small files: convolutions, a perceptron with an open batch, and tokens through a gather and a matmul."""
    rng = np.random.default_rng(0)

    def w(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    node = helper.make_node
    conv = _model(
        [
            node("Conv", ["x", "w0", "b0"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Relu", ["c"], ["r"]),
            node("GlobalAveragePool", ["r"], ["p"]),
            node("Reshape", ["p", "shape"], ["f"]),
            node("Gemm", ["f", "w1", "b1"], ["y"], transB=1),
        ],
        [_value("x", [2, 3, 16, 16])],
        [_value("y", [2, 5])],
        {"w0": w(4, 3, 3, 3), "b0": w(4), "shape": np.array([2, 4], np.int64), "w1": w(5, 4), "b1": w(5)},
    )
    mlp = _model(
        [
            node("MatMul", ["x", "w0"], ["h"]),
            node("Erf", ["h"], ["e"]),
            node("Mul", ["h", "e"], ["g"]),
            node("Softmax", ["g"], ["y"], axis=-1),
        ],
        [_value("x", ["batch", 6])],
        [_value("y", ["batch", 4])],
        {"w0": w(6, 4)},
    )
    text = _model(
        [
            node("Shape", ["ids"], ["s"]),
            node("Gather", ["table", "ids"], ["e"]),
            node("Transpose", ["e"], ["t"], perm=[0, 2, 1]),
            node("MatMul", ["e", "t"], ["a"]),
            node("Concat", ["s", "two"], ["s2"], axis=0),
            node("ReduceMean", ["a"], ["y"], axes=[1], keepdims=0),
        ],
        [_value("ids", ["batch", "tokens"], TensorProto.INT64)],
        [_value("y", ["batch", "tokens"])],
        {"table": w(11, 4), "two": np.array([2], np.int64)},
    )
    return conv, mlp, text


# Mutations


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every (message, field) that is set, at any depth."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for child in value if _repeated(field) else [value]:
                yield from _fields(child)


def _repeated(field: Any) -> bool:
    return bool(getattr(field, "is_repeated", None) if hasattr(field, "is_repeated") else field.label == 3)


def _other(field: Any, rng: random.Random) -> Any:
    """A value of the field's type that does not belong there."""
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        text = rng.choice(_OPS if field.name == "op_type" else _TEXTS)
        return text.encode() if field.type == field.TYPE_BYTES else text
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if kind == field.CPPTYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    return rng.choice(_NUMBERS)


def _edit(model: Any, rng: random.Random) -> None:
    places = list(_fields(model))
    if not places:
        return
    message, field = rng.choice(places)
    if _repeated(field):
        values = getattr(message, field.name)
        how = rng.randrange(4)
        if how == 0:
            del values[rng.randrange(len(values))]
        elif how == 1 and field.message_type is not None:
            values.add().CopyFrom(rng.choice(list(values)))
        elif how == 1:
            with contextlib.suppress(ValueError):  # more than 32 bits
                values.append(_other(field, rng))
        elif how == 2 and field.message_type is None:
            with contextlib.suppress(ValueError):
                values[rng.randrange(len(values))] = _other(field, rng)
        else:
            kept = list(values)
            rng.shuffle(kept)
            del values[:]
            values.extend(kept)
    elif field.message_type is not None or rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        with contextlib.suppress(ValueError):
            setattr(message, field.name, _other(field, rng))


def _hostile(model: Any, rng: random.Random) -> None:
    """Weights outside the file, sizes that no memory holds, nets inside nets."""
    how = rng.randrange(4)
    weights = list(model.graph.initializer)
    if how == 0 and weights:
        one = rng.choice(weights)
        one.ClearField("raw_data")
        one.data_location = TensorProto.EXTERNAL
        location = rng.choice(("../../../etc/passwd", "/etc/passwd", "/dev/zero", "x.bin", "", "/proc/self/mem"))
        for key, value in (("location", location), ("offset", "-1"), ("length", str(1 << 62))):
            entry = one.external_data.add()
            entry.key, entry.value = key, value
    elif how == 1 and weights:
        one = rng.choice(weights)
        one.ClearField("raw_data")
        del one.dims[:]
        one.dims.extend([1 << 30] * rng.choice((1, 2, 3, 40)))
    elif how == 2:
        node = model.graph.node[rng.randrange(len(model.graph.node))]
        attribute = node.attribute.add()
        attribute.name, attribute.type = "body", onnx.AttributeProto.GRAPH
        inner = attribute.g
        for _ in range(rng.choice((1, 8, 25))):  # protobuf itself stops at a depth of 100
            inner.node.add().op_type = "Loop"
            inner.node[0].output.append("q")
            deeper = inner.node[0].attribute.add()
            deeper.name, deeper.type = "body", onnx.AttributeProto.GRAPH
            inner = deeper.g
    else:
        node = model.graph.node.add()
        node.op_type, node.name = "ConstantOfShape", "big"
        node.input.append("bigshape")
        node.output.append(model.graph.node[0].input[0] if rng.random() < 0.3 else "big")
        model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 40, 1 << 20], np.int64), "bigshape"))


def make_onnx(rng: random.Random) -> tuple[str, bytes]:
    """One broken file."""
    data = rng.choice(networks())
    how = rng.random()
    if how < 0.3:
        return "n.onnx", mutate_bytes(data, rng)
    model = onnx.ModelProto()
    model.ParseFromString(data)
    if how < 0.5:
        _hostile(model, rng)
    for _ in range(rng.choice((1, 1, 2, 4)) if how >= 0.45 else 0):
        _edit(model, rng)
    return "n.onnx", bytes(model.SerializeToString())
