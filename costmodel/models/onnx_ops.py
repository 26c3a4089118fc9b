"""What each operator of ONNX is in torch: a function of the node's inputs and attributes, by operator name.

Inputs are tensors, or numpy arrays where they were known before the model runs (shapes, axes, constants), or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["DTYPES", "OPS", "Attributes", "Value", "tensor"]

Value = Any  # Tensor | np.ndarray | None
Attributes = dict[str, Any]
OPS: dict[str, Callable[..., Any]] = {}

# onnx.TensorProto's numbers
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 14: torch.complex64, 15: torch.complex128, 16: torch.bfloat16,
}  # fmt: skip


def tensor(value: Value, like: Tensor | None = None) -> Tensor:
    """`value` as a tensor; a constant is made in place."""
    if isinstance(value, Tensor):
        return value
    made = torch.from_numpy(np.array(value))
    return made.to(like.device) if like is not None else made


def numbers(value: Value) -> list[int]:
    """A list of integers: axes, sizes, starts."""
    flat = value.flatten().tolist() if isinstance(value, (Tensor, np.ndarray)) else value
    return [int(v) for v in flat]


def operator(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        OPS.update(dict.fromkeys(names, function))
        return function

    return register


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda _attrs, x: function(tensor(x))


def _scalar_or_tensor(x: Value, beside: Value) -> Any:
    """A constant of one element is a number to torch, as it is in a graph that was written by hand."""
    if isinstance(x, np.ndarray) and x.size == 1 and isinstance(beside, Tensor) and beside.dim() >= x.ndim:
        return x.item()
    return tensor(x, beside if isinstance(beside, Tensor) else None)


def _binary(function: Callable[[Any, Any], Tensor]) -> Callable[..., Tensor]:
    def apply(_attrs: Attributes, a: Value, b: Value) -> Tensor:
        return function(_scalar_or_tensor(a, b), _scalar_or_tensor(b, a))

    return apply


for _name, _function in {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp, "Log": torch.log,
    "Sqrt": torch.sqrt, "Neg": torch.neg, "Abs": torch.abs, "Floor": torch.floor, "Ceil": torch.ceil,
    "Round": torch.round, "Erf": torch.erf, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Atan": torch.atan,
    "Asin": torch.asin, "Acos": torch.acos, "Sinh": torch.sinh, "Cosh": torch.cosh, "Softplus": F.softplus,
    "Softsign": F.softsign, "Not": torch.logical_not, "Sign": torch.sign, "Reciprocal": torch.reciprocal,
    "HardSwish": F.hardswish, "Mish": F.mish, "IsNaN": torch.isnan, "IsInf": torch.isinf, "Identity": lambda x: x,
    "Det": torch.linalg.det, "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.dim())), keepdim=True), "Swish": F.silu,
}.items():  # fmt: skip
    OPS[_name] = _unary(_function)


def _divide(a: Any, b: Any) -> Tensor:
    whole = not any(t.is_floating_point() if isinstance(t, Tensor) else isinstance(t, float) for t in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


for _name, _pair in {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Div": _divide,
    "Pow": lambda a, b: a**b, "Equal": lambda a, b: a == b, "Greater": lambda a, b: a > b,
    "Less": lambda a, b: a < b, "GreaterOrEqual": lambda a, b: a >= b, "LessOrEqual": lambda a, b: a <= b,
    "And": lambda a, b: a & b, "Or": lambda a, b: a | b, "Xor": lambda a, b: a ^ b, "Mod": lambda a, b: a % b,
    "PRelu": lambda a, b: torch.where(a > 0, a, a * b), "MatMul": lambda a, b: torch.matmul(a, b),
}.items():  # fmt: skip
    OPS[_name] = _binary(_pair)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def apply(_attrs: Attributes, *values: Value) -> Tensor:
        result = tensor(values[0])
        for value in values[1:]:
            result = function(result, tensor(value, result))
        return result

    return apply


OPS |= {"Max": _fold(torch.maximum), "Min": _fold(torch.minimum), "Sum": _fold(torch.add)}


@operator("Mean")
def _mean(attrs: Attributes, *values: Value) -> Tensor:
    return OPS["Sum"](attrs, *values) / len(values)


@operator("Gelu", "FastGelu")
def _gelu(attrs: Attributes, x: Tensor, bias: Value = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate=attrs.get("approximate", "none"))


OPS |= {
    "LeakyRelu": lambda a, x: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Elu": lambda a, x: F.elu(x, a.get("alpha", 1.0)),
    "Celu": lambda a, x: F.celu(x, a.get("alpha", 1.0)),
    "Selu": lambda _a, x: F.selu(x),
    "ThresholdedRelu": lambda a, x: F.threshold(x, a.get("alpha", 1.0), 0.0),
    "HardSigmoid": lambda a, x: torch.clamp(x * a.get("alpha", 0.2) + a.get("beta", 0.5), 0, 1),
    "Cast": lambda a, x: tensor(x).to(DTYPES[a["to"]]),
    "CastLike": lambda _a, x, like: tensor(x).to(like.dtype),
    "Where": lambda _a, c, x, y: torch.where(tensor(c), *(_scalar_or_tensor(v, c) for v in (x, y))),
    "Dropout": lambda a, x, *_: F.dropout(x, a.get("ratio", 0.5), training=False),
    "Softmax": lambda a, x: torch.softmax(x, a.get("axis", -1)),
    "LogSoftmax": lambda a, x: torch.log_softmax(x, a.get("axis", -1)),
    "Einsum": lambda a, *x: torch.einsum(a["equation"], *(tensor(v) for v in x)),
    "CumSum": lambda _a, x, axis: torch.cumsum(tensor(x), numbers(axis)[0]),
    "NonZero": lambda _a, x: torch.nonzero(tensor(x)).t(),
}  # fmt: skip


@operator("Trilu")
def _triangle(attrs: Attributes, x: Value, k: Value = None) -> Tensor:
    keep = torch.triu if attrs.get("upper", 1) else torch.tril
    return keep(tensor(x), 0 if k is None else numbers(k)[0])


@operator("Clip")
def _clip(attrs: Attributes, x: Tensor, low: Value = None, high: Value = None) -> Tensor:
    bounds = [attrs.get("min"), attrs.get("max")]
    for i, given in enumerate((low, high)):
        if given is not None:
            bounds[i] = given.item() if isinstance(given, np.ndarray) else given
    return torch.clamp(x, *bounds)


# Products


@operator("Gemm")
def _gemm(attrs: Attributes, a: Tensor, b: Tensor, c: Value = None) -> Tensor:
    a = a.t() if attrs.get("transA") else a
    alpha, beta = attrs.get("alpha", 1.0), attrs.get("beta", 1.0)
    if attrs.get("transB") and alpha == beta == 1.0 and (c is None or tensor(c).dim() == 1):
        return F.linear(a, b, None if c is None else tensor(c, a))
    b = b.t() if attrs.get("transB") else b
    return torch.mm(a, b) if c is None else torch.addmm(tensor(c, a), a, b, alpha=alpha, beta=beta)


def _padded(attrs: Attributes, x: Tensor, kernel: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """`x` and the symmetric padding that is left to the op; what is not symmetric is padded here."""
    dims = len(kernel)
    stride, dilation = attrs.get("strides", [1] * dims), attrs.get("dilations", [1] * dims)
    pads = list(attrs.get("pads", [0] * 2 * dims))
    if attrs.get("auto_pad", "NOTSET").startswith("SAME"):
        total = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, s, k, d in zip(x.shape[2:], stride, kernel, dilation)
        ]
        first = [t // 2 if attrs["auto_pad"] == "SAME_UPPER" else -(-t // 2) for t in total]
        pads = first + [t - f for t, f in zip(total, first)]
    if pads[:dims] == pads[dims:]:
        return x, pads[:dims]
    around = [p for d in reversed(range(dims)) for p in (pads[d], pads[dims + d])]
    return F.pad(x, around, value=value), [0] * dims


@operator("Conv")
def _conv(attrs: Attributes, x: Tensor, weight: Tensor, bias: Value = None) -> Tensor:
    kernel = list(weight.shape[2:])
    dims = len(kernel)
    x, pad = _padded(attrs, x, kernel)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    bias = None if bias is None else tensor(bias, x)
    ones = [1] * dims
    return convolve(
        x, weight, bias, attrs.get("strides", ones), pad, attrs.get("dilations", ones), attrs.get("group", 1)
    )


@operator("ConvTranspose")
def _conv_transpose(attrs: Attributes, x: Tensor, weight: Tensor, bias: Value = None) -> Tensor:
    dims = weight.dim() - 2
    ones, pads = [1] * dims, list(attrs.get("pads", [0] * 2 * dims))
    extra = [a + (p - q) for a, p, q in zip(attrs.get("output_padding", [0] * dims), pads[:dims], pads[dims:])]
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    bias = None if bias is None else tensor(bias, x)
    stride, dilation = attrs.get("strides", ones), attrs.get("dilations", ones)
    return convolve(x, weight, bias, stride, pads[:dims], extra, attrs.get("group", 1), dilation)


# Windows and norms


@operator("MaxPool")
def _max_pool(attrs: Attributes, x: Tensor) -> Tensor:
    kernel = attrs["kernel_shape"]
    dims = len(kernel)
    x, pad = _padded(attrs, x, kernel, value=float("-inf"))
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[dims - 1]
    return pool(
        x,
        kernel,
        attrs.get("strides", [1] * dims),
        pad,
        attrs.get("dilations", [1] * dims),
        bool(attrs.get("ceil_mode")),
    )


@operator("AveragePool")
def _average_pool(attrs: Attributes, x: Tensor) -> Tensor:
    kernel = attrs["kernel_shape"]
    dims = len(kernel)
    x, pad = _padded(attrs, x, kernel)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[dims - 1]
    count = bool(attrs.get("count_include_pad", 0))
    return pool(x, kernel, attrs.get("strides", [1] * dims), pad, bool(attrs.get("ceil_mode")), count)


@operator("BatchNormalization")
def _batch_norm(attrs: Attributes, x: Tensor, scale: Value, bias: Value, mean: Value, var: Value) -> Tensor:
    scale, bias, mean, var = (tensor(v, x) for v in (scale, bias, mean, var))
    return F.batch_norm(x, mean, var, scale, bias, training=False, eps=attrs.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def _instance_norm(attrs: Attributes, x: Tensor, scale: Value, bias: Value) -> Tensor:
    return F.instance_norm(x, weight=tensor(scale, x), bias=tensor(bias, x), eps=attrs.get("epsilon", 1e-5))


@operator("GroupNormalization")
def _group_norm(attrs: Attributes, x: Tensor, scale: Value, bias: Value) -> Tensor:
    return F.group_norm(x, attrs["num_groups"], tensor(scale, x), tensor(bias, x), attrs.get("epsilon", 1e-5))


@operator("LayerNormalization")
def _layer_norm(attrs: Attributes, x: Tensor, scale: Value, bias: Value = None) -> Tensor:
    shape = x.shape[attrs.get("axis", -1) :]
    bias = None if bias is None else tensor(bias, x).expand(shape)
    return F.layer_norm(x, shape, tensor(scale, x).expand(shape), bias, attrs.get("epsilon", 1e-5))


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_norm(attrs: Attributes, x: Tensor, scale: Value) -> Tensor:
    return F.rms_norm(x, x.shape[attrs.get("axis", -1) :], tensor(scale, x), attrs.get("epsilon", 1e-5))


@operator("LpNormalization")
def _lp_norm(attrs: Attributes, x: Tensor) -> Tensor:
    return F.normalize(x, attrs.get("p", 2), attrs.get("axis", -1))


@operator("LRN")
def _lrn(attrs: Attributes, x: Tensor) -> Tensor:
    return F.local_response_norm(
        x, attrs["size"], attrs.get("alpha", 1e-4), attrs.get("beta", 0.75), attrs.get("bias", 1.0)
    )


# Reductions


def _reduce(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    def apply(attrs: Attributes, x: Value, axes: Value = None) -> Tensor:
        x = tensor(x)
        given = attrs.get("axes") if axes is None else numbers(axes)
        if not given and attrs.get("noop_with_empty_axes"):
            return x
        return function(x, tuple(given or range(x.dim())), bool(attrs.get("keepdims", 1)))

    return apply


OPS |= {
    "ReduceMean": _reduce(lambda x, d, k: x.mean(d, keepdim=k)),
    "ReduceSum": _reduce(lambda x, d, k: x.sum(d, keepdim=k)),
    "ReduceMax": _reduce(lambda x, d, k: x.amax(d, keepdim=k)),
    "ReduceMin": _reduce(lambda x, d, k: x.amin(d, keepdim=k)),
    "ReduceL1": _reduce(lambda x, d, k: x.abs().sum(d, keepdim=k)),
    "ReduceL2": _reduce(lambda x, d, k: torch.linalg.vector_norm(x, 2, d, k)),
    "ReduceSumSquare": _reduce(lambda x, d, k: x.square().sum(d, keepdim=k)),
    "ReduceLogSumExp": _reduce(lambda x, d, k: torch.logsumexp(x, d, k)),
    "ArgMax": lambda a, x: tensor(x).argmax(a.get("axis", 0), bool(a.get("keepdims", 1))),
    "ArgMin": lambda a, x: tensor(x).argmin(a.get("axis", 0), bool(a.get("keepdims", 1))),
    "TopK": lambda a, x, k: torch.topk(x, numbers(k)[0], a.get("axis", -1), bool(a.get("largest", 1))),
}


@operator("ReduceProd")
def _prod(attrs: Attributes, x: Value, axes: Value = None) -> Tensor:
    x = tensor(x)
    for d in sorted(
        (d % x.dim() for d in (attrs.get("axes") if axes is None else numbers(axes)) or range(x.dim())), reverse=True
    ):
        x = x.prod(d, keepdim=bool(attrs.get("keepdims", 1)))
    return x


# Quantization, as the arithmetic that it is


def _along(value: Value, x: Tensor, axis: int) -> Any:
    scale = tensor(value, x)
    return scale if scale.numel() == 1 else scale.reshape([-1 if d == axis % x.dim() else 1 for d in range(x.dim())])


@operator("QuantizeLinear")
def _quantize(attrs: Attributes, x: Tensor, scale: Value, zero: Value = None) -> Tensor:
    kind = torch.uint8 if zero is None else tensor(zero).dtype
    low, high = torch.iinfo(kind).min, torch.iinfo(kind).max
    y = torch.round(x / _along(scale, x, attrs.get("axis", 1)))
    y = y if zero is None else y + _along(zero, x, attrs.get("axis", 1))
    return y.clamp(low, high).to(kind)


@operator("DequantizeLinear")
def _dequantize(attrs: Attributes, x: Tensor, scale: Value, zero: Value = None) -> Tensor:
    x = tensor(x)
    y = x.to(torch.float32)
    y = y if zero is None else y - _along(zero, x, attrs.get("axis", 1)).to(torch.float32)
    return y * _along(scale, x, attrs.get("axis", 1))


def elements(shape: Sequence[int]) -> int:
    return prod(shape)
