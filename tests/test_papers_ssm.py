"""Published against computed for the quantized Mambas: sizes, states and the memory map exactly, latencies by cell."""

from __future__ import annotations

import pytest

from costmodel.methods.papers_ssm import SIZES, fit_efficiency, parameters, rows

from .test_quamba2 import published

TABLE = rows()


def of(quantity):
    return [r for r in TABLE if r["quantity"] == quantity]


@pytest.mark.parametrize("quantity", ["size", "ssm state", "conv state", "fits"])
def test_exact_to_the_printed_digit(quantity):
    cases = of(quantity)
    assert cases
    assert {r["case"]: r["computed"] for r in cases} == {r["case"]: r["published"] for r in cases}


def test_the_memory_map_has_both_answers():
    assert {r["published"] for r in of("fits")} == {0.0, 1.0}
    assert len(of("fits")) == 18


@pytest.mark.parametrize(("quantity", "limit"), [("TPOT", 0.15), ("TTFT", 0.15), ("SSD kernel", 0.05)])
def test_every_latency_cell(quantity, limit):
    for r in of(quantity):
        assert r["computed"] == pytest.approx(r["published"], rel=limit), r


def test_unfitted_ratios():
    for r in of("decode speed-up"):
        assert r["computed"] == pytest.approx(r["published"], rel=0.25), r


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_those_of_the_transformers_model(name):
    assert parameters(SIZES[name]) == sum(p.numel() for p in published(name).parameters())


def test_the_efficiency_is_the_minimax():
    bound, measured = {1: 1.0, 2: 2.0, 3: 3.0}, {1: 1.5, 2: 4.4, 3: 5.0}
    best = fit_efficiency(bound, measured)

    def worst(share):
        return max(max(bound[k] / share / measured[k], measured[k] * share / bound[k]) for k in bound)

    assert all(worst(best) <= worst(best * f) for f in (0.97, 0.99, 1.01, 1.03))


def test_rows_are_complete():
    keys = {"paper", "quantity", "case", "published", "computed", "unit", "note"}
    assert all(set(r) == keys and r["computed"] is not None for r in TABLE)
    assert {r["paper"] for r in TABLE} == {"Quamba", "Quamba2"}
