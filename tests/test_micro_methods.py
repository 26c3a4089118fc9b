"""Calibration points of the training methods' kernels: each generator makes one traced op that has a formula."""

import pytest
import torch

from costmodel.costs import OpSpec, TensorSpec, formula_for
from costmodel.measure.micro import _describe
from costmodel.measure.micro_methods import GENERATORS
from costmodel.measure.micro_ops import Shapes


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_makes_one_priced_op(name):
    """Its operands are as many as the call's tensors, so that `weights` marks the right ones."""
    with torch.no_grad():
        made = next(  # a small one of the first seeds: the op is run
            described
            for seed in range(20)
            if (call := GENERATORS[name][0](Shapes(seed, torch.float32)))
            and sum(a.numel() for a in call.args if isinstance(a, torch.Tensor)) < 3_000_000
            and (described := _describe(call))
        )
    assert made["op"].startswith("costmodel::")
    assert formula_for(made["op"]) is not None
    assert len(made["weight"]) == len(made["inputs"])
    inputs, outputs = ([TensorSpec(tuple(s), d, tuple(st)) for s, d, st in made[way]] for way in ("inputs", "outputs"))
    cost = formula_for(made["op"])(OpSpec(made["op"], inputs, outputs, made["attrs"]))
    assert cost.flops > 0
    assert all(amount >= 0 for amount in cost.terms.values())
    assert sum(cost.terms.values()) > 0


def test_every_op_of_the_methods_has_points():
    from costmodel.costs import lbp_wht, mobiletl

    made = {_name(generator) for generator, _, _ in GENERATORS.values()}
    assert made == set(lbp_wht.FORMULAS) | set(mobiletl.FORMULAS)


def _name(generator):
    with torch.no_grad():
        call = generator(Shapes(0, torch.float32))
    return call.func.op._schema.name
