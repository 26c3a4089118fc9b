"""Integer products of torch itself, as torchao's quantized layers call them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .matmul import gemm_terms, padded_flops
from .spec import Cost, OpSpec

__all__ = ["FORMULAS"]


def int_mm(op: OpSpec) -> Cost:
    """``(M×K)·(K×N)`` of bytes into 32-bit sums.

    >>> from .spec import TensorSpec, op
    >>> a, b = TensorSpec((2, 5), "int8"), TensorSpec((5, 3), "int8")
    >>> int_mm(op("aten::_int_mm", [a, b], [TensorSpec((2, 3), "int32")])).flops
    60
    """
    (m, k), n = op.inputs[0].shape[-2:], op.inputs[1].shape[-1]
    return Cost(2 * m * n * k, "int_mm", work=padded_flops(m, n, k), unit="int8", terms=gemm_terms(m, n, k))


def packed_weight_mm(op: OpSpec) -> Cost:
    """Activations by weights of 8 or 4 bits that were packed beforehand; products run in the activations' type.

    >>> from .spec import TensorSpec, op
    >>> packed = TensorSpec((64, 32), "uint8")
    >>> packed_weight_mm(op("aten::_weight_int4pack_mm_for_cpu", [(2, 64), packed], [(2, 64)])).flops  # 2·2·64·64
    16384
    """
    out = op.outputs[0]
    m, k, n = out.numel // max(out.shape[-1], 1), op.inputs[0].shape[-1], out.shape[-1]
    cost = Cost(2 * m * n * k, "packed_weight_mm", work=padded_flops(m, n, k), terms=gemm_terms(m, n, k))
    return replace(cost, unit="fp32")


FORMULAS: dict[str, Callable[[OpSpec], Cost]] = {
    "aten::_int_mm": int_mm,
    "aten::_weight_int8pack_mm": packed_weight_mm,
    "aten::_weight_int4pack_mm": packed_weight_mm,
    "aten::_weight_int4pack_mm_for_cpu": packed_weight_mm,
    "aten::_dyn_quant_matmul_4bit": packed_weight_mm,
}
