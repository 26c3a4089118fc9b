"""Published against computed: the numbers of the Quamba and Quamba2 papers that METHODS.md §3-4 marks (P) or (D).

Sizes and states are those of the quantized modules, built on the meta device from the published dimensions. Latencies
are bytes over bandwidth (decode) and operations over peak (prefill) with **one** efficiency a precision, phase and
device (in prefill a unit that multiplies, fp16 or int8, since a precision has one cell), the one that makes the largest
error of its cells smallest; a note says how many cells it was fitted on, because on one cell it is no test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

import torch

from ..costs.scan import ssd_flops
from ..device import load_device
from .quamba.model import QuantizedMamba
from .quamba.recipe import BlockRecipe, Recipe, Sizes
from .quamba2 import make_recipe

__all__ = ["PUBLISHED_SIZES", "SIZES", "decode_cells", "fit_efficiency", "parameters", "rows"]

_MIB = 2**20
_COMMON: dict[str, Any] = {"taps": 4, "eps": 1e-5, "limit": (0.0, math.inf)}
SIZES = {
    "mamba-2.8b": Sizes(50280, 2560, 64, 5120, 16, rank=160, heads=0, groups=0, tied=True, **_COMMON),
    "mamba2-2.7b": Sizes(50288, 2560, 64, 5120, 128, rank=0, heads=80, groups=1, tied=True, **_COMMON),
    "mamba2-8b": Sizes(256000, 4096, 56, 8192, 128, rank=0, heads=128, groups=8, tied=False, **_COMMON),
}
_BITS = ("fp16", "w8a8", "w4a8", "w4a16")
PUBLISHED_SIZES = {  # Table 4, GB = MiB / 1000
    "mamba-2.8b": (5.3, 2.8, 1.5, 1.5),
    "mamba2-2.7b": (5.2, 2.7, 1.4, 1.4),
    "mamba2-8b": (15.7, 7.9, 4.0, 4.0),
}
_TPOT_A5000 = {  # Table 5 and Figure 11: ms a token by batch
    "fp16": {1: 22.73, 32: 35.74},
    "w8a8": {1: 12.61, 32: 23.83, 256: 79.65},
    "w4a8": {1: 7.43, 32: 15.05, 256: 85.26},
    "w4a16": {1: 7.58, 32: 20.58},
    "quamba": {1: 14.12},
}
_TPOT_ORIN = {"w4a8": {1: 79.91}, "w4a16": {1: 78.77}}
_TTFT_A5000 = {"fp16": 197.80, "quamba": 124.01, "w8a8": 122.33, "w4a8": 140.78, "w4a16": 209.19}  # 1024 tokens
_FITS_A5000 = {  # Figure 11; True: ran, False: out of memory
    ("fp16", 1): True, ("fp16", 32): True, ("fp16", 128): False, ("fp16", 256): False,
    ("w8a8", 1): True, ("w8a8", 32): True, ("w8a8", 256): True,
    ("w4a8", 1): True, ("w4a8", 32): True, ("w4a8", 256): True,
    ("w4a16", 1): True, ("w4a16", 32): True, ("w4a16", 256): False,
}  # fmt: skip
_FITS_ORIN = {"fp16": False, "quamba": False, "w8a8": False, "w4a8": True, "w4a16": True}
_SSD_MS = {"fp16": {256: 0.82, 512: 1.61}, "int8": {256: 0.76, 512: 1.47}}  # Table 3, batch 8


def rows() -> list[dict[str, Any]]:
    """One dict a number: paper, quantity, case, published, computed, unit, note."""
    return [*_sizes(), *_states(), *_fits(), *_tpot(), *_ttft(), *_kernel(), *_ratios()]


def _row(
    quantity: str, case: str, published: float, computed: float, unit: str, note: str = "", paper: str = "Quamba2"
) -> dict[str, Any]:
    return {
        "paper": paper, "quantity": quantity, "case": case, "published": published, "computed": computed, "unit": unit,
        "note": note,
    }  # fmt: skip


def parameters(sizes: Sizes) -> int:
    """Parameters of the float model.

    >>> parameters(SIZES["mamba-2.8b"]), round(parameters(SIZES["mamba2-8b"]) / 1e6, 1)
    (2768345600, 8237.0)
    """
    d, width, n = sizes.hidden, sizes.width, sizes.states
    conv = sizes.conv_width * (sizes.taps + 1)
    if sizes.is_mamba2:
        block = d * (width + sizes.conv_width + sizes.heads) + conv + 3 * sizes.heads + width + width * d + d
    else:
        block = d * 2 * width + conv + width * (sizes.rank + 2 * n) + width * (sizes.rank + 1) + width * (n + 1)
        block += width * d + d
    return sizes.layers * block + d + sizes.vocab * d * (1 if sizes.tied else 2)


@cache
def _built(model: str, bits: str) -> QuantizedMamba:
    """The quantized module on the meta device."""
    sizes = SIZES[model]
    if bits == "quamba":
        recipe = Recipe("quamba", (BlockRecipe(state="float16"),) * sizes.layers)
    else:
        recipe = make_recipe(sizes.layers, sizes.is_mamba2, bits)  # type: ignore[arg-type]  # one of Bits' values
    return QuantizedMamba(sizes, recipe, torch.empty(0, device="meta"))


def _weight_bytes(model: str, bits: str) -> int:
    if bits == "fp16":
        return 2 * parameters(SIZES[model])
    return sum(t.nbytes for t in _built(model, bits).state_dict().values())


def _embedding_bytes(model: str, bits: str) -> int:
    """Bytes of the table where it is not also the head: a token reads a row of it."""
    sizes = SIZES[model]
    if bits == "fp16":
        return 0 if sizes.tied else 2 * sizes.vocab * sizes.hidden
    built = _built(model, bits)
    return built.table.nbytes if built.head is not None or "head_weight" in built._buffers else 0


def _state_bytes(model: str, bits: str) -> int:
    """States of one sequence; in fp16 all K inputs of a convolution are kept, by our modules K - 1."""
    sizes = SIZES[model]
    if bits == "fp16":
        return 2 * sizes.layers * (sizes.width * sizes.states + sizes.conv_width * sizes.taps)
    return _built(model, bits).init_cache(1).nbytes


def _sizes() -> Iterator[dict[str, Any]]:
    for model, published in PUBLISHED_SIZES.items():
        for bits, gigabytes in zip(_BITS, published):
            computed = round(_weight_bytes(model, bits) / _MIB / 1000, 1)
            note = "parameters · 2" if bits == "fp16" else "state_dict on the meta device"
            yield _row("size", f"{model} {bits}", gigabytes, computed, "GB", note)
    computed = round(_weight_bytes("mamba-2.8b", "quamba") / _MIB / 1000, 2)
    yield _row("size", "mamba-2.8b quamba w8a8", 2.76, computed, "GB", "int8 blocks, fp16 embedding", "Quamba")


def _states() -> Iterator[dict[str, Any]]:
    built, sizes = _built("mamba2-8b", "w8a8"), SIZES["mamba2-8b"]
    cache_ = built.init_cache(1)
    ssm, conv = sum(t.numel() for t in cache_.ssm), sum(t.numel() for t in cache_.conv)
    yield _row("ssm state", "mamba2-8b int8", 58_720_256, ssm, "elements", "a sequence, any context")
    note = f"ours keep K - 1 inputs, {conv:,} elements; the paper's K"
    whole = conv * sizes.taps // (sizes.taps - 1)
    yield _row("conv state", "mamba2-8b", 2_293_760, whole, "elements", note)
    yield _row("ssm state", "mamba2-8b fp16", 117.4, round(2 * ssm / 1e6, 1), "MB")
    yield _row("ssm state", "mamba2-8b int8", 58.7, round(ssm / 1e6, 1), "MB")


def _room(device: str) -> float:
    """Bytes that a model and its states can have: the GPU's, or the board's, less what the system keeps."""
    profile = load_device(device)
    gpu = profile.gpu
    if gpu is not None and gpu.bytes is not None:
        return gpu.bytes.value - gpu.context_bytes.value
    return profile.memory.bytes.value - profile.memory.reserved_bytes.value


def _fits() -> Iterator[dict[str, Any]]:
    def fits(device: str, bits: str, batch: int) -> float:
        return float(_weight_bytes("mamba2-8b", bits) + batch * _state_bytes("mamba2-8b", bits) <= _room(device))

    for (bits, batch), ran in _FITS_A5000.items():
        case = f"mamba2-8b {bits} batch {batch} rtx-a5000"
        yield _row("fits", case, float(ran), fits("rtx-a5000", bits, batch), "", "weights + batch · states")
    for bits, ran in _FITS_ORIN.items():
        case = f"mamba2-8b {bits} batch 1 jetson-orin-nano-8g"
        paper = "Quamba" if bits == "quamba" else "Quamba2"
        yield _row("fits", case, float(ran), fits("jetson-orin-nano-8g", bits, 1), "", "weights + states", paper)


def _bandwidth(device: str) -> float:
    profile = load_device(device)
    gpu = profile.gpu
    return float(profile.memory.read_bytes_per_s.value if gpu is None else gpu.dram_bytes_per_s.value)


def _decode_bytes(model: str, bits: str, batch: int) -> float:
    """What a token moves: weights without an embedding table of their own, and the states both ways."""
    weights = _weight_bytes(model, bits) - _embedding_bytes(model, bits)
    return float(weights + 2 * batch * _state_bytes(model, bits))


def fit_efficiency(bound: Mapping[Any, float], measured: Mapping[Any, float]) -> float:
    """The one efficiency that makes the largest relative error of bound / efficiency smallest (in the logarithm).

    >>> round(fit_efficiency({1: 1.0, 2: 1.0}, {1: 2.0, 2: 4.5}), 4)  # between 1/2 and 1/4.5
    0.3333
    """
    shares = [math.log(bound[k] / measured[k]) for k in measured]
    return math.exp((max(shares) + min(shares)) / 2)


def decode_cells() -> dict[tuple[str, str], dict[int, tuple[float, float]]]:
    """Of each device and precision, by batch: ms a token at the whole bandwidth, and as published."""
    return {
        (device, bits): {
            batch: (_decode_bytes("mamba2-8b", bits, batch) / _bandwidth(device) * 1e3, published)
            for batch, published in cells.items()
        }
        for device, table in (("rtx-a5000", _TPOT_A5000), ("jetson-orin-nano-8g", _TPOT_ORIN))
        for bits, cells in table.items()
    }


def _tpot() -> Iterator[dict[str, Any]]:
    for (device, bits), cells in decode_cells().items():
        share = fit_efficiency({b: bound for b, (bound, _) in cells.items()}, {b: ms for b, (_, ms) in cells.items()})
        for batch, (bound, published) in cells.items():
            note = f"bytes / bandwidth / {share:.3f}, fitted on {len(cells)} cell{'s' * (len(cells) > 1)}"
            case = f"mamba2-8b {bits} batch {batch} {device}"
            yield _row("TPOT", case, published, round(bound / share, 2), "ms", note)


def _prefill_flops(tokens: int) -> float:
    """2 · block parameters · tokens, and the head on one token."""
    sizes = SIZES["mamba2-8b"]
    ends = 2 * sizes.vocab * sizes.hidden + sizes.hidden
    return 2.0 * (parameters(sizes) - ends) * tokens + 2.0 * sizes.vocab * sizes.hidden


def _ttft() -> Iterator[dict[str, Any]]:
    gpu = load_device("rtx-a5000").gpu
    assert gpu is not None
    units: dict[Literal["fp16", "int8"], tuple[str, ...]] = {
        "fp16": ("fp16", "w4a16"),
        "int8": ("quamba", "w8a8", "w4a8"),
    }
    for unit, precisions in units.items():  # what a precision multiplies in: its weights are widened before
        bound = _prefill_flops(1024) / gpu.flops_per_s[unit].value * 1e3
        share = fit_efficiency(dict.fromkeys(precisions, bound), {b: _TTFT_A5000[b] for b in precisions})
        note = f"operations / {unit} peak / {share:.3f}, fitted on {len(precisions)} cells, one a precision"
        for bits in precisions:
            case = f"mamba2-8b {bits} 1024 tokens rtx-a5000"
            yield _row("TTFT", case, _TTFT_A5000[bits], round(bound / share, 2), "ms", note)
    layers = SIZES["mamba2-8b"].layers
    wide = sum(b.wide for b in make_recipe(layers, True, "w4ax").blocks)
    mixed = _TTFT_A5000["w4a8"] + wide / layers * (_TTFT_A5000["w4a16"] - _TTFT_A5000["w4a8"])
    note = f"blocks add: {wide} of {layers} at the published W4A16, the others at the published W4A8"
    yield _row("TTFT", "mamba2-8b w4ax 1024 tokens rtx-a5000", 158.36, round(mixed, 2), "ms", note)


def _kernel() -> Iterator[dict[str, Any]]:
    sizes = SIZES["mamba2-8b"]
    for bits, cells in _SSD_MS.items():
        work = {n: float(ssd_flops(8 * n, sizes.heads, sizes.width // sizes.heads, sizes.states)) for n in cells}
        share = fit_efficiency(work, cells)
        for n, published in cells.items():
            note = "operations of our scan over one fitted rate, 2 cells"
            yield _row(
                "SSD kernel", f"mamba2-8b {bits} batch 8 L={n}", published, round(work[n] / share, 3), "ms", note
            )


def _ratios() -> Iterator[dict[str, Any]]:
    model = "mamba-2.8b"
    ratio = _decode_bytes(model, "fp16", 1) / _decode_bytes(model, "quamba", 1)
    note = "ratio of bytes: both at the same share of the bandwidth, nothing fitted"
    yield _row(
        "decode speed-up", f"{model} quamba w8a8 jetson-orin-nano-8g", 1.72, round(ratio, 2), "×", note, "Quamba"
    )
    ratio = _decode_bytes("mamba2-8b", "fp16", 1) / _decode_bytes("mamba2-8b", "w4a8", 1)
    yield _row("decode speed-up", "mamba2-8b w4a8 rtx-a5000", round(22.73 / 7.43, 2), round(ratio, 2), "×", note)
    memory = _weight_bytes("mamba2-8b", "fp16") / _weight_bytes("mamba2-8b", "w4a8")
    yield _row("memory saving", "mamba2-8b w4a8", 4.0, round(memory, 1), "×", "weights; abstract: 4×")
