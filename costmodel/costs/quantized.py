"""Quantized state-space models: integer GEMMs, scans on int8 inputs, and whole blocks of one token.

Scratch sizes that the kernels and their price share are here: `kernels/` imports them. FLOPs are what the result needs:
2 a weight and row for a GEMM of any width. `work` is what is issued: rows in pairs for 16-bit activations, columns in
panels of 64, fp32 arithmetic at `FP32_IN_INT8` integer operations (a vector holds four times as many bytes as floats).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, prod
from typing import NamedTuple

from .scan import CHUNK, LANES, SILU, conv_flops, scan_flops, ssd_flops
from .spec import Cost, OpSpec, TensorSpec

__all__ = [
    "FORMULAS", "FP32_IN_INT8", "PANEL", "SSD_CHUNK", "hadamard_flops", "mamba2_step_bytes",
    "mamba_step_bytes", "scan_work_floats", "ssd_in_chunks", "ssd_work_floats",
]  # fmt: skip

PANEL = 64  # outputs of a GEMM in registers
SSD_CHUNK = 64  # tokens whose products are matrices in the scan of Mamba-2 on int8 inputs
FP32_IN_INT8 = 4
_QUANTIZE = 4  # scale, round, clamp twice
_SPLIT = 9  # |x|, max; scale, round; add, and, subtract, subtract, shift
_CONVERT = 2  # a byte to fp32 and its scale


def hadamard_flops(n: int) -> int:
    """Adds of H_n, n = m·2^k: k a value in butterflies, m - 1 across the runs.

    >>> hadamard_flops(8) == 8 * 3, hadamard_flops(1536) == 1536 * (7 + 11)
    (True, True)
    """
    for m in (1, 12, 20):
        run = n // m
        if n % m == 0 and run & (run - 1) == 0:
            return n * (int(log2(run)) + m - 1)
    return 0


def scan_work_floats(length: int, width: int, states: int) -> int:
    """Floats of scratch of `scan_quantized`: fp32 states (one panel for a step), B and C of a chunk."""
    return (width if length > 1 else LANES) * states + 2 * CHUNK * states


def ssd_in_chunks(length: int, p: int, states: int, int8: bool, rounded: bool) -> bool:
    """Whether the scan of Mamba-2 runs as matrix products: int8 inputs, a state that is rounded, whole vectors.

    >>> ssd_in_chunks(512, 64, 128, True, True), ssd_in_chunks(1, 64, 128, True, True)
    (True, False)
    """
    return length >= LANES and int8 and rounded and p % LANES == 0 and states % (2 * LANES) == 0


def ssd_work_floats(
    length: int, heads: int, p: int, groups: int, states: int, scale_rows: int, chunks: bool = False
) -> int:
    """Floats of scratch of `ssd_quantized`: inputs of a chunk, and the fp32 state or the scales in units.

    In chunks: steps and decays, C and B turned in 16 bits and their products; B in two forms; of one head weights,
    x twice, the state in 16 bits; sixteen channels of the state, and all of it in fp32.
    """
    if chunks:
        shared = 2 * SSD_CHUNK * heads + groups * (SSD_CHUNK * states + SSD_CHUNK**2) + SSD_CHUNK * states
        head = SSD_CHUNK**2 // 2 + 3 * SSD_CHUNK + SSD_CHUNK * p + states * p // 2 + p
        return shared + head + LANES * states + heads * p * states
    rest = heads * p * states if length > 1 else 2 * scale_rows * states
    return min(length, CHUNK) * (heads * p + 2 * groups * states + 2 * heads) + rest


def mamba_step_bytes(batch: int, d: int, width: int, rank: int, states: int, wide: bool) -> int:
    """Bytes of scratch of `mamba_step`, alignment included."""
    size = 4 if wide else 1
    rows = 2 * batch * max(d, width) + 4 * batch + 4 * max(width, d)
    values = size * batch * (4 * width + rank + 2 * states) + 4 * batch * width
    scan_part = 4 * LANES * states + 8 * CHUNK * states
    return rows + values + scan_part + 2 * batch * (max(d, width) + 4) + 12 * 64


def mamba2_step_bytes(
    batch: int, d: int, heads: int, p: int, groups: int, states: int, scale_rows: int, wide: bool
) -> int:
    """Bytes of scratch of `mamba2_step`, alignment included."""
    size, width, bc = 4 if wide else 1, heads * p, groups * states
    rows = 2 * batch * max(width, d) + 4 * batch + 4 * d
    values = size * batch * (3 * width + 4 * bc + heads) + 4 * batch * width
    scan_part = 4 * ssd_work_floats(1, heads, p, groups, states, scale_rows)
    return rows + values + scan_part + 2 * batch * (max(width, d) + 4) + 9 * 64


class _Gemm(NamedTuple):
    """One integer GEMM: rows of the output, outputs, inputs, passes over the weights' registers (2 for 16 bits)."""

    rows: int
    n: int
    k: int
    passes: int
    tile: int = 6  # rows of x that share one pass over a panel; what is left goes two at a time, or one (int4: one)

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.n * self.k

    @property
    def work(self) -> float:
        return 2.0 * self.passes * self.rows * (-(-self.n // PANEL) * PANEL) * self.k

    @property
    def tiles(self) -> int:
        """Passes over each panel of weights.

        >>> [_Gemm(rows, 64, 64, 1).tiles for rows in (1, 2, 6, 9)], _Gemm(9, 64, 64, 1, 4).tiles
        ([1, 1, 1, 3], 3)
        """
        whole, left = divmod(self.rows * self.passes, self.tile)
        return whole + left // 2 + left % 2 if self.tile > 4 else whole + -(-left // self.passes)

    @property
    def terms(self) -> dict[str, float]:
        """Sums in registers, loads of weights, loops over a panel, results, inputs; of one row, weights and results."""
        columns, rows = float(-(-self.n // PANEL) * PANEL), float(self.passes * self.rows)
        if self.rows == 1:
            return {"nk": columns * self.k, "n": columns}
        return {
            "mnk": rows * columns * self.k, "tnk": self.tiles * columns * self.k, "tn": self.tiles * columns,
            "mn": self.rows * columns, "mk": rows * self.k,
        }  # fmt: skip


def _gemm_of(op: OpSpec, tile: int) -> _Gemm:
    x, n = op.inputs[0], int(op.attr("columns"))
    passes = 2 if op.attr("pair", False) else 1
    k = x.shape[-1]
    return _Gemm(prod(x.shape) // k // passes, n, k, passes, tile)


def _gemm_int8(op: OpSpec) -> Cost:
    """x (…, K) int8, panels, row sums, scales: exact integer products, scaled on their way out.

    >>> from .spec import TensorSpec, op
    >>> x, w = TensorSpec((6, 768), "int8"), TensorSpec((48, 192, 4, 16, 4), "int8")
    >>> c = _gemm_int8(op("costmodel::gemm_int8", [x, w, (3072,), (3072,), (1,)], [(6, 3072)], columns=3072))
    >>> c.flops == 2 * 6 * 768 * 3072, c.kind, c.workspace
    (True, 'gemm_int8', 4608)
    """
    g = _gemm_of(op, 6)
    kind = "gemm_int8" if g.rows > 1 else "gemv_int8"
    scratch = g.rows * g.passes * (-(-g.k // 4) * 4)
    return Cost(flops=g.flops, kind=kind, work=g.work, unit="int8", terms=g.terms, workspace=scratch)


def _gemm_int4(op: OpSpec) -> Cost:
    """x (…, K) int8, panels of nibbles, group scales, scales; 16-bit x runs as two rows.

    >>> from .spec import TensorSpec, op
    >>> x, w = TensorSpec((6, 2, 768), "int8"), TensorSpec((48, 192, 2, 64), "uint8")
    >>> s = TensorSpec((48, 6, 64), "float16")
    >>> c = _gemm_int4(op("costmodel::gemm_int4", [x, w, s, (3072,), (6,)], [(6, 3072)], columns=3072, pair=True))
    >>> c.flops == 2 * 6 * 768 * 3072, c.work == 2 * c.flops, sum(c.bytes_read(op("", [w, s], [])))
    (True, True, 1216512)
    """
    g = _gemm_of(op, 4)
    groups = op.inputs[2].shape[1]
    kind = ("gemm_int4" if g.rows > 1 else "gemv_int4") + ("_wide" if g.passes == 2 else "")
    terms = g.terms | {"scales": float(g.tiles * groups * -(-g.n // PANEL) * PANEL)}
    return Cost(
        flops=g.flops, kind=kind, work=g.work, unit="int8", terms=terms, workspace=4 * g.rows * g.passes * groups
    )  # fmt: skip


def _rows(op: OpSpec, each: int, kind: str, workspace: int, adds: int = 0) -> Cost:
    """An op that goes through each row once; `adds` a value more where it is rotated."""
    n, width = op.inputs[0].numel, op.inputs[0].shape[-1]
    terms = {"n": float(n), "rows": float(n // width), "adds": float(adds * n)}
    return Cost(flops=(adds + each) * n, kind=kind, unit="fp32", terms=terms, workspace=workspace)


def _rotate(op: OpSpec, rounding: int, kind: str) -> Cost:
    """H y of each row, in a copy of it, then its quantization."""
    n = op.inputs[0].shape[-1]
    adds = hadamard_flops(n) // n if op.attr("rotate", True) else 0
    return _rows(op, rounding, kind, 4 * n, adds)


def _rotate_quantize(op: OpSpec) -> Cost:
    """
    >>> from .spec import op
    >>> _rotate_quantize(op("costmodel::rotate_quantize", [(2, 1536), (1,)], [(2, 1536)], rotate=True)).flops
    67584
    """
    return _rotate(op, _QUANTIZE, "quantize_rotate")


def _rotate_split(op: OpSpec) -> Cost:
    return _rotate(op, _SPLIT, "split_rotate")


def _norm_quantize(op: OpSpec) -> Cost:
    """Squares and their sum, two products, quantization.

    >>> from .spec import op
    >>> _norm_quantize(op("costmodel::rms_norm_quantize", [(2, 64), (64,), (1,)], [(2, 64)])).flops
    1024
    """
    return _rows(op, 2 + 2 + _QUANTIZE, "quantize_norm", 4 * op.inputs[0].shape[-1])


def _norm_split(op: OpSpec) -> Cost:
    return _rows(op, 2 + 2 + _SPLIT, "split_norm", 4 * op.inputs[0].shape[-1])


def _gated_norm(op: OpSpec) -> Cost:
    return _rows(op, _CONVERT + SILU + 1 + 4, "norm_gated", 0)


def _conv_silu(op: OpSpec) -> Cost:
    """x, weight (K, D), scale, bias, inverse, state: conversions of inputs and weights, taps, SiLU, quantization.

    >>> from .spec import TensorSpec, op
    >>> x, w, s = TensorSpec((1, 8, 16), "int8"), TensorSpec((4, 16), "int8"), TensorSpec((1, 3, 16), "int8")
    >>> _conv_silu(op("costmodel::conv_silu", [x, w, (16,), (16,), (16,), s], [x, s])).flops  # 128 · (8+12+8+2+4)
    4352
    """
    x, weight = op.inputs[0], op.inputs[1]
    int8, rows = x.dtype == "int8", x.numel // x.shape[-1]
    return Cost(
        flops=_conv_silu_flops(x.numel, weight.shape[0], int8), unit="fp32",
        kind="conv_causal_int8" if int8 else "conv_causal_wide",
        terms={"taps": float(x.numel * weight.shape[0]), "n": float(x.numel), "rows": float(rows)},
    )  # fmt: skip


def _conv_silu_flops(elements: int, taps: int, int8: bool) -> int:
    return conv_flops(elements, taps) + elements * (2 * taps + 2 + (_QUANTIZE if int8 else 0))


def _scan_quantized(op: OpSpec) -> Cost:
    """u, delta, B, C, z, …, state, state_scale: the fp32 scan, conversions of inputs, and of the state once a call.

    >>> from .spec import TensorSpec, op
    >>> u, bc = TensorSpec((1, 64, 32), "int8"), TensorSpec((1, 64, 16), "int8")
    >>> h = TensorSpec((1, 2, 16, 16), "float16")
    >>> rest = [(32,), (4,), (2, 16, 16), (32,), (32,)]
    >>> c = _scan_quantized(op("costmodel::scan_quantized", [u, u, bc, bc, u, *rest, h, (1,)], [(1, 64, 32), h]))
    >>> c.flops == scan_flops(64, 32, 16) + 64 * (3 * 32 + 2 * 16) * 2 + 512 * 2, c.workspace
    (True, 6144)
    """
    u, state = op.inputs[0], op.inputs[-2]
    batch, length, width = u.shape
    states = state.shape[2]
    tokens = batch * length
    return Cost(
        flops=scan_flops(tokens, width, states) + tokens * (3 * width + 2 * states) * _CONVERT + state.numel * _CONVERT,
        kind="scan_int8" if u.dtype == "int8" else "scan_wide", unit="fp32",
        terms={
            "states": float(tokens * width * states), "channels": float(tokens * width),
            "tokens": float(tokens * states), "kept": float(state.numel),
        },
        workspace=4 * scan_work_floats(length, width, states),
    )  # fmt: skip


def _ssd_quantized(op: OpSpec) -> Cost:
    """x (B, L, H·P), delta, B, C, …, b_scale (G,), …, state (B, H, P, N), state_scale, state_rows.

    A chunk of q tokens: h C and h' are q·D·N products each, the tokens before each one q·(q + 4) / 2 a
    channel, C·B 64·q.
    They are of 16 bits, each as long as two of bytes.
    """
    x, b_scale, state, state_scale = op.inputs[0], op.inputs[6], op.inputs[11], op.inputs[12]
    batch, length, width = x.shape
    _, heads, p, states = state.shape
    groups, tokens = b_scale.numel, batch * length
    converted = tokens * (width + heads + 2 * groups * states) * _CONVERT + state.numel * _CONVERT
    flops = ssd_flops(tokens, heads, p, states) + converted
    int8 = x.dtype == "int8"
    in_chunks = ssd_in_chunks(length, p, states, int8, state.dtype != "float32")
    workspace = 4 * ssd_work_floats(length, heads, p, groups, states, state_scale.shape[0], in_chunks)
    common = {"channels": float(tokens * width), "kept": float(state.numel)}
    if not in_chunks:
        terms = common | {
            "states": float(tokens * width * states), "tokens": float(tokens * (groups * states + heads)),
        }  # fmt: skip
        kind = "ssd_int8" if int8 else "ssd_wide"
        return Cost(flops=flops, unit="fp32", kind=kind, terms=terms, workspace=workspace)
    whole, left = divmod(length, SSD_CHUNK)
    square = batch * (whole * SSD_CHUNK**2 + left**2)
    products = 2 * tokens * width * states + width * (square + 4 * tokens) // 2 + tokens * SSD_CHUNK * groups * states
    terms = common | {
        "products": float(products), "weights": float(heads * square),
        "states": float(batch * (whole + (left > 0)) * width * states),
        "tokens": float(tokens * (groups * states + heads)),
    }  # fmt: skip
    fp32 = heads * square * 3 + converted
    return Cost(
        flops=flops, unit="int8", kind="ssd_chunks", work=4.0 * products + FP32_IN_INT8 * fp32, terms=terms,
        workspace=workspace,
    )  # fmt: skip


def _linear_f16(op: OpSpec) -> Cost:
    """x (…, K) fp32, fp16 panels (N/64, K, 64).

    >>> from .spec import TensorSpec, op
    >>> panels = TensorSpec((1, 32, 64), "float16")
    >>> _linear_f16(op("costmodel::linear_f16", [(1, 32), panels], [(1, 8)], columns=8)).flops
    512
    """
    x, k = op.inputs[0], op.inputs[0].shape[-1]
    g = _Gemm(x.numel // k, int(op.attr("columns")), k, 1)
    return Cost(flops=g.flops, kind="gemv_f16" if g.rows == 1 else "gemm_f16", work=g.work, unit="fp32", terms=g.terms)


def _embed_rows(op: OpSpec) -> Cost:
    """Rows of a table by ids: only those rows, and their scales, are read.

    >>> from .spec import TensorSpec, op
    >>> ids, table = TensorSpec((1, 2), "int64"), TensorSpec((9, 8), "uint8")
    >>> _embed_rows(op("costmodel::embed_rows", [ids, table, (9,)], [(1, 2, 16)])).read
    (16, 16, 8)
    """
    ids, table, _ = op.inputs
    scaled = table.dtype != "float16"
    row, n = table.shape[1] * table.itemsize, op.outputs[0].numel  # fp16 panels are (N/64, K, 64)
    return Cost(
        flops=n if scaled else 0, kind="gather_rows" if scaled else "gather_panels", unit="fp32",
        terms={"n": float(n), "rows": float(ids.numel)},
        read=(ids.nbytes, ids.numel * row, 4 * ids.numel if scaled else 0),
    )  # fmt: skip


def _block(op: OpSpec, name: str, gemms: Sequence[_Gemm], fp32: int, parts: dict[str, float], workspace: int) -> Cost:
    """A whole block of one token: its GEMMs, of 4 and of 8 bits, and its fp32 arithmetic in one op."""
    terms = dict.fromkeys(("mnk_4", "tnk_4", "mnk_8", "tnk_8"), 0.0) | parts
    for g in gemms:
        columns = float(-(-g.n // PANEL) * PANEL)
        bits = 4 if g.tile == 4 else 8
        terms[f"mnk_{bits}"] += (g.rows - 1) * columns * g.k
        terms[f"tnk_{bits}"] += g.tiles * columns * g.k
    return Cost(
        flops=sum(g.flops for g in gemms) + fp32, kind=_step_kind(op, name), unit="int8",
        work=sum(g.work for g in gemms) + FP32_IN_INT8 * fp32,
        terms={name: amount for name, amount in terms.items() if amount}, workspace=workspace,
    )  # fmt: skip


def _step_kind(op: OpSpec, name: str) -> str:
    weights = 4 if op.attr("int4", False) else 8
    return f"{name}_w{weights}a{16 if op.attr('wide', False) else 8}"


def _mamba_step(op: OpSpec) -> Cost:
    """residual (B, d), conv_state (B, K-1, D), ssm_state (B, D/16, N, 16), weights, as WEIGHTS of the kernel.

    One token of Mamba-130M in W8A8: in_proj, x_proj, dt_proj, out_proj, each weight a multiply-add.

    >>> from .spec import TensorSpec, op
    >>> h = TensorSpec((1, 96, 16, 16), "float16")
    >>> spec = op("costmodel::mamba_step", [(1, 768), (1, 3, 1536), h], [], rank=48)
    >>> weights = 768 * 3072 + 1536 * 80 + 48 * 1536 + 1536 * 768
    >>> c = _mamba_step(spec)
    >>> c.flops > 2 * weights, round(c.flops / (2 * weights), 2), c.kind
    (True, 1.07, 'mamba_step_w8a8')
    """
    residual, conv, state = op.inputs[:3]
    batch, d = residual.shape
    width, states, rank = conv.shape[2], state.shape[2], int(op.attr("rank"))
    wide = bool(op.attr("wide", False))
    passes = 2 if wide else 1
    shapes = ((2 * width, d), (rank + 2 * states, width), (width, rank), (d, width))
    outer = 4 if op.attr("int4", False) else 6
    gemms = [_Gemm(batch, n, k, passes, tile) for (n, k), tile in zip(shapes, (outer, 6, 6, outer))]
    rounding = _SPLIT if wide else _QUANTIZE
    adds = hadamard_flops(width) if op.attr("rotate", True) else 0
    fp32 = batch * (
        d * (4 + rounding) + _conv_silu_flops(width, conv.shape[1] + 1, not wide)
        + scan_flops(1, width, states) + (3 * width + 2 * states) * _CONVERT + width * states * _CONVERT
        + adds + width * rounding
    )  # fmt: skip
    parts = {
        "channels": float(batch * width), "adds": float(batch * adds), f"states_{state.dtype}": float(state.numel),
    }  # fmt: skip
    return _block(op, "mamba_step", gemms, fp32, parts, mamba_step_bytes(batch, d, width, rank, states, wide))


def _mamba2_step(op: OpSpec) -> Cost:
    """residual (B, d), conv_state (B, K-1, D + 2·G·N), ssm_state (B, H, P, N), weights, as WEIGHTS of the kernel."""
    residual, conv, state = op.inputs[:3]
    weights: tuple[TensorSpec, ...] = op.inputs[3:]
    batch, d = residual.shape
    _, heads, p, states = state.shape
    width, channels = heads * p, conv.shape[2]
    groups = weights[10].numel
    wide = bool(op.attr("wide", False))
    passes = 2 if wide else 1
    tile = 4 if op.attr("int4", False) else 6
    gemms = [_Gemm(batch, width + channels + heads, d, passes, tile), _Gemm(batch, d, width, passes, tile)]
    rounding = _SPLIT if wide else _QUANTIZE
    adds = hadamard_flops(width) if op.attr("rotate", True) else 0
    fp32 = batch * (
        d * (4 + rounding) + _conv_silu_flops(channels, conv.shape[1] + 1, not wide)
        + ssd_flops(1, heads, p, states) + channels * _CONVERT + width * states * _CONVERT
        + width * (_CONVERT + SILU + 1 + 4 + rounding) + adds
    )  # fmt: skip
    parts = {
        "channels": float(batch * channels), "adds": float(batch * adds), f"states_{state.dtype}": float(state.numel),
    }  # fmt: skip
    work = mamba2_step_bytes(batch, d, heads, p, groups, states, weights[15].shape[0], wide)
    return _block(op, "mamba2_step", gemms, fp32, parts, work)


FORMULAS = {
    "costmodel::gemm_int8": _gemm_int8,
    "costmodel::gemm_int8_quantized": _gemm_int8,
    "costmodel::gemm_int8_add": _gemm_int8,
    "costmodel::gemm_int4": _gemm_int4,
    "costmodel::gemm_int4_quantized": _gemm_int4,
    "costmodel::gemm_int4_add": _gemm_int4,
    "costmodel::rotate_quantize": _rotate_quantize,
    "costmodel::rotate_split": _rotate_split,
    "costmodel::rms_norm_quantize": _norm_quantize,
    "costmodel::rms_norm_split": _norm_split,
    "costmodel::gated_rms_norm": _gated_norm,
    "costmodel::conv_silu": _conv_silu,
    "costmodel::scan_quantized": _scan_quantized,
    "costmodel::ssd_quantized": _ssd_quantized,
    "costmodel::linear_f16": _linear_f16,
    "costmodel::embed_rows": _embed_rows,
    "costmodel::mamba_step": _mamba_step,
    "costmodel::mamba2_step": _mamba2_step,
}
