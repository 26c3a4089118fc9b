"""What a real step did, counted by looking at it: products by their modules' shapes, all ops, and what autograd kept.

None of it looks at a trace: shapes are those of the tensors that ran, found by hooks on the modules, by a dispatch
mode, and by `torch.autograd.graph.saved_tensors_hooks`. `validate --suite methods --part counts` holds predictions
against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..capture import Recorder
from ..costs import formula_for
from ..costs.lbp_wht import project_adds, reduced_rows, tile_count, unproject_adds
from ..costs.spec import OpSpec, TensorSpec
from ..graph import OpGraph
from ..models.step import Step

__all__ = ["PRODUCTS", "Counted", "count_step", "product_flops", "product_modules", "saved_bytes"]

# Ops of a linear layer or a convolution; what else runs under such a module (a bias' sum) is not counted.
PRODUCTS = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::convolution", "aten::convolution_backward",
    "costmodel::lbp_wht", "costmodel::lbp_wht_backward",
)  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """Counts of one real step.

    Attributes:
        product_flops: of linear layers and convolutions, forward and backward, from the shapes that hooks saw.
        flops: of all ops that were dispatched, on the shapes of the real tensors.
        saved_bytes: of distinct memory that autograd kept from the forward, less parameters, buffers and inputs.
    """

    product_flops: int
    flops: int
    saved_bytes: int


def count_step(step: Step) -> Counted:
    """Run `step` three times and count; a first run of it must have created the optimizer's state."""
    step.run()
    return Counted(_by_hooks(step), _by_dispatch(step), _kept_by_autograd(step))


def product_flops(graph: OpGraph, modules: set[str]) -> int:
    """What a trace says of the same products: FLOPs of the ops `PRODUCTS` under these modules."""
    total = 0
    for k, name in enumerate(graph.op_name):
        if graph.op_module[k] in modules and name.partition(".")[0] in PRODUCTS:
            total += _flops_of(graph, k)
    return total


def saved_bytes(graph: OpGraph) -> int:
    """What a trace says that autograd keeps: memory of the forward that the backward still finds."""
    return sum(b for b, role in zip(graph.storage_bytes, graph.storage_role) if role == "activation")


def product_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}


def _flops_of(graph: OpGraph, k: int) -> int:
    def spec(t: int) -> TensorSpec:
        return TensorSpec(graph.tensor_shape[t], graph.tensor_dtype[t], graph.tensor_stride[t])

    name = graph.op_name[k].partition(".")[0]
    formula = formula_for(name)
    if formula is None:
        return 0
    inputs, outputs = map(spec, graph.op_inputs[k]), map(spec, graph.op_outputs[k])
    return formula(OpSpec(name, tuple(inputs), tuple(outputs), graph.op_attrs[k])).flops


def _by_hooks(step: Step) -> int:
    total = 0

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        total += _module_flops(module, args[0], out)

    handles = [m.register_forward_hook(hook) for m in product_modules(step.model).values()]
    try:
        step.run()
    finally:
        for handle in handles:
            handle.remove()
    return total


def _module_flops(module: Any, x: Tensor, out: Tensor) -> int:
    """Forward, and the backward that its gradients ask for: two FLOPs a multiply-add, the adds of a transform."""
    weight: Tensor = module.weight
    # a linear layer's products are rows × Ci × Co; a convolution's are outputs × (Ci / groups) × window
    forward = 2 * out.numel() * prod(weight.shape[1:])
    to_x, to_w = out.requires_grad and x.requires_grad, out.requires_grad and weight.requires_grad
    tiling = getattr(module, "tiling", None)
    if tiling is None or not (module.training and weight.requires_grad and torch.is_grad_enabled()):
        return forward * (1 + to_x + to_w)
    outputs, inputs = weight.shape[:2]
    images, tiles = x.shape[0], x.shape[0] * tile_count(tiling.grid, tiling.tile)
    rows = reduced_rows(images, tiling.grid, tiling.prefix, tiling.tile, tiling.rank)
    adds = project_adds(tiling.tile, tiling.bases) * tiles * (inputs + outputs)
    adds += unproject_adds(tiling.tile, tiling.bases) * tiles * inputs * to_x
    bias = images * tiling.tokens * outputs if module.bias is not None and module.bias.requires_grad else 0
    return forward + 2 * rows * inputs * outputs * (to_x + to_w) + adds + bias


def _by_dispatch(step: Step) -> int:
    graph = OpGraph()
    recorder = Recorder(graph)
    with recorder:
        step.run()
    recorder.close()
    return sum(_flops_of(graph, k) for k in range(len(graph)))


def _kept_by_autograd(step: Step) -> int:
    leaves = (*step.model.parameters(), *step.model.buffers(), *step.args, *step.kwargs.values())
    known = {t.untyped_storage().data_ptr() for t in leaves if isinstance(t, Tensor)}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used twice

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(t)
        return t

    unpack: Callable[[Tensor], Tensor] = lambda t: t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        step.run()
    return sum(kept.values())
