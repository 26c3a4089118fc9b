"""Calibration points of the state-space kernels: one priced op each, and every op that a traced model runs."""

from __future__ import annotations

import pytest
import torch

from costmodel.costs import formula_for
from costmodel.costs.quantized import FORMULAS as QUANTIZED
from costmodel.costs.scan import FORMULAS as FUSED
from costmodel.measure.micro import _describe, hash_seed
from costmodel.measure.micro_ops import Shapes
from costmodel.measure.micro_ssm import GENERATORS
from costmodel.opfit import points_of

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
        timed = {**line, "cold_output": False, "hot": [1.0, 1.0], "warm": [1.0], "cold": [1.0]}
        (point,), gaps = points_of([timed], 1)
        assert not gaps
        assert point.cost.terms
        assert all(amount >= 0 for amount in point.cost.terms.values())
        assert len(line["weight"]) == len(line["inputs"])
        kinds.add(point.cost.kind)
    assert len(kinds) == 1, f"{name} mixes {kinds}: each wants points of its own"


def test_every_op_with_a_formula_is_calibrated() -> None:
    seen = {described(name, seed)["op"].split(".")[0] for name in GENERATORS for seed in range(8)}
    assert seen >= QUANTIZED.keys() | FUSED.keys()
    assert all(formula_for(name) for name in seen)
