"""Attention as one op: flash attention on the CPU forward and backward, and the fused encoder layers of inference.

Two matmuls forward (q·kᵀ, p·v), five backward (q·kᵀ again, g·vᵀ, pᵀ·g, ds·k, dsᵀ·q), 2 FLOPs a multiply-add, over
the pairs of positions that attend to each other; softmax `SOFTMAX_FLOPS` and a scale a pair.
"""

from __future__ import annotations

from collections.abc import Callable

from .elementwise import EXP, TANH
from .layout import ceil_to, copy_bytes, strides_of
from .matmul import gemm_terms
from .reduction import SOFTMAX_FLOPS
from .spec import Cost, OpSpec, TensorSpec

__all__ = ["FORMULAS", "pairs", "tiled_pairs"]

KEY_TILE = 512


def query_tile(queries: int) -> int:
    """Queries a tile of ATen's CPU kernel.

    >>> query_tile(100), query_tile(197), query_tile(1024)
    (32, 64, 256)
    """
    return 256 if queries >= 768 else 64 if queries >= 192 else 32


def pairs(queries: int, keys: int, causal: bool) -> int:
    """Pairs of positions that attend: all, or each query and the keys up to its own place.

    >>> pairs(4, 4, False), pairs(4, 4, True), pairs(4, 2, True)
    (16, 10, 7)
    """
    if not causal:
        return queries * keys
    n = min(queries, keys)
    return n * (n + 1) // 2 + (queries - n) * keys


def tiled_pairs(queries: int, keys: int, causal: bool) -> int:
    """Pairs that tiles of queries compute: with a causal mask every row of a tile sees as many keys as its last.

    >>> tiled_pairs(64, 64, True), tiled_pairs(64, 64, False)  # 32·32 + 32·64
    (3072, 4096)
    """
    if not causal:
        return queries * keys
    tile = query_tile(queries)
    return sum(min(tile, queries - start) * min(start + tile, keys) for start in range(0, queries, tile))


def _shapes(q: TensorSpec, k: TensorSpec, v: TensorSpec) -> tuple[int, int, int, int, int]:
    """Batch × heads, queries, keys, width of q and k, width of v."""
    return q.numel // max(q.shape[-1] * q.shape[-2], 1), q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]


def flash(op: OpSpec) -> Cost:
    """Forward.

    >>> from .spec import op
    >>> q = (2, 6, 197, 64)
    >>> c = flash(op("aten::_scaled_dot_product_flash_attention_for_cpu", [q, q, q], [q, (2, 6, 197)]))
    >>> c.flops  # 12·197²·(2·64 + 2·64 + 13)
    125275452
    """
    q, k, v = op.inputs[:3]
    heads, queries, keys, width, out_width = _shapes(q, k, v)
    causal = bool(op.attr("is_causal", False))
    each = 2 * width + 2 * out_width + SOFTMAX_FLOPS + 1
    return Cost(
        flops=heads * pairs(queries, keys, causal) * each,
        kind="attention",
        work=float(heads * tiled_pairs(queries, keys, causal) * each),
        terms=_terms(heads, tiled_pairs(queries, keys, causal), queries, keys, width),
        workspace=op.threads * _tile_bytes(queries, keys, out_width, q.itemsize),
    )


def _tile_bytes(queries: int, keys: int, width: int, itemsize: int) -> int:
    """Buffers of a thread: scores of a tile, maximum and sum a row, and the result, in float32; scores again in 16 bit.

    >>> _tile_bytes(197, 197, 64, 4)  # (64·197 + 2·64 + 64·64)·4
    67328
    """
    q, k = min(query_tile(queries), queries), min(KEY_TILE, keys)
    narrow = q * k * itemsize if itemsize < 4 else 0
    return 4 * (q * k + 2 * q + q * width) + narrow


def _terms(heads: int, pairs_each: int, queries: int, keys: int, width: int) -> dict[str, float]:
    return {
        "pairs_width": float(heads * pairs_each * width),
        "pairs": float(heads * pairs_each),
        "tokens": float(heads * (queries + keys) * width),
        "heads": float(heads),
        "width_lanes": float(heads * pairs_each * ceil_to(width, 16)),
    }


def flash_backward(op: OpSpec) -> Cost:
    """Backward: five matmuls, exp of the scores again, and the softmax's gradient (4 a pair).

    >>> from .spec import op
    >>> q = (1, 1, 2, 4)
    >>> flash_backward(op("aten::_scaled_dot_product_flash_attention_for_cpu_backward", [q] * 5 + [(1, 1, 2)],
    ...                   [q] * 3)).flops  # 4 pairs · (3·2·4 + 2·2·4 + 8 + 2 + 4)
    216
    """
    q, k, v = op.inputs[1:4]
    heads, queries, keys, width, out_width = _shapes(q, k, v)
    causal = bool(op.attr("is_causal", False))
    tile = min(query_tile(queries), queries)
    each = 3 * 2 * width + 2 * 2 * out_width + EXP + 2 + 4
    return Cost(
        flops=heads * pairs(queries, keys, causal) * each,
        kind="attention_backward",
        work=float(heads * tiled_pairs(queries, keys, causal) * each),
        terms=_terms(heads, tiled_pairs(queries, keys, causal), queries, keys, width),
        workspace=op.threads * 4 * tile * (2 * min(KEY_TILE, keys) + 1) + _gradient_copy(op.inputs[0]),
    )


