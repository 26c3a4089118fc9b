"""FLOPs of products against torch's own counter, to the digit, and their classes by layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from costmodel.costs import formula_for, op
from costmodel.costs.matmul import gemm_kind, gemm_terms, padded_flops
from costmodel.costs.spec import TensorSpec

aten = torch.ops.aten
SIZE = st.integers(1, 40)
quick = settings(max_examples=60, deadline=None)


def counted(run, *tensors: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        run(*tensors)
    return counter.get_total_flops()


def flops(name: str, inputs, outputs, **attrs) -> int:
    return formula_for(name)(op(name, inputs, outputs, **attrs)).flops


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


@quick
@given(SIZE, SIZE, SIZE, SIZE)
def test_products_equal_torchs_counter(b, m, n, k):
    assert flops("aten::mm", [(m, k), (k, n)], [(m, n)]) == counted(aten.mm, meta(m, k), meta(k, n))
    ours = flops("aten::addmm", [(n,), (m, k), (k, n)], [(m, n)])
    assert ours == counted(aten.addmm, meta(n), meta(m, k), meta(k, n))
    ours = flops("aten::bmm", [(b, m, k), (b, k, n)], [(b, m, n)])
    assert ours == counted(aten.bmm, meta(b, m, k), meta(b, k, n))
    ours = flops("aten::baddbmm", [(b, m, n), (b, m, k), (b, k, n)], [(b, m, n)])
    assert ours == counted(aten.baddbmm, meta(b, m, n), meta(b, m, k), meta(b, k, n))


@quick
@given(SIZE, SIZE, SIZE, SIZE)
def test_composites_cost_what_they_become(b, m, n, k):
    rows = flops("aten::linear", [(b, m, k), (n, k), (n,)], [(b, m, n)])
    assert rows == flops("aten::addmm", [(n,), (b * m, k), (k, n)], [(b * m, n)])
    broadcast = flops("aten::matmul", [(b, 2, m, k), (b, 1, k, n)], [(b, 2, m, n)])
    assert broadcast == 2 * flops("aten::bmm", [(b, m, k), (b, k, n)], [(b, m, n)])
    assert flops("aten::matmul", [(b, m, k), (k, n)], [(b, m, n)]) == rows
    assert flops("aten::matmul", [(k,), (k,)], [()]) == 2 * k


@quick
@given(SIZE, SIZE, SIZE)
def test_a_linear_layer_trains_at_three_times_its_forward(m, n, k):
    forward = flops("aten::linear", [(m, k), (n, k)], [(m, n)])
    x, w = torch.empty(m, k, device="meta", requires_grad=True), torch.empty(n, k, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.linear(x, w).sum().backward()
    assert counter.get_total_flops() == 3 * forward
    name, outputs = "aten::linear_backward", [(m, k), (n, k)]
    backward = flops(name, [(m, k), (m, n), (n, k)], outputs, output_mask=[True, True, False])
    assert backward == 2 * forward


@quick
@given(SIZE, SIZE, SIZE, SIZE)
def test_work_and_panels_are_never_less_than_the_flops(b, m, n, k):
    terms = gemm_terms(m, n, k, b)
    assert padded_flops(m, n, k, b) >= 2 * terms["mnk"]
    assert terms["mnk"] <= terms["mnk_lanes"] <= terms["mnk_panels"] * 2
    assert terms["mnk"] <= terms["mnk_panels"]


def test_classes_follow_the_layout():
    a, b = TensorSpec((32, 64)), TensorSpec((64, 48))
    at, bt = TensorSpec((32, 64), stride=(1, 32)), TensorSpec((64, 48), stride=(1, 64))
    assert [gemm_kind(32, 48, x, y) for x in (a, at) for y in (b, bt)] == ["gemm_nn", "gemm_nt", "gemm_tn", "gemm_tt"]
    assert gemm_kind(16, 48, a, b) == "gemm_skinny"
    assert gemm_kind(1, 48, a, b) == "gemv"
    assert gemm_kind(32, 48, a, b, batch=2) == "bmm"


@pytest.mark.parametrize("name", ["mm", "addmm", "bmm", "baddbmm", "mv", "dot", "linear", "matmul", "addr", "outer"])
def test_every_product_has_a_formula(name):
    assert formula_for(f"aten::{name}") is not None
