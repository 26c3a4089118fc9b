"""Elementwise ops: one result element from one element of each operand, in place or not, one tensor or lists.

FLOPs are counted a result element: 1 for an add, a product, a comparison, a selection, a division or a square root;
`EXP` and `TANH` for transcendental functions, whatever a library makes of them. Compound activations are the sum of
their parts, written out beside each. Kinds: ``elementwise``, ``elementwise_divide`` (dividers and roots, not
pipelined), ``elementwise_select`` (by a mask of bytes) and ``elementwise_transcendental``; with ``_strided`` where the
innermost loop does not step by one and ``_in_place`` where no memory is taken; ``elementwise_list`` for ``_foreach_``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from .layout import Loop, copy_bytes, first, loop
from .spec import DTYPE_BYTES, Cost, OpSpec

__all__ = ["EXP", "FORMULAS", "POW", "TANH", "elementwise_cost", "promotion_bytes"]

EXP = 8  # exp, log, sin, cos: range reduction and a polynomial, about eight vector instructions
TANH = 12  # tanh, erf and other quotients of two such pieces
POW = 2 * EXP  # exp(y·log x)

_MASKS = {"where": 0, "masked_fill": 1}  # a boolean operand that is read as it is
_DIVIDING = frozenset(("div", "divide", "true_divide", "reciprocal", "sqrt", "rsqrt", "addcdiv"))
_FLOATS = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")


def elementwise_cost(op: OpSpec, flops_each: int, *, transcendental: bool | None = None) -> Cost:
    """Cost of `flops_each` operations for each element of the first output.

    >>> from .spec import op
    >>> c = elementwise_cost(op("aten::add", [(2, 3), (3,)], [(2, 3)]), 1)
    >>> c.flops, c.kind, c.terms["n"]  # one add for each of 6 elements
    (6, 'elementwise', 6.0)
    """
    out = first(op)
    shape = loop(out, [t for t in op.inputs if len(t.shape) <= len(out.shape)])
    heavy = flops_each >= EXP if transcendental is None else transcendental
    return Cost(
        flops=flops_each * out.numel,
        kind=_kind(op.name.split("::")[-1], heavy, shape),
        terms=_terms(shape) | (_function_terms(op.name, out.numel, bool(op.attr("masked"))) if heavy else {}),
        workspace=promotion_bytes(op),
    )


def _kind(name: str, heavy: bool, shape: Loop) -> str:
    plain = name.rstrip("_")
    if heavy:
        kind = "elementwise_transcendental"
    elif plain in _DIVIDING:
        kind = "elementwise_divide"
    else:
        kind = "elementwise_select" if plain in _MASKS else "elementwise"
    return kind + ("" if shape.unit else "_strided") + ("_in_place" if name.endswith("_") else "")


def _terms(shape: Loop) -> dict[str, float]:
    return {"n": float(shape.elements), "runs": float(shape.runs)}


# On a CPU, ATen hands these to a vector library, at about 1 (`_LIBRARY`) or 2.5 ns (`_SLOW`) an element. What is made
# of a fast exponential in the loop itself (sigmoid, SiLU, GELU and their gradients) takes 0.4 ns, whichever it is.
_LIBRARY = frozenset(
    ("exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sin", "cos", "tan", "erf", "erfc", "special_erf", "elu",
     "selu", "celu", "softplus", "logaddexp", "log_sigmoid", "log_sigmoid_forward", "pow")
)  # fmt: skip
_SLOW = frozenset(
    ("tanh", "mish", "mish_backward", "sinh", "cosh", "asin", "acos", "atan", "atan2", "asinh", "acosh", "atanh",
     "erfinv", "lgamma", "digamma", "polygamma", "i0")
)  # fmt: skip


# exp of −∞ takes MKL's slow path: 4.3 ns an element where half are masked, against 0.82 (measured on Zen 4).
_MASKED = 5.3


def _function_terms(name: str, n: int, masked: bool) -> dict[str, float]:
    """What a function of the library takes beside the loop; `masked` of a result of ``masked_fill`` with −∞.

    >>> [_function_terms(f"aten::{f}", 10, False) for f in ("exp_", "tanh", "silu_backward")]
    [{'library': 10.0}, {'slow': 10.0}, {}]
    """
    plain = name.split("::")[-1].rstrip("_")
    if plain in _SLOW:
        return {"slow": float(n)}
    return {"library": n * (_MASKED if masked else 1.0)} if plain in _LIBRARY else {}


def promotion_bytes(op: OpSpec) -> int:
    """Bytes of the copies that TensorIterator makes on a CPU of operands that are not of the common dtype.

    >>> from .spec import TensorSpec, op
    >>> promotion_bytes(op("aten::mul", [TensorSpec((4,), "float32"), TensorSpec((4,), "int64")], [(4,)]))
    16
    """
    masked = _MASKS.get(op.name.split("::")[-1].rstrip("_"))
    operands = [t for k, t in enumerate(op.inputs) if k != masked]
    tensors = [t for t in operands if t.shape] or operands
    dtypes = {t.dtype for t in tensors}
    if op.outputs and op.outputs[0].dtype in _FLOATS:  # division and functions of integers
        dtypes.add(op.outputs[0].dtype)
    if len(dtypes) <= 1:
        return 0
    common = max(dtypes, key=_rank)
    size = DTYPE_BYTES[common]
    return sum(t.numel * size for t in tensors if t.dtype != common)


def _rank(dtype: str) -> tuple[int, int]:
    return (_FLOATS.index(dtype) + 1 if dtype in _FLOATS else 0, DTYPE_BYTES[dtype] if dtype != "bool" else 0)


# FLOPs an element of ops that have one form.
FLOPS: dict[str, int] = {
    # arithmetic
    "mul": 1, "multiply": 1, "div": 1, "divide": 1, "true_divide": 1, "floor_divide": 2, "remainder": 3, "fmod": 3,
    "neg": 1, "negative": 1, "abs": 1, "absolute": 1, "sign": 1, "sgn": 1, "square": 1, "sqrt": 1, "rsqrt": 2,
    "reciprocal": 1, "maximum": 1, "minimum": 1, "fmax": 1, "fmin": 1, "floor": 1, "ceil": 1, "round": 1, "trunc": 1,
    "frac": 2, "lerp": 3, "hypot": 4, "clamp_min": 1, "clamp_max": 1, "heaviside": 1, "copysign": 1, "nan_to_num": 3,
    "isnan": 1, "isinf": 1, "isfinite": 1, "real": 0, "imag": 0, "angle": TANH, "deg2rad": 1, "rad2deg": 1,
    "conj_physical": 1, "polar": 2 * EXP + 2, "complex": 0,
    # comparisons, logic, bits
    "eq": 1, "ne": 1, "lt": 1, "le": 1, "gt": 1, "ge": 1, "logical_and": 1, "logical_or": 1, "logical_not": 1,
    "logical_xor": 1, "bitwise_and": 1, "bitwise_or": 1, "bitwise_xor": 1, "bitwise_not": 1,
    "bitwise_left_shift": 1, "bitwise_right_shift": 1, "__and__": 1, "__or__": 1, "__xor__": 1, "__lshift__": 1,
    "__rshift__": 1, "__iand__": 1, "__ior__": 1, "isclose": 5, "isin": 1, "bucketize": 4, "searchsorted": 4,
    # selection
    "where": 1, "masked_fill": 1, "threshold": 1, "threshold_backward": 1, "relu": 1, "dropout": 1,
    "native_dropout_backward": 2, "masked_scale": 2, "_masked_scale": 2, "feature_dropout": 1, "alpha_dropout": 3,
    # transcendental
    "exp": EXP, "exp2": EXP, "expm1": EXP, "log": EXP, "log1p": EXP, "log2": EXP, "log10": EXP, "sin": EXP,
    "cos": EXP, "tan": TANH, "tanh": TANH, "sinh": TANH, "cosh": TANH, "asin": TANH, "acos": TANH, "atan": TANH,
    "atan2": TANH, "asinh": TANH, "acosh": TANH, "atanh": TANH, "erf": TANH, "erfc": TANH, "erfinv": TANH,
    "special_erf": TANH, "sigmoid": EXP + 3, "logit": EXP + 3, "xlogy": EXP + 1, "sinc": EXP + 2, "lgamma": 4 * EXP,
    "digamma": 4 * EXP, "polygamma": 4 * EXP, "logaddexp": 2 * EXP + 3, "special_xlog1py": EXP + 1, "i0": 4 * EXP,
    # activations: the parts that each is made of
    "relu6": 2, "hardtanh": 2, "hardtanh_backward": 2,
    "leaky_relu": 2, "leaky_relu_backward": 2, "_prelu_kernel": 2, "prelu": 2, "_prelu_kernel_backward": 4,
    "rrelu_with_noise": 2, "rrelu_with_noise_backward": 2, "hardshrink": 2, "hardshrink_backward": 2,
    "softshrink": 3, "softshrink_backward": 2, "softsign": 3,
    "hardsigmoid": 4,  # add 3, two bounds, one product
    "hardsigmoid_backward": 3, "hardswish": 5,  # hardsigmoid and a product
    "hardswish_backward": 5, "sigmoid_backward": 3,  # g·(1 − y)·y
    "tanh_backward": 3, "silu": EXP + 4,  # sigmoid and a product
    "silu_backward": EXP + 8,  # g·s·(1 + x·(1 − s))
    "mish": EXP * 2 + TANH + 2, "mish_backward": 3 * EXP + TANH + 8, "elu": EXP + 3, "elu_backward": EXP + 3,
    "selu": EXP + 3, "celu": EXP + 3, "softplus": 2 * EXP + 3, "softplus_backward": EXP + 4,
    "log_sigmoid": 2 * EXP + 3, "log_sigmoid_forward": 2 * EXP + 3, "log_sigmoid_backward": EXP + 5,
    "logit_backward": 4, "glu": EXP + 4, "glu_backward": EXP + 8,
    # pointwise pieces of optimizers and losses
    "addcmul": 3, "addcdiv": 3, "mse_loss_backward": 3, "l1_loss_backward": 3, "smooth_l1_loss_backward": 5,
    "huber_loss_backward": 5, "binary_cross_entropy_backward": 5, "soft_margin_loss_backward": EXP + 4,
}  # fmt: skip
# Of these only out-of-place spellings exist, or the result is not where an in-place op would put it.
_RESULT_ONLY = ("_backward", "_forward", "_kernel")


def _plain(flops_each: int) -> Callable[[OpSpec], Cost]:
    def formula(op: OpSpec) -> Cost:
        return elementwise_cost(op, flops_each)

    return formula


def add(op: OpSpec) -> Cost:
    """``self + alpha·other``: a multiply-add where alpha is not 1.

    >>> from .spec import op
    >>> add(op("aten::add_", [(10,), (10,)], [(10,)], alpha=-0.1)).flops
    20
    """
    return elementwise_cost(op, 1 if op.attr("alpha", 1) == 1 else 2)


def clamp(op: OpSpec) -> Cost:
    """One comparison a bound.

    >>> from .spec import op
    >>> [clamp(op("aten::clamp", [(10,)], [(10,)], **b)).flops for b in ({"min": 0}, {"min": 0, "max": 1})]
    [10, 20]
    """
    bounds = sum(op.attr(b) is not None for b in ("min", "max")) or len(op.inputs) - 1
    return elementwise_cost(op, max(bounds, 1))


def power(op: OpSpec) -> Cost:
    """Small whole exponents are products, ±0.5 a root, the rest exp(y·log x).

    >>> from .spec import op
    >>> [power(op("aten::pow", [(10,)], [(10,)], exponent=e)).flops for e in (2, 3, 0.5, 1.7)]
    [10, 20, 10, 160]
    """
    exponent = op.attr("exponent") if len(op.inputs) == 1 and op.attr("self") is None else None
    each = {1: 0, 2: 1, 3: 2, 0.5: 1, -0.5: 2, -1: 1, -2: 2}.get(exponent, POW) if exponent is not None else POW
    return elementwise_cost(op, each)


def gelu(op: OpSpec) -> Cost:
    """x·Φ(x): scale, erf, add and two products; with tanh a cubic polynomial instead of the scale.

    >>> from .spec import op
    >>> gelu(op("aten::gelu", [(2,)], [(2,)])).flops, gelu(op("aten::gelu", [(2,)], [(2,)], approximate="tanh")).flops
    (32, 40)
    """
    return elementwise_cost(op, TANH + (8 if op.attr("approximate") == "tanh" else 4))


def gelu_backward(op: OpSpec) -> Cost:
    """g·(Φ(x) + x·φ(x)): the forward's Φ, an exp for φ (none with tanh, whose slope is 1 − t²), and the products.

    >>> from .spec import op
    >>> gelu_backward(op("aten::gelu_backward", [(2,), (2,)], [(2,)])).flops  # erf 12 + 3, φ 8 + 3, 3 to join them
    58
    """
    cost = elementwise_cost(op, TANH + 18 if op.attr("approximate") == "tanh" else TANH + EXP + 9)
    alike = len({t.stride for t in op.inputs}) == 1
    return replace(cost, workspace=0 if alike else sum(map(copy_bytes, (*op.inputs, *op.outputs))))


def listed(name: str, flops_each: int | None = None) -> Callable[[OpSpec], Cost]:
    """The same op over lists of tensors (``_foreach_``)."""

    def formula(op: OpSpec) -> Cost:
        """Elements of all outputs times the FLOPs of each.

        >>> from .spec import op
        >>> listed("mul")(op("aten::_foreach_mul_", [(2, 3), (5,)], [(2, 3), (5,)])).flops
        11
        """
        outputs = op.outputs or op.inputs
        n = sum(t.numel for t in outputs)
        each = flops_each if flops_each is not None else FLOPS[name]
        if name in ("add", "sub") and op.attr("alpha", 1) != 1:
            each = 2
        return Cost(
            flops=each * n,
            kind="elementwise_list",
            terms={"n": float(n), "tensors": float(len(outputs))},
            calls=len(outputs),
        )

    return formula


def foreach_norm(op: OpSpec) -> Cost:
    """A norm a tensor: a multiply-add an element and a root each.

    >>> from .spec import op
    >>> foreach_norm(op("aten::_foreach_norm", [(10,), (4,)], [(), ()])).flops
    30
    """
    n = sum(t.numel for t in op.inputs)
    terms = {"n": float(n), "tensors": float(len(op.inputs))}
    return Cost(2 * n + len(op.outputs), "elementwise_list", terms=terms, calls=len(op.inputs))


def foreach_copy(op: OpSpec) -> Cost:
    """Values of one list into another: no arithmetic, and the targets are not read.

    >>> from .spec import op
    >>> foreach_copy(op("aten::_foreach_copy_", [(10,), (10,)], [(10,)])).bytes_read(op("", [(10,), (10,)], [(10,)]))
    (0, 40)
    """
    n = len(op.outputs)
    terms = {"n": float(sum(t.numel for t in op.outputs)), "tensors": float(n)}
    return Cost(0, "elementwise_list", terms=terms, calls=n, read=(0,) * n + tuple(t.nbytes for t in op.inputs[n:]))


_LISTED = """add sub mul div sqrt rsqrt reciprocal neg abs exp log sigmoid tanh maximum minimum clamp_min clamp_max
    addcmul addcdiv lerp sign floor ceil round sin cos pow erf"""


def _table() -> Mapping[str, Callable[[OpSpec], Cost]]:
    table: dict[str, Callable[[OpSpec], Cost]] = {}
    for name, flops_each in FLOPS.items():
        table[f"aten::{name}"] = _plain(flops_each)
        if not name.endswith(_RESULT_ONLY):
            table[f"aten::{name}_"] = _plain(flops_each)
    special = {"add": add, "sub": add, "subtract": add, "rsub": add, "clamp": clamp, "clip": clamp, "pow": power,
               "gelu": gelu}  # fmt: skip
    for name, formula in special.items():
        table[f"aten::{name}"] = table[f"aten::{name}_"] = formula
    table["aten::gelu_backward"] = gelu_backward
    for name in _LISTED.split():
        each = {"add": 1, "sub": 1, "pow": POW}.get(name)
        table[f"aten::_foreach_{name}"] = table[f"aten::_foreach_{name}_"] = listed(name, each)
    table["aten::_foreach_norm"] = foreach_norm
    table["aten::_foreach_copy_"] = foreach_copy
    table["aten::_foreach_zero_"] = listed("zero", 0)
    return table


FORMULAS = _table()
