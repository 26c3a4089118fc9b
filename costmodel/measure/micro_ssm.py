"""Isolated calls of the kernels of state-space models, fused and quantized, for calibration (see `micro_ops`).

Sizes are random; what a model fixes is fixed here (its inner width is twice the hidden one, 16 or 128 states, four
taps), and weights lie in huge pages as in a quantized model. Values are ones where a kernel does not look at them:
random bytes of a large weight take longer than the op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..costs.quantized import PANEL
from ..kernels import Weights, conv_int8, gemm_int4, gemm_int8, hadamard, linear_f16, rms_norm, scan_int8, ssd_int8
from ..kernels import causal_conv1d as causal
from ..kernels import mamba2_step as step2
from ..kernels import mamba_step as step1
from ..kernels import selective_scan as scan
from ..kernels import ssd_scan as ssd
from ..kernels.pages import place
from .micro_ops import Call, Shapes

__all__ = ["GENERATORS"]

_GROUP = 128  # weights of K that share a 4-bit scale
_TAPS = 4
_EPS = 1e-5
_MOST_OPERATIONS = 3e9  # of a GEMM: some ten milliseconds
_MOST_WEIGHTS = 3.5e7


def _ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def _small(*shape: int) -> Tensor:
    """fp32 whose products neither grow nor fade to denormals, which some units compute slowly."""
    return torch.full(shape, 0.01)


def _bytes(*shape: int) -> Tensor:
    return _ones(*shape, dtype=torch.int8)


def _inner(s: Shapes, low: float, high: float) -> int:
    """A width that has a Hadamard matrix."""
    sizes = [m << k for m in (1, 12, 20) for k in range(4, 15) if low <= m << k <= high and (m << k) % _GROUP == 0]
    return int(s.pick(*sizes))


# Integer GEMMs


def _weights(n: int, k: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Panels, their row sums or group scales, and the scales of the columns."""
    blocks = -(-n // PANEL)
    columns = _small(blocks * PANEL)
    if bits == 4:
        groups = _ones(blocks, k // _GROUP, PANEL, dtype=torch.float16)
        return torch.full((blocks, -(-k // 4), 2, 64), 0x79, dtype=torch.uint8), groups, columns
    panels = _bytes(blocks, -(-k // 4), PANEL // 16, 16, 4)
    return panels, torch.full((blocks * PANEL,), k, dtype=torch.int32), columns


def _kept(func: Any, args: tuple[Any, ...], weights: tuple[int, ...], layers: bool = False) -> Call:
    """A call whose weights are placed as a quantized model places them; `layers`: after other weights, a token's."""
    flat = [t for i in weights for t in (args[i] if isinstance(args[i], list) else [args[i]])]

    def again() -> tuple[Any, ...]:
        moved, placed = list(args), iter(place([t.clone() for t in flat]))
        for i in weights:
            moved[i] = Weights([next(placed) for _ in args[i]]) if isinstance(args[i], list) else next(placed)
        return tuple(moved)

    return Call(func, again(), weights, again if layers else None)


def _gemm(m: int, n: int, k: int, bits: int, pair: bool, form: str) -> Call:
    """`form` is what becomes of a sum: float, quantized to int8, or add (to a residual)."""
    shape = (1, m, 2, k) if pair else (1, m, k)
    rows = _small(m) if pair else _small(1)
    module, suffix = {4: gemm_int4, 8: gemm_int8}[bits], "" if form == "float" else f"_{form}"
    args: tuple[Any, ...] = (_bytes(*shape), *_weights(n, k, bits), rows, n, pair)
    if form == "add":
        args = (*args, _ones(1, m, n))
    return _kept(getattr(module, f"gemm_int{bits}{suffix}"), args, (1, 2, 3), layers=m == 1)


def _gemm_sizes(s: Shapes, multiple: int, rows: tuple[float, float]) -> tuple[int, int, int]:
    while True:
        m, n, k = s.size(*rows), s.size(64, 8192, s.pick(16, 64)), s.size(64, 5120, multiple)
        if 2 * m * n * k < _MOST_OPERATIONS and n * k < _MOST_WEIGHTS:
            return m, n, k


def int8_gemm(s: Shapes) -> Call:
    pair = bool(s.pick(False, False, True))
    return _gemm(*_gemm_sizes(s, 16, (2, 1024)), 8, pair, s.pick("add", "float" if pair else "quantized"))


def int4_gemm(s: Shapes) -> Call:
    return _gemm(*_gemm_sizes(s, _GROUP, (2, 768)), 4, False, s.pick("float", "quantized", "add"))


def int4_gemm_wide(s: Shapes) -> Call:
    return _gemm(*_gemm_sizes(s, _GROUP, (2, 512)), 4, True, s.pick("float", "add"))


def _head(s: Shapes, multiple: int = 16) -> tuple[int, int, int]:
    while True:
        n, k = s.size(256, 60_000, 16), s.size(64, 4096, multiple)
        if n * k < 5e7:
            return 1, n, k


def int8_gemv(s: Shapes) -> Call:
    return _gemm(*_head(s), 8, False, "float")


def int4_gemv(s: Shapes) -> Call:
    return _gemm(*_head(s, _GROUP), 4, False, "float")


def int4_gemv_wide(s: Shapes) -> Call:
    return _gemm(*_head(s, _GROUP), 4, True, "float")


def _linear_f16(m: int, n: int, k: int) -> Call:
    panels = _ones(-(-n // PANEL), k, PANEL, dtype=torch.float16)
    return _kept(linear_f16.linear_f16, (_small(1, m, k), panels, n), (1,), layers=m == 1)


def f16_gemv(s: Shapes) -> Call:
    return _linear_f16(*_head(s))


def f16_gemm(s: Shapes) -> Call:
    while True:
        m, n, k = s.size(2, 256), s.size(256, 50_000, 16), s.size(64, 2048, 16)
        if 2 * m * n * k < 2e9 and n * k < 2e7:
            return _linear_f16(m, n, k)


def gather(s: Shapes) -> Call:
    vocab, width, tokens = s.size(256, 50_000), s.size(64, 2560, 64), s.size(1, 1024)
    ids = torch.from_numpy(s.rng.integers(0, vocab, (1, tokens)))
    table, scale = s.pick((torch.uint8, 2), (torch.int8, 1))
    return _kept(linear_f16.embed_rows, (ids, _ones(vocab, width // scale, dtype=table), _ones(vocab)), (1, 2))


def gather_f16(s: Shapes) -> Call:
    blocks, width, tokens = s.size(4, 800), s.size(64, 2560, 64), s.size(1, 1024)
    ids = torch.from_numpy(s.rng.integers(0, blocks * PANEL, (1, tokens)))
    return _kept(linear_f16.embed_rows, (ids, _ones(blocks, width, PANEL, dtype=torch.float16), _ones(1)), (1,))


# Rows


def _tokens(s: Shapes, width: int, most: float = 3e6) -> tuple[int, int]:
    """Batch and length of rows of `width` values."""
    while True:
        batch, length = int(s.pick(1, 1, 1, 2, 4)), s.size(1, 1024)
        if batch * length * width <= most:
            return batch, length


def rotate(s: Shapes) -> Call:
    width = _inner(s, 128, 10240)
    shape = (*_tokens(s, width), width)
    return Call(hadamard.rotate_quantize, (_small(*shape), _ones(1), bool(s.pick(True, True, False))), (1,))


def rotate_wide(s: Shapes) -> Call:
    width = _inner(s, 128, 10240)
    rotated = bool(s.pick(True, False))
    width = width if rotated else s.size(16, 4096, 16)
    return Call(hadamard.rotate_split, (_small(*_tokens(s, width), width), rotated))


def norm(s: Shapes) -> Call:
    width = s.size(64, 4096, 16)
    return Call(rms_norm.rms_norm_quantize, (_small(*_tokens(s, width), width), _ones(width), _ones(1), _EPS), (1, 2))


def norm_wide(s: Shapes) -> Call:
    width = s.size(64, 4096, 16)
    return Call(rms_norm.rms_norm_split, (_small(*_tokens(s, width), width), _ones(width), _EPS), (1,))


def norm_gated(s: Shapes) -> Call:
    groups, part = s.pick(1, 1, 2, 8), s.size(64, 4096, 16)
    width = groups * part
    batch, length = _tokens(s, width)
    z = _bytes(batch, length, 2 * width) if s.pick(True, False) else _small(batch, length, 2 * width)
    args = (_small(batch, length, width), z[..., :width], _ones(1), _ones(width), _EPS, groups)
    return Call(rms_norm.gated_rms_norm, args, (2, 3))


# Convolutions and scans


def _conv_silu(s: Shapes, int8: bool) -> Call:
    width = s.size(128, 8192, 16)
    batch, length = _tokens(s, width)
    x = _bytes(batch, length, 2 * width) if int8 else _small(batch, length, 2 * width)
    state = torch.zeros(batch, _TAPS - 1, width, dtype=torch.int8 if int8 else torch.float16)
    vectors = (_small(width), _small(width), _ones(width))
    return Call(conv_int8.conv_silu, (x[..., :width], _bytes(_TAPS, width), *vectors, state), (1, 2, 3, 4, 5))


def conv_quantized(s: Shapes) -> Call:
    return _conv_silu(s, True)


def conv_wide(s: Shapes) -> Call:
    return _conv_silu(s, False)


def _values(int8: bool, *shape: int) -> Tensor:
    return _bytes(*shape) if int8 else _small(*shape)


def _state(batch: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.zeros(batch, *shape, dtype=dtype)


def _scan_quantized(s: Shapes, int8: bool) -> Call:
    width, states = s.size(64, 8192, 64), 16
    batch, length = _tokens(s, width, 2e6)
    xz = _values(int8, batch, length, 2 * width)
    x, z = xz.chunk(2, -1)
    rank = s.size(16, 160, 16)
    _, b, c = _values(int8, batch, length, rank + 2 * states).split([rank, states, states], -1)
    blocks = width // 16
    kind = s.pick(torch.int8, torch.float16) if int8 else torch.float16
    scale = _ones(blocks, states, 16) if kind == torch.int8 else _ones(1)
    weights = (_small(width), _small(4), -_ones(blocks, states, 16), _ones(width), _small(width))
    args = (
        x,
        _values(int8, batch, length, width),
        b,
        c,
        z,
        *weights,
        _state(batch, kind, blocks, states, 16),
        scale,
    )
    return Call(scan_int8.scan_quantized, args, tuple(range(5, 12)))


def scan_quantized(s: Shapes) -> Call:
    return _scan_quantized(s, True)


def scan_wide(s: Shapes) -> Call:
    return _scan_quantized(s, False)


def _heads(s: Shapes) -> tuple[int, int, int, int]:
    """Heads, their width, groups and states."""
    groups = int(s.pick(1, 1, 1, 2, 8))
    return groups * s.size(1, 128 / groups), int(s.pick(32, 64, 64)), groups, int(s.pick(64, 128, 128))


def _ssd_quantized(s: Shapes, int8: bool) -> Call:
    while True:
        heads, p, groups, states = _heads(s)
        batch, length = _tokens(s, heads * p, 1e6)
        if batch * length * heads * p * states < (2.5e8 if int8 else 1e8):
            break
    width, bc = heads * p, groups * states
    x, b, c = _values(int8, batch, length, width + 2 * bc).split([width, bc, bc], -1)
    delta = _values(int8, batch, length, width + heads)[..., width:]
    # chunks, or with a state in fp32 the recurrence
    kind = s.pick(torch.int8, torch.float16, torch.int8, torch.float16, torch.float32) if int8 else torch.float16
    rows = 16 * groups if kind == torch.int8 else 1
    scales = (_small(width), _small(1), _small(groups), _small(groups), -_ones(heads), _ones(heads), _small(heads))
    numbers = torch.arange(width // 4, dtype=torch.int32) * rows // max(width // 4, 1)
    state = _state(batch, kind, heads, p, states)
    args = (x, delta, b, c, *scales, state, _ones(rows, states), numbers.to(torch.int32), 0.0, float("inf"))
    return Call(ssd_int8.ssd_quantized, args, tuple(range(4, 14)))


def ssd_quantized(s: Shapes) -> Call:
    return _ssd_quantized(s, True)


def ssd_wide(s: Shapes) -> Call:
    return _ssd_quantized(s, False)


# One token through a block


def _named(names: tuple[str, ...], values: dict[str, Tensor]) -> list[Tensor]:
    return [values[name] for name in names]


def _linears(bits: int, shapes: dict[str, tuple[int, int]], always_8: tuple[str, ...] = ()) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, (n, k) in shapes.items():
        parts = _weights(n, k, 8 if name in always_8 else bits)
        found |= dict(zip((f"{name}_w", f"{name}_aux", f"{name}_scale"), parts))
    return found


def _mamba_step(s: Shapes, bits: int, wide: bool) -> Call:
    batch, width, states = int(s.pick(1, 1, 1, 1, 2, 4)), _inner(s, 256, 5120), 16
    d = width // 2 if width // 2 % _GROUP == 0 else width
    rank, blocks = max(16, round(d / 256) * 16), width // 16
    kind = torch.float16 if wide else s.pick(torch.float16, torch.int8)
    shapes = {"in": (2 * width, d), "x": (rank + 2 * states, width), "dt": (width, rank), "out": (d, width)}
    vectors = {name: _small(width) for name in ("conv_scale", "conv_bias", "u_scale", "dt_bias", "D")}
    values = _linears(bits, shapes, ("x", "dt")) | vectors | {
        "norm": _ones(d), "conv_w": _bytes(_TAPS, width), "conv_inverse": _ones(width), "scales": _small(4),
        "a2": -_ones(blocks, states, 16), "statics": _ones(4),
        "state_scale": _ones(blocks, states, 16) if kind == torch.int8 else _ones(1),
    }  # fmt: skip
    conv = torch.zeros(batch, _TAPS - 1, width, dtype=torch.float16 if wide else torch.int8)
    state = _state(batch, kind, blocks, states, 16)
    rotated = bool(bits == 4 or s.pick(True, True, False))
    args = (_small(batch, d), conv, state, _named(step1.WEIGHTS, values), rank, _EPS, bits == 4, wide, rotated)
    return _kept(step1.mamba_step, args, (1, 2, 3), layers=True)


def step_w8a8(s: Shapes) -> Call:
    return _mamba_step(s, 8, False)


def step_w4a8(s: Shapes) -> Call:
    return _mamba_step(s, 4, False)


def step_w4a16(s: Shapes) -> Call:
    return _mamba_step(s, 4, True)


def _mamba2_step(s: Shapes, bits: int, wide: bool) -> Call:
    batch, width, states = int(s.pick(1, 1, 1, 1, 2, 4)), _inner(s, 256, 5120), int(s.pick(64, 128, 128))
    d = width // 2 if width // 2 % _GROUP == 0 else width
    p = int(s.pick(32, 64, 64))
    heads = width // p
    groups = int(s.pick(1, 1, 1, 2 if heads % 2 == 0 else 1))
    channels = width + 2 * groups * states
    kind = torch.float16 if wide else s.pick(torch.float16, torch.int8, torch.int8)
    rows = 16 * groups if kind == torch.int8 else 1
    shapes = {"in": (width + channels + heads, d), "out": (d, width)}
    vectors = {name: _small(channels) for name in ("conv_scale", "conv_bias", "conv_inverse")}
    numbers = torch.arange(width // 4) * rows // (width // 4)
    values = _linears(bits, shapes) | vectors | {
        "norm": _ones(d), "conv_w": _bytes(_TAPS, channels), "x_scale": _small(width), "delta_scale": _small(1),
        "b_scale": _small(groups), "c_scale": _small(groups), "a2": -_ones(heads), "D": _ones(heads),
        "dt_bias": _small(heads), "state_scale": _ones(rows, states), "state_rows": numbers.to(torch.int32),
        "gate_norm": _ones(width), "statics": _ones(3),
    }  # fmt: skip
    conv = torch.zeros(batch, _TAPS - 1, channels, dtype=torch.float16 if wide else torch.int8)
    state = _state(batch, kind, heads, p, states)
    rotated = bool(bits == 4 or s.pick(True, True, False))
    weights = _named(step2.WEIGHTS, values)
    args = (_small(batch, d), conv, state, weights, _EPS, 0.0, float("inf"), bits == 4, wide, rotated)
    return _kept(step2.mamba2_step, args, (1, 2, 3), layers=True)


def step2_w8a8(s: Shapes) -> Call:
    return _mamba2_step(s, 8, False)


def step2_w4a8(s: Shapes) -> Call:
    return _mamba2_step(s, 4, False)


def step2_w4a16(s: Shapes) -> Call:
    return _mamba2_step(s, 4, True)


# fp32, forward and backward


def _scan_inputs(s: Shapes, most: float) -> tuple[tuple[Any, ...], int, int, int]:
    width, states = s.size(64, 6144, 64), 16
    batch, length = _tokens(s, width, most)
    x, z = _small(batch, length, 2 * width).chunk(2, -1)
    u, delta = _small(batch, length, width), torch.zeros_like(x)
    rank = s.size(16, 160, 16)
    _, b, c = _small(batch, length, rank + 2 * states).split([rank, states, states], -1)
    return (u, delta, -_ones(width, states), b, c, _ones(width), z, _small(width)), batch, width, states


def fused_scan(s: Shapes) -> Call:
    inputs, batch, width, states = _scan_inputs(s, 2e6)
    h0 = _small(batch, width // 16, states, 16) if s.pick(True, False) else None
    return Call(scan._FORWARD, (*inputs, h0, bool(s.pick(True, False))), (2, 5, 7))


def fused_scan_backward(s: Shapes) -> Call:
    inputs = _scan_inputs(s, 1e6)[0]
    y, _, saved = scan._FORWARD(*inputs, None, True)
    return Call(scan._BACKWARD, (torch.ones_like(y), None, *inputs, saved), (4, 7, 9))


def _ssd_inputs(s: Shapes, most: float) -> tuple[Any, ...]:
    while True:
        heads, p, groups, states = _heads(s)
        batch, length = _tokens(s, heads * p, 1e6)
        if batch * length * heads * p * states < most:
            break
    width, bc = heads * p, groups * states
    x, b, c = _small(batch, length, width + 2 * bc).split([width, bc, bc], -1)
    delta = torch.zeros(batch, length, heads)
    b, c = (t.unflatten(-1, (groups, states)) for t in (b, c))
    return x.unflatten(-1, (heads, p)), delta, -_ones(heads), b, c, _ones(heads), _small(heads)


def fused_ssd(s: Shapes) -> Call:
    inputs = _ssd_inputs(s, 1e8)
    (batch, _, *heads), states = inputs[0].shape, inputs[3].shape[3]
    h0 = _small(batch, *heads, states) if s.pick(True, False) else None
    return Call(ssd._FORWARD, (*inputs, h0, 0.0, float("inf"), bool(s.pick(True, False))), (2, 5, 6))


def fused_ssd_backward(s: Shapes) -> Call:
    inputs = _ssd_inputs(s, 4e7)
    y, _, saved = ssd._FORWARD(*inputs, None, 0.0, float("inf"), True)
    args = (torch.ones_like(y), None, *inputs, saved, 0.0, float("inf"))
    return Call(ssd._BACKWARD, args, (4, 7, 8))


def _causal(s: Shapes) -> tuple[Any, ...]:
    width = s.size(128, 8192, 16)
    batch, length = _tokens(s, width)
    state = _small(batch, _TAPS - 1, width) if s.pick(True, False) else None
    return _small(batch, length, 2 * width)[..., :width], _small(width, _TAPS), _small(width), state


def causal_conv(s: Shapes) -> Call:
    return Call(causal._FORWARD, _causal(s), (1, 2))


def causal_conv_backward(s: Shapes) -> Call:
    x, weight, bias, state = _causal(s)
    return Call(causal._BACKWARD, (torch.ones(x.shape), x, weight, bias, state), (2, 3))


_INFER = (
    int4_gemm, int4_gemm_wide, int8_gemv, int4_gemv, int4_gemv_wide, f16_gemv, f16_gemm, gather, gather_f16, rotate,
    rotate_wide, norm, norm_wide, norm_gated, conv_quantized, conv_wide, scan_quantized, scan_wide, ssd_quantized,
    ssd_wide, fused_scan, fused_ssd, causal_conv,
)  # fmt: skip
_STEPS = (step_w8a8, step_w4a8, step_w4a16, step2_w8a8, step2_w4a8, step2_w4a16)
# As in `micro_ops`: share of the points, and whether only training runs it.
GENERATORS: dict[str, tuple[Callable[[Shapes], Call], float, bool]] = {
    "int8_gemm": (int8_gemm, 1.0, False),
    **{f.__name__: (f, 0.7, False) for f in _INFER},
    **{f.__name__: (f, 1.5, False) for f in _STEPS},
    **{f.__name__: (f, 0.7, True) for f in (fused_scan_backward, fused_ssd_backward, causal_conv_backward)},
}