def _gradient_copy(g: TensorSpec) -> int:
    """The kernel wants the gradient of the output with heads beside each other: (batch, tokens, heads, width)."""
    b, h, n, e = strides_of(g)
    return copy_bytes(TensorSpec((g.shape[0], g.shape[2], g.shape[1], g.shape[3]), g.dtype, (b, n, h, e)))


def composite(op: OpSpec) -> Cost:
    """`scaled_dot_product_attention` as one op, or its plain form with the scores in memory.

    >>> from .spec import op
    >>> q = (1, 2, 4, 8)
    >>> composite(op("aten::scaled_dot_product_attention", [q] * 3, [q])).flops  # 2·16·(16 + 16 + 13)
    1440
    """
    return flash(op)


def multi_head(op: OpSpec) -> Cost:
    """`_native_multi_head_attention`: projections in and out, attention between them with the scores in memory.

    >>> from .spec import op
    >>> x, w = (1, 4, 8), (24, 8)
    >>> c = multi_head(op("aten::_native_multi_head_attention", [x, x, x, w, (24,), (8, 8), (8,)], [x], embed_dim=8,
    ...                   num_head=2))
    >>> c.flops  # 2·4·8·(24 + 8) and 2·16·(4·4 + 13)
    2976
    """
    x = op.inputs[0]
    batch, tokens, width = x.shape
    heads = op.attr("num_head", op.attr("num_heads", 1))
    scores = batch * heads * tokens * tokens
    head_width = width // heads
    projections = 2 * batch * tokens * width * 4 * width
    return Cost(
        flops=projections + scores * (4 * head_width + SOFTMAX_FLOPS + 1),
        kind="multi_head_attention",
        terms={
            **gemm_terms(batch * tokens, 4 * width, width),
            "pairs_width": float(scores * head_width),
            "pairs": float(scores),
        },
        workspace=(4 * x.numel + 2 * scores) * x.itemsize,
        calls=6,
    )


def encoder_layer(op: OpSpec) -> Cost:
    """`_transformer_encoder_layer_fwd`: attention, two norms, two adds and the feed-forward pair.

    >>> from .spec import op
    >>> x = (1, 4, 8)
    >>> ins = [x, (24, 8), (24,), (8, 8), (8,), (8,), (8,), (8,), (8,), (16, 8), (16,), (8, 16), (8,)]
    >>> encoder_layer(op("aten::_transformer_encoder_layer_fwd", ins, [x], num_heads=2, use_gelu=False)).flops
    5600
    """
    x = op.inputs[0]
    attention = multi_head(op)
    hidden = op.inputs[9].shape[0]
    rows = x.numel // x.shape[-1]
    feed_forward = 2 * 2 * rows * x.shape[-1] * hidden
    activation = rows * hidden * (TANH + 4 if op.attr("use_gelu", False) else 1)
    terms = dict(attention.terms)
    for key, value in gemm_terms(rows, hidden, 2 * x.shape[-1]).items():
        terms[key] += value
    terms |= {"n": float(x.numel), "gelu": float(rows * hidden) if op.attr("use_gelu", False) else 0.0}
    return Cost(
        flops=attention.flops + feed_forward + activation + x.numel * (2 * 7 + 2),
        kind="transformer_encoder_layer",
        terms=terms,
        workspace=attention.workspace + rows * hidden * x.itemsize,
        calls=12,
    )


FORMULAS: dict[str, Callable[[OpSpec], Cost]] = {
    **{f"aten::{name}": flash for name in (
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
        "_flash_attention_forward", "_efficient_attention_forward",
        "_scaled_dot_product_fused_attention_overrideable")},
    **{f"aten::{name}": flash_backward for name in (
        "_scaled_dot_product_flash_attention_for_cpu_backward", "_scaled_dot_product_flash_attention_backward",
        "_scaled_dot_product_efficient_attention_backward", "_scaled_dot_product_cudnn_attention_backward",
        "_flash_attention_backward", "_efficient_attention_backward",
        "_scaled_dot_product_fused_attention_overrideable_backward")},
    "aten::scaled_dot_product_attention": composite,
    "aten::_scaled_dot_product_attention_math": composite,
    "aten::_native_multi_head_attention": multi_head,
    "aten::_transformer_encoder_layer_fwd": encoder_layer,
}  # fmt: skip
