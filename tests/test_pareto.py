"""Fronts: nobody on a front is beaten, whoever is off it is, budgets hold on upper bounds, the knee is on the front."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.errors import CostmodelError, UnknownName
from costmodel.estimate import Range
from costmodel.pareto import AXES, Front, Point, pareto


def point(accuracy: float, cost: float, **more: Any) -> Point:
    axis = more.pop("axis", "latency_s")
    high = more.pop("high", cost * 1.5)
    values: dict[str, Any] = {
        "name": f"{accuracy} {cost}", "family": "f", "model": "m", "method": "", "mode": "infer", "batch": 1,
        "metric": "accuracy", "accuracy": accuracy, "accuracy_error": 0.0, "seeds": 1, "higher_is_better": True,
        "device": "d", "runtime": "r", "costs": {axis: Range(cost / 1.5, cost, high)},
    }  # fmt: skip
    return Point(**(values | more))


def dominates(a: Point, b: Point, axis: str) -> bool:
    pair = [(p.costs[axis].point, p.loss()) for p in (a, b)]
    return all(x <= y for x, y in zip(*pair)) and pair[0] != pair[1]


numbers = st.one_of(st.integers(0, 5).map(float), st.floats(0.01, 100))
many = st.lists(st.tuples(numbers, numbers.map(lambda x: x + 0.01)), min_size=1, max_size=25)


@given(many, st.sampled_from(AXES), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_front_is_exactly_who_is_not_beaten(pairs: list[tuple[float, float]], axis: str, higher: bool) -> None:
    points = [point(a, c, axis=axis, higher_is_better=higher) for a, c in pairs]
    (front,) = pareto(points, axis=axis).values()
    assert sorted(map(id, front.points)) == sorted(map(id, points)), "nobody is lost"
    for p, optimal, sure in zip(front.points, front.optimal, front.sure):
        assert optimal == (not any(dominates(q, p, axis) for q in points))
        assert optimal or not sure
    costs = [p.costs[axis].point for p in front.points]
    assert costs == sorted(costs)
    assert any(front.optimal)
    assert front.hypervolume >= 0
    if front.knee is not None:
        assert front.optimal[front.knee]
        ends = [i for i, o in enumerate(front.optimal) if o]
        assert ends[0] < front.knee < ends[-1]


@given(many, st.floats(0.1, 150))
@settings(max_examples=80, deadline=None)
def test_the_choice_within_a_budget(pairs: list[tuple[float, float]], limit: float) -> None:
    (front,) = pareto([point(a, c) for a, c in pairs], budget={"latency_s": limit}).values()
    inside = [p for p in front.points if p.costs["latency_s"].high <= limit]
    if front.within_budget is None:
        assert not inside
    else:
        chosen = front.points[front.within_budget]
        assert chosen in inside
        assert chosen.accuracy == max(p.accuracy for p in inside)


@given(many, st.tuples(numbers, numbers.map(lambda x: x + 0.01)))
@settings(max_examples=60, deadline=None)
def test_one_more_point_never_frees_one_that_is_beaten(
    pairs: list[tuple[float, float]], more: tuple[float, float]
) -> None:
    points = [point(a, c) for a, c in pairs]
    (before,) = pareto(points).values()
    (after,) = pareto([*points, point(*more)]).values()
    beaten = {id(p) for p, o in zip(before.points, before.optimal) if not o}
    assert all(not o for p, o in zip(after.points, after.optimal) if id(p) in beaten)


def one(points: list[Point], **options: Any) -> Front:
    (front,) = pareto(points, **options).values()
    return front


def test_a_front_by_hand() -> None:
    front = one([point(0.9, 10), point(0.8, 2), point(0.5, 1), point(0.7, 3), point(0.9, 12)])
    assert [p.costs["latency_s"].point for p in front.points] == [1, 2, 3, 10, 12]
    assert front.optimal == (True, True, False, True, False)
    assert front.knee == 1
    # up to cost 12 and accuracy 0.5: 0.3 from 2 to 12, 0.1 more from 10 to 12
    assert front.hypervolume == pytest.approx(0.3 * 10 + 0.1 * 2, rel=1e-3)


def test_sure_points_stay_if_the_accuracies_err() -> None:
    apart = one([point(0.9, 2, accuracy_error=0.01), point(0.8, 1, accuracy_error=0.01)])
    assert apart.sure == (True, True)
    alike = one([point(0.81, 2, accuracy_error=0.01), point(0.8, 1, accuracy_error=0.01)])
    assert alike.optimal == (True, True)
    assert alike.sure == (True, False)


def test_lower_is_better_where_the_metric_says_so() -> None:
    front = one([point(a, c, metric="perplexity", higher_is_better=False) for a, c in ((5, 2), (9, 1), (6, 3))])
    assert [p.accuracy for p, o in zip(front.points, front.optimal) if o] == [9, 5]


def test_devices_have_fronts_of_their_own_and_points_without_the_axis_none() -> None:
    fronts = pareto([point(0.9, 1), point(0.8, 5, device="e"), point(0.7, 5, axis="energy_j")])
    assert {d: len(f.points) for d, f in fronts.items()} == {"d": 1, "e": 1}
    assert pareto([point(0.7, 5, axis="energy_j")]) == {}
    assert pareto([]) == {}


def test_budgets_on_several_axes_are_all_kept() -> None:
    cheap = point(0.5, 1)
    both = {"latency_s": Range(1, 2, 3), "peak_rss_bytes": Range(1, 2, 3)}
    a, b = point(0.9, 2, costs=both), point(0.95, 2, costs=both | {"peak_rss_bytes": Range(1, 2, math.nextafter(4, 5))})
    front = one([cheap, a, b], budget={"latency_s": 3, "peak_rss_bytes": 4})
    assert front.within_budget is not None
    assert front.points[front.within_budget] is a, "b is over by one bit, cheap has no figure for memory"


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UnknownName, match="no cost axis named 'latency'; did you mean latency_s"):
        pareto([point(1, 1)], axis="latency")
    with pytest.raises(UnknownName, match="no budget axis named 'memory'"):
        pareto([point(1, 1)], budget={"memory": 1})
    with pytest.raises(CostmodelError, match=r"different metrics do not share a front: \['accuracy', 'perplexity'\]"):
        pareto([point(1, 1), point(1, 1, metric="perplexity")])


@given(many, st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_choices_are_what_each_budget_asks_for(pairs: list[tuple[float, float]], higher: bool) -> None:
    points = [point(a, c, higher_is_better=higher) for a, c in pairs]
    choices = pareto(points)["d"].choices
    limits = [limit for limit, _ in choices]
    assert limits == sorted(set(limits))
    for k, (limit, i) in enumerate(choices):
        front = pareto(points, budget={"latency_s": limit})["d"]
        assert front.within_budget is not None
        assert front.points[front.within_budget].loss() == front.points[i].loss()
        if k + 1 < len(choices):
            just_under = pareto(points, budget={"latency_s": limits[k + 1] * (1 - 1e-9)})["d"]
            assert just_under.within_budget is not None
            assert just_under.points[just_under.within_budget].loss() == just_under.points[i].loss()
    none = pareto(points, budget={"latency_s": limits[0] * (1 - 1e-9)})["d"]
    assert none.within_budget is None
