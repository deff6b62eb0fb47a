"""pareto: every point optimal, the front monotone, JSON and picture."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest

from ompq_deploy.allocate import dynamic
from ompq_deploy.errors import BadInput
from ompq_deploy.planning.pareto import front, front_document
from ompq_deploy.report.front import front_svg
from tests.problems import layers, random_problem


@pytest.mark.parametrize("seed", range(8))
def test_every_point_is_optimal_and_the_front_monotone(seed: int) -> None:
    problem = random_problem(seed, 12, 5)
    points = front(problem, layers(12), "size", 15)
    assert len(points) > 5
    assert all(point.status == "OPTIMAL" for point in points)
    assert all(a.used["size_bytes"] < b.used["size_bytes"] for a, b in itertools.pairwise(points))
    assert all(a.loss > b.loss for a, b in itertools.pairwise(points))
    for point in points:
        check = dynamic.solve(problem.limited("size", point.limit))
        assert check is not None
        assert point.loss == pytest.approx(problem.loss_of(check.choice), abs=1e-6)
        assert point.used["size_bytes"] == problem.resources[0].used(check.choice)


def test_the_front_reaches_from_the_smallest_plan_to_the_best() -> None:
    problem = random_problem(1, 10, 4)
    points = front(problem, layers(10), "size", 7)
    assert points[0].used["size_bytes"] == 100 + problem.resources[0].cost.min(axis=1).sum()
    assert points[-1].loss == pytest.approx(problem.loss.min(axis=1).sum())


def test_a_plan_met_at_several_limits_is_kept_once() -> None:
    points = front(random_problem(4, 3, 3), layers(3), "size", 60)
    assert len(points) < 27
    assert len({tuple(point.bits.values()) for point in points}) == len(points)


def test_the_other_limits_hold_along_the_front() -> None:
    problem = random_problem(2, 10, 4, 2)
    limit = problem.resources[1].limit
    points = front(problem, layers(10), "size", 9)
    assert len(points) > 3
    assert all(point.used["bops"] <= limit for point in points)
    over_bops = front(problem, layers(10), "bops", 9)
    assert all(a.used["bops"] < b.used["bops"] for a, b in itertools.pairwise(over_bops))
    assert all(point.used["size_bytes"] <= problem.resources[0].limit for point in over_bops)


def test_nothing_to_sweep_is_refused() -> None:
    with pytest.raises(BadInput, match="latency"):
        front(random_problem(0, 4), layers(4), "latency", 5)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_the_picture_is_xml_with_one_dot_per_plan(count: int) -> None:
    points = front(random_problem(3, 12, 5), layers(12), "size", count)
    document = front_document(points, "size", {"model": "a<b>.onnx", "metric": "orm"})
    root = ElementTree.fromstring(front_svg(document))
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == len(points)
    assert document["points"][0]["bits"].keys() == {f"layer{i}" for i in range(12)}
