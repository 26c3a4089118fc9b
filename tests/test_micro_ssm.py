"""Calibration points of the state-space kernels: one priced op each, and every op that a traced model runs."""

from __future__ import annotations

import pytest
import torch

from costmodel.costs import OpSpec, TensorSpec, formula_for
from costmodel.costs.quantized import FORMULAS as QUANTIZED
from costmodel.costs.scan import FORMULAS as FUSED
from costmodel.measure.micro import _describe, hash_seed
from costmodel.measure.micro_ops import Shapes
from costmodel.measure.micro_ssm import GENERATORS

SEEDS = range(4)


def described(name: str, seed: int) -> dict:
    call = GENERATORS[name][0](Shapes(hash_seed(name, seed), torch.float32))
    with torch.no_grad():
        line = _describe(call)
    assert line is not None, f"{name} is not one op"
    return line


@pytest.mark.parametrize("name", GENERATORS)
def test_each_point_is_one_op_with_positive_terms(name: str) -> None:
    kinds = set()
    for seed in SEEDS:
        line = described(name, seed)
        inputs, outputs = (
            tuple(TensorSpec(tuple(shape), dtype, tuple(stride)) for shape, dtype, stride in line[way])
            for way in ("inputs", "outputs")
        )
        formula = formula_for(line["op"].split(".")[0])
        assert formula is not None
        cost = formula(OpSpec(line["op"].split(".")[0], inputs, outputs, line["attrs"]))
        assert cost.terms
        assert all(amount >= 0 for amount in cost.terms.values())
        assert len(line["weight"]) == len(inputs)
        kinds.add(cost.kind)
    assert len(kinds) == 1, f"{name} mixes {kinds}: each wants points of its own"


def test_every_op_with_a_formula_is_calibrated() -> None:
    seen = {described(name, seed)["op"].split(".")[0] for name in GENERATORS for seed in range(8)}
    assert seen >= QUANTIZED.keys() | FUSED.keys()
    assert all(formula_for(name) for name in seen)
