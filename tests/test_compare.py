"""Comparisons: differences add up to the difference, in op, module and phase; where the peak moved."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from costmodel.compare import WAITING, compare
from costmodel.device import load_device
from costmodel.estimate import estimate

from . import report_cases as cases


def test_an_estimate_does_not_differ_from_itself() -> None:
    c = compare(cases.train_estimate(), cases.train_estimate())
    assert c.delta_s == 0
    assert c.ratio == 1
    assert not c.dearer
    assert not c.cheaper
    assert c.peak[0] == c.peak[1]
    assert c.overlap


@pytest.mark.parametrize("by", ["by_op", "by_module", "by_phase"])
def test_changes_add_up_to_the_difference(by: str) -> None:
    c = cases.comparison()
    changes = getattr(c, by)
    assert sum(x.delta_s for x in changes) == pytest.approx(c.delta_s, rel=1e-9)
    for side, e in enumerate((c.a, c.b)):
        assert sum(x.latency_s[side] for x in changes) == pytest.approx(e.latency_s.point, rel=1e-9)
        assert sum(x.count[side] for x in changes) == len(e.graph)
        assert sum(x.flops[side] for x in changes) == pytest.approx(e.flops)
    sizes = [abs(x.delta_s) for x in changes]
    assert sizes == sorted(sizes, reverse=True)


def test_swapping_the_sides_swaps_the_signs() -> None:
    c, d = cases.comparison(), compare(cases.gpu_estimate(), cases.train_estimate())
    assert d.delta_s == pytest.approx(-c.delta_s)
    assert {x.key for x in c.dearer} == {x.key for x in d.cheaper}
    assert d.at_peak == {role: (b, a) for role, (a, b) in c.at_peak.items()}


def test_waiting_for_the_host_is_a_row_of_its_own() -> None:
    """A small model on a GPU waits for its launches; on a CPU nothing waits."""
    small = estimate(cases.graph("mlp-small", "infer", 1), load_device("jetson-nano"))
    idle = small.latency_s.point - float(small.seconds.sum())
    assert idle > 0
    c = compare(cases.infer_estimate(), small)
    waiting = next(x for x in c.by_op if x.key == WAITING)
    assert waiting.latency_s == (0.0, pytest.approx(idle))
    assert all(x.key != WAITING for x in compare(cases.infer_estimate(), cases.train_estimate()).by_op)


def test_what_one_side_lacks_is_zero_there() -> None:
    c = compare(cases.infer_estimate(), cases.train_estimate())
    backward = next(x for x in c.by_op if x.key.startswith("aten::convolution_backward"))
    assert backward.count[0] == 0
    assert backward.latency_s[0] == 0
    assert backward in c.dearer


def test_the_peak_says_where_it_is() -> None:
    c = compare(cases.infer_estimate(), cases.train_estimate())
    for peak, e in zip(c.peak, (c.a, c.b)):
        assert peak.bytes == e.footprint.peak_live == e.footprint.live[peak.position + 1]
        assert peak.ops == len(e.graph)
        if peak.position >= 0:
            assert peak.op == e.graph.op_name[peak.position]
    for side, e in enumerate((c.a, c.b)):
        assert sum(pair[side] for pair in c.at_peak.values()) == e.footprint.peak_live


def test_the_json_object_holds_it_all() -> None:
    c = cases.comparison()
    document = json.loads(json.dumps(c.as_dict()))
    assert document["schema"] == 1
    assert document["a"]["device"] == "raspberry-pi-4b"
    assert document["delta_s"] == c.delta_s
    assert len(document["by_op"]) == len(c.by_op)
    assert document["peak"][1] == asdict(c.peak[1])
