"""The prices of the state-space ops: every op has one, workspaces are what torch's allocator sees, bytes add up."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import costmodel as cm
from costmodel.costs import formula_for
from costmodel.kernels import register_all
from costmodel.methods import fused_scan, naive_w8a8, quamba

from .test_quamba import CALIBRATION, HELD_OUT, mamba, mamba2

PREFIXES = ("selective_scan", "ssd_", "causal_conv1d", "gemm_int", "rotate_", "rms_norm_", "gated_", "conv_silu")
PREFIXES += ("scan_quantized", "linear_f16", "embed_rows", "mamba")


def test_every_op_has_a_formula():
    register_all()
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("costmodel::")]
    ours = [n for n in names if n.removeprefix("costmodel::").startswith(PREFIXES)]
    assert len(ours) >= 24
    assert [n for n in ours if formula_for(n) is None] == []


@pytest.mark.parametrize("make", [mamba, mamba2])
def test_quantized_models_are_priced_without_a_gap(make):
    model = naive_w8a8.apply(make(), CALIBRATION)
    for mode in ("prefill", "decode"):
        graph = cm.capture(model, (HELD_OUT,), mode=mode)
        mine = [n for n in graph.op_name if n.startswith("costmodel::")]
        assert mine
        assert all(formula_for(n) for n in mine)
        if mode == "decode":
            assert sum("_step" in n for n in mine) == 2


def test_fused_training_is_priced_without_a_gap():
    model = fused_scan.apply(mamba())
    graph = cm.capture(model, {"input_ids": HELD_OUT, "labels": HELD_OUT}, mode="train")
    names = [n.split(".")[0] for n in graph.op_name]
    assert names.count("costmodel::selective_scan_backward") == 2
    assert all(formula_for(n) for n in names if n.startswith("costmodel::"))


def allocated_peak(function):
    """Peak bytes that torch's CPU allocator handed out during a call, above what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        function()
    live = peak = 0
    for event in p.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def test_decode_reads_each_weight_once():
    model = quamba.apply(mamba(), CALIBRATION)
    graph = cm.capture(model, (HELD_OUT[:1],), mode="decode")
    stored = sum(t.nbytes for n, t in model.state_dict().items() if "panels" in n)
    from costmodel.lower import lower

    lowered = lower(graph)
    step = [c for c in lowered.costs if c.kind.startswith("mamba_step")]
    assert len(step) == 2
    assert sum(c.terms["tnk_8"] for c in step) == pytest.approx(stored, rel=0.01)


@pytest.mark.parametrize("name", ["selective_scan", "gemm_int8", "rotate_quantize", "scan_quantized"])
def test_workspace_is_what_the_allocator_gives(name):
    from .test_gemm_int8 import int8_case
    from .test_scan_int8 import inputs
    from .test_selective_scan import scan_inputs

    if name == "selective_scan":
        args = ([t.float() for t in scan_inputs(2, 100, 128, 16)], None, False)
        args = (*args[0], *args[1:])
    elif name == "gemm_int8":
        x, _, panels, rowsum, scale = int8_case(200, 70, 512)
        args = (x, panels, rowsum, scale, torch.ones(1), 70, False)
    elif name == "rotate_quantize":
        args = (torch.randn(64, 512), torch.ones(1), True)
    else:
        sequences, small, _ = inputs()
        state = torch.zeros(2, 3, 16, 16)
        args = (*sequences, *small, state, state)
    op = getattr(torch.ops.costmodel, name).default
    op(*args)
    kept = []
    peak = allocated_peak(lambda: kept.append(op(*args)))
    from costmodel.costs import OpSpec, TensorSpec

    def spec(t):
        return TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch."), tuple(t.stride()))

    outputs = kept[0] if isinstance(kept[0], tuple) else (kept[0],)
    names = [a.name for a in op._schema.arguments]
    attrs = {n: v for n, v in zip(names, args) if not isinstance(v, torch.Tensor) and v is not None}
    tensors = tuple(spec(t) for t in args if isinstance(t, torch.Tensor))
    cost = formula_for(f"costmodel::{name}")(OpSpec(name, tensors, tuple(map(spec, outputs)), attrs))
    assert peak == pytest.approx(sum(t.nbytes for t in outputs) + cost.workspace, rel=0.01, abs=512)
