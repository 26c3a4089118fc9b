"""Published against computed: every number of the LBP-WHT and MobileTL papers that METHODS.md §1-2 marks (P) or (D).

What is computed comes from modules that run and from the formulas that price them; a number that cannot be computed
here (an accuracy that needs data and weights that are not to be had) is listed with None and the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..costs import formula_for
from ..costs.lbp_wht import lbp_wht_backward, naive_transform_adds, project_adds, unproject_adds
from ..costs.matmul import mm
from ..costs.mobiletl import se_scale_backward
from ..costs.spec import op
from ..kernels.wht import Tiling, select_bases
from .lbp_wht import LbpLinear
from .mobiletl import KeptNorm, OneBit, ShiftNorm
from .mobiletl import apply as mobiletl
from .paper_nets import LAST_STAGE, InvertedResidual, MobileNetV3Small
from .structure import freeze_before

__all__ = ["rows", "saved_bytes", "stored_bytes"]

_SIDE, _TOKENS = 7, 49
_MIB, _MB, _MFLOP = 2**20, 1e6, 1e6
_UNKNOWN_ELEMENTWISE = "the paper's count of elementwise operations is not published"


def rows() -> list[dict[str, Any]]:
    """One dict a number: paper, quantity, case, published, computed (or None), unit, note."""
    return [*_lbp_wht_rows(), *_mobiletl_rows()]


def _row(
    paper: str, quantity: str, case: str, published: float, computed: float | None, unit: str, note: str = ""
) -> dict[str, Any]:
    return {
        "paper": paper, "quantity": quantity, "case": case, "published": published, "computed": computed,
        "unit": unit, "note": note,
    }  # fmt: skip


def saved_bytes(run: Callable[[], Any], *known: Tensor) -> int:
    """Bytes of the storages that autograd keeps for backward while `run` runs, those of `known` left out."""
    ignored = {t.untyped_storage().data_ptr() for t in known}
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in ignored:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        alive = run()  # noqa: F841  # addresses are unique only while what is saved lives
        return sum(kept.values())


# ---- LBP-WHT -----------------------------------------------------------------------------------------------------


def _tiling(order: int) -> Tiling:
    return Tiling((_SIDE, _SIDE), 0, 8, select_bases(order, "l1", 8), "zero")


def _exact_flops() -> int:
    """Both products of the backward of each layer."""
    total = 0
    for inputs, outputs in LAST_STAGE:
        g, x, w = (_TOKENS, outputs), (_TOKENS, inputs), (outputs, inputs)
        total += mm(op("aten::mm", [g, w], [x])).flops + mm(op("aten::mm", [g[::-1], x], [w])).flops
    return total


def _reduced_flops(order: int) -> int:
    """What the kernels run for both gradients of each layer, transforms (that of x, in the forward, too) included."""
    t = _tiling(order)
    total = 0
    for inputs, outputs in LAST_STAGE:
        shapes = [(1, _TOKENS, outputs), (t.rows(1), inputs), (outputs, inputs)]
        spec = op("costmodel::lbp_wht_backward", shapes, [], **t._asdict(), mask=[True, True, False])
        total += lbp_wht_backward(spec).flops + project_adds(t.tile, t.bases) * inputs
    return total


def _transform_adds(order: int) -> int:
    """Adds of the transforms among `_reduced_flops`: x and g_y projected, g_x un-projected, one tile a layer."""
    bases = _tiling(order).bases
    forth, back = project_adds(8, bases), unproject_adds(8, bases)
    return sum(forth * (inputs + outputs) + back * inputs for inputs, outputs in LAST_STAGE)


def _saved_mib(order: int | None) -> float:
    """What the layers themselves keep of one image, run here."""
    total = 0
    for inputs, outputs in LAST_STAGE:
        layer = LbpLinear(inputs, outputs) if order else nn.Linear(inputs, outputs)
        if isinstance(layer, LbpLinear) and order:
            layer.tiling = _tiling(order)
        x = torch.zeros(1, _TOKENS, inputs, requires_grad=True)
        total += saved_bytes(partial(layer, x), *layer.parameters())
    return total / _MIB


def _lbp_wht_rows() -> Iterator[dict[str, Any]]:
    case = "EfficientFormer-L1 last stage, linear layers, one image"
    exact = _exact_flops() / _MFLOP
    yield _row("LBP-WHT", "backward", f"{case}, exact", 1484, exact, "MFLOP")
    yield _row("LBP-WHT", "saved activation", f"{case}, exact", 1.95, _saved_mib(None), "MiB", "printed as MB")
    yield _row("LBP-WHT", "saved activation", f"{case}, o=2", 0.12, _saved_mib(2), "MiB", "printed as MB")
    for order, published in ((2, 95.0), (8, 1227.0)):
        run, rank = _reduced_flops(order), _tiling(order).rank
        products = run - _transform_adds(order)
        counts = {
            "products alone": products,
            "transform counted by masks over the 49 tokens": products + _naive(rank, _TOKENS),
            "transform counted by masks over the padded 64": products + _naive(rank, 64),
            "transform as whole butterflies": products + sum(2 * 3 * 64 * (2 * i + o) for i, o in LAST_STAGE),
            "what ours runs": run,
        }
        for how, flops in counts.items():
            note = "does not close: no count of the transform gives it" if order == 8 else ""
            yield _row("LBP-WHT", "backward", f"{case}, o={order}, {how}", published, flops / _MFLOP, "MFLOP", note)
    for order, rank in zip((1, 2, 3, 4, 6, 8, 9, 10, 12, 15), (1, 3, 6, 10, 21, 36, 43, 49, 58, 64)):
        yield _row("LBP-WHT", "bases", f"LP_L1-{order}", rank, len(select_bases(order, "l1", 8)), "")
    why = "needs ImageNet weights and the paper's five data sets"
    for name, accuracy in (("exact", 79.28), ("o=2", 75.61), ("o=8", 79.34)):
        yield _row("LBP-WHT", "mean accuracy", f"EfficientFormer-L1 last stage, {name}", accuracy, None, "%", why)
    yield _row("LBP-WHT", "accuracy over the best baseline", "EfficientFormer-L1, CIFAR-100", 10.4, None, "%", why)
    yield _row("LBP-WHT", "FLOPs under the best baseline", "EfficientFormer-L1, CIFAR-100", 9, None, "MFLOP", why)


def _naive(rank: int, tokens: int) -> int:
    return sum(naive_transform_adds(rank, tokens, inputs, outputs) for inputs, outputs in LAST_STAGE)


# ---- MobileTL ----------------------------------------------------------------------------------------------------

# FLOPs an element, forward. The paper does not say; these close its four rows to the printed digit, as do others.
_NORM, _STATISTICS, _HARDSWISH, _RELU, _SCALE, _RESIDUAL = 3, 3, 6, 1, 1, 1


def _calls(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Every module without children, or with a rule of its own, with its input and output in one forward."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    kinds = (InvertedResidual, ShiftNorm)
    handles = [
        m.register_forward_hook(lambda m, args, out: seen.append((m, args[0], out)))
        for m in model.modules()
        if not list(m.children()) or isinstance(m, kinds) or _is_squeeze(m)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return seen


def _is_squeeze(module: nn.Module) -> bool:
    return type(module).__name__ == "SqueezeExcite"


def stored_bytes(model: nn.Module, x: Tensor) -> float:
    """What a training step stores by METHODS.md's rules (fractions of a byte kept), vanilla and MobileTL alike.

    In a squeeze-and-excitation the input of each of its four small layers counts in fp32: that is what closes the
    published 53.3 %.
    """
    total = 0.0
    for module, a, out in _calls(model, x):
        n = a.numel()
        vector = a.dim() == 4 and a.shape[2:] == (1, 1)
        trains = any(p.requires_grad for p in module.parameters(recurse=False))
        match module:
            case nn.Conv2d() | nn.Linear() | KeptNorm() | nn.BatchNorm2d() if trains:
                total += 4 * n
            case ShiftNorm() if module.act and out.requires_grad:
                total += n / 8
            case OneBit():
                total += n / 8
            case nn.ReLU() | nn.Hardsigmoid() if vector and out.requires_grad:
                total += 4 * n
            case nn.ReLU() if out.requires_grad:
                total += n / 8
            case nn.ReLU6() if out.requires_grad:
                total += 2 * n / 8
            case nn.Hardswish() if out.requires_grad:
                total += 4 * n
            case _ if _is_squeeze(module) and out.requires_grad:
                total += 4 * n
                if hasattr(module, "act"):  # ours has no module for the gate: its input is the expanded vector
                    total += 4 * a.shape[0] * a.shape[1]
    return total


def _forward_flops(model: nn.Module, x: Tensor) -> int:
    total = 0
    for module, a, out in _calls(model, x):
        n = a.numel()
        match module:
            case nn.Conv2d() | nn.Linear():
                total += 2 * out.numel() * module.weight[0].numel()
            case nn.BatchNorm2d():
                total += (_NORM + _STATISTICS * module.weight.requires_grad) * n
            case nn.Hardswish():
                total += _HARDSWISH * n
            case nn.ReLU():
                total += _RELU * n
            case InvertedResidual() if module.residual:
                total += _RESIDUAL * n
            case _ if _is_squeeze(module):
                total += _SCALE * n
    return total


def _backward_flops(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """4 a multiply-add of what trains, less the input gradient of the first layer that does; and what the formulas of
    `costs/` count of the norms, activations and products of squeeze-and-excitation behind it."""
    products, elementwise, first = 0, 0, True
    for module, a, out in _calls(model, x):
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.requires_grad:
            forward = 2 * out.numel() * module.weight[0].numel()
            products += forward if first else 2 * forward
            first = False
        elif not first:
            elementwise += _elementwise_backward(module, tuple(a.shape))
    return products, elementwise


def _elementwise_backward(module: nn.Module, shape: tuple[int, ...]) -> int:
    match module:
        case nn.BatchNorm2d():
            name, inputs = "native_batch_norm_backward", [shape, shape, shape[1:2]]
        case nn.Hardswish():
            name, inputs = "hardswish_backward", [shape, shape]
        case nn.ReLU():
            name, inputs = "threshold_backward", [shape, shape]
        case _ if _is_squeeze(module):
            vector = (*shape[:2], 1, 1)
            spec = op("costmodel::se_scale_backward", [shape, shape, vector], [shape, vector])
            return se_scale_backward(spec).flops
        case _:
            return 0
    formula = formula_for(f"aten::{name}")
    return formula(op(f"aten::{name}", inputs, [shape], train=True)).flops if formula else 0


def _tuned(model: nn.Module, blocks: int | None) -> nn.Module:
    """A copy of which the last blocks and what follows train, vanilla; None is all."""
    tuned = copy.deepcopy(model).train()
    if blocks is not None:
        freeze_before(tuned, f"blocks.{len(MobileNetV3Small.ROWS) - blocks}")
    return tuned


def _mobiletl_rows() -> Iterator[dict[str, Any]]:
    yield from _block_rows()
    model, x = MobileNetV3Small(10), torch.zeros(8, 3, 224, 224)
    published = {
        1: (None, 968.8, 284.3),
        3: (23.1, 972.1, 655.4),
        5: (35.9, 975.0, 902.7),
        None: (129.7, 1000.6, 1934.9),
    }
    derived = {1: 8.71, 3: 23.07, 5: 35.83, None: 129.72}
    flops: dict[int | None, float] = {}
    for blocks, (stored, forward, backward) in published.items():
        tuned, name = _tuned(model, blocks), f"MobileNetV3-Small, 10 classes, 224², batch 8, FT-{blocks or 'All'}"
        computed = stored_bytes(tuned, x) / _MB
        if stored is not None:
            yield _row("MobileTL", "stored", name, stored, computed, "MB")
        yield _row("MobileTL", "stored (derived)", name, derived[blocks], computed, "MB")
        run_forward, (products, elementwise) = _forward_flops(tuned, x) / _MFLOP, _backward_flops(tuned, x)
        run_backward = (products + elementwise) / _MFLOP
        yield _row(
            "MobileTL", "forward", name, forward, run_forward, "MFLOP", "counts an element chosen to close the rows"
        )
        note = f"products {products / _MFLOP:.1f}, the rest by our formulas; does not close: {_UNKNOWN_ELEMENTWISE}"
        yield _row("MobileTL", "backward", name, backward, run_backward, "MFLOP", note)
        flops[blocks] = run_forward + run_backward
        if blocks is not None:
            ours = mobiletl(copy.deepcopy(model), x, blocks=blocks).train()
            saved = saved_bytes(partial(ours, x), *ours.parameters(), *ours.buffers()) / _MB
            rule = stored_bytes(ours, x) / _MB
            yield _row(
                "MobileTL",
                "stored, MobileTL",
                name,
                rule,
                saved,
                "MB",
                "published: our count; computed: what autograd kept",
            )
    total = 2 * sum(
        o.numel() * m.weight[0].numel() for m, _, o in _calls(model, x) if isinstance(m, nn.Conv2d | nn.Linear)
    )
    yield _row("MobileTL", "forward, products", "MobileNetV3-Small, batch 8", 887.95, total / _MFLOP, "MFLOP")
    note = f"does not close as its backward does not: {_UNKNOWN_ELEMENTWISE}"
    yield _row("MobileTL", "FLOPs saved", "MobileNetV3-Small, FT-5", 36, 100 * (1 - flops[5] / flops[None]), "%", note)
    why = "read off a plot; what its memory counts is not published, accuracy needs ImageNet weights and CIFAR-10"
    plot = {"FT-1": (94.8, 32.2), "FT-2": (95.5, 32.9), "FT-3": (95.8, 33.7), "FT-4": (96.1, 38.9),
            "vanilla FT-3": (95.4, 40.5), "TinyTL-B": (93.7, 31.7), "TinyTL-L": (96.1, 37.0)}  # fmt: skip
    for name, (accuracy, memory) in plot.items():
        yield _row("MobileTL", "accuracy", f"ProxylessNAS-Mobile, CIFAR-10, {name}", accuracy, None, "%", why)
        yield _row("MobileTL", "training memory", f"ProxylessNAS-Mobile, CIFAR-10, {name}", memory, None, "MB", why)
    yield _row("MobileTL", "accuracy lost", "MobileNetV3-Small, CIFAR-10, FT-5", 0.6, None, "%", why)


def _block_rows() -> Iterator[dict[str, Any]]:
    published = {"V2": (nn.ReLU6, False, 4.03, 2.16, 46.3, 46), "V3": (nn.Hardswish, True, 6.67, 3.11, 53.3, 53)}
    for name, (act, squeeze, vanilla, tuned, saving, headline) in published.items():
        case = f"one MobileNet{name} block, 96 channels, expansion 6, 392 positions"
        net, x = nn.Sequential(InvertedResidual(96, 576, 96, 3, 1, act, squeeze)), torch.zeros(8, 96, 7, 7)
        before = stored_bytes(net, x) / _MB
        ours = mobiletl(copy.deepcopy(net), x, blocks=1).train()
        after = stored_bytes(ours, x) / _MB
        yield _row("MobileTL", "stored", f"{case}, vanilla", vanilla, before, "MB")
        yield _row("MobileTL", "stored", f"{case}, MobileTL", tuned, after, "MB")
        saved = saved_bytes(partial(ours, x + 0), *ours.parameters(), *ours.buffers()) / _MB
        note = "what autograd kept of the block that runs: SE's hidden vector once, not before and after its ReLU"
        yield _row("MobileTL", "stored", f"{case}, MobileTL, measured", tuned, saved, "MB", note if squeeze else "")
        yield _row("MobileTL", "memory saved", case, saving, 100 * (1 - after / before), "%")
        yield _row("MobileTL", "memory saved, headline", f"MobileNet{name}", headline, 100 * (1 - after / before), "%")
