"""allocate: exact against brute force, within the budget always, and clear when nothing fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ompq_deploy.allocate import allocate
from ompq_deploy.artifacts import Budget, Resource, Scores, SizeTable
from ompq_deploy.errors import BadInput, InfeasibleBudget
from ompq_deploy.metrics import orm
from tests.problems import layers


def instance(seed: int, count: int, bits: tuple[int, ...]) -> tuple[Scores, SizeTable]:
    random = np.random.default_rng(seed)
    loss = np.sort(random.random((count, len(bits))), axis=1)[:, ::-1].copy()
    sizes = np.sort(random.integers(1, 1000, (count, len(bits))), axis=1)
    return Scores(metric="test", bits=bits, loss=loss, importance=loss[:, 0]), SizeTable(fixed=100, bytes=sizes)


@pytest.mark.parametrize("seed", range(40))
def test_plans_are_optimal(seed: int) -> None:
    bits = (2, 4, 8)
    scores, sizes = instance(seed, 6, bits)
    least, most = sizes.bytes.min(axis=1).sum(), sizes.bytes.max(axis=1).sum()
    budget = 100 + int(least + (most - least) * (0.1 + 0.8 * seed / 40))
    plan = allocate(layers(6), scores, sizes, Budget(size_bytes=budget))

    def cost(choice: tuple[int, ...]) -> tuple[float, int]:
        rows = range(6)
        return sum(scores.loss[i, c] for i, c in zip(rows, choice, strict=True)), 100 + sum(
            int(sizes.bytes[i, c]) for i, c in zip(rows, choice, strict=True)
        )

    best = min(c[0] for c in map(cost, itertools.product(range(3), repeat=6)) if c[1] <= budget)
    assert plan.solver.status == "OPTIMAL"
    assert plan.size_bytes <= budget
    assert plan.solver.objective == pytest.approx(best, abs=1e-6)
    assert plan.solver.bound <= plan.solver.objective


def test_ties_in_loss_go_to_the_smaller_plan() -> None:
    scores = Scores(metric="test", bits=(4, 8), loss=np.zeros((3, 2)), importance=np.zeros(3))
    for row in ([10, 20], [20, 10]):
        sizes = SizeTable(fixed=0, bytes=np.array([row] * 3))
        assert allocate(layers(3), scores, sizes, Budget(size_bytes=1000)).size_bytes == 30


def test_equation_10_ends_all_low_or_all_high_but_for_one_layer() -> None:
    bits = tuple(range(2, 9))
    theta = np.random.default_rng(3).random(12)
    sizes = SizeTable(fixed=0, bytes=np.outer(np.random.default_rng(4).integers(50, 500, 12), bits))
    scores = Scores(metric="orm", bits=bits, loss=orm.linear_loss(theta, bits), importance=theta)
    plan = allocate(layers(12), scores, sizes, Budget(size_bytes=int(sizes.bytes.mean(axis=1).sum())))
    assert sum(row.weight_bits not in (2, 8) for row in plan.layers) <= 2


def test_the_same_instance_gives_the_same_plan() -> None:
    scores, sizes = instance(7, 30, (2, 3, 4, 5, 6, 7, 8))
    budget = Budget(size_bytes=100 + int(sizes.bytes.mean(axis=1).sum()))
    plans = {allocate(layers(30), scores, sizes, budget).bits().__repr__() for _ in range(3)}
    assert len(plans) == 1


def test_an_infeasible_budget_names_the_smallest_size_and_what_takes_the_room() -> None:
    scores, sizes = instance(1, 5, (4, 8))
    least = 100 + int(sizes.bytes.min(axis=1).sum())
    heaviest = int(sizes.bytes.min(axis=1).argmax())
    with pytest.raises(InfeasibleBudget, match=f"{least} bytes") as caught:
        allocate(layers(5), scores, sizes, Budget(size_bytes=least - 1))
    assert caught.value.exit_code == 3
    assert f"layer{heaviest}" in caught.value.where
    assert f"{least}B" in caught.value.fix
    assert allocate(layers(5), scores, sizes, Budget(size_bytes=least)).size_bytes == least


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "not finite"), (np.inf, "not finite"), (-1e-9, "negative")])
def test_losses_that_are_not_finite_and_nonnegative_are_refused_by_name(bad: float, word: str) -> None:
    scores, sizes = instance(1, 5, (4, 8))
    scores.loss[3, 1] = bad
    with pytest.raises(BadInput, match=word) as caught:
        allocate(layers(5), scores, sizes, Budget(size_bytes=10**6))
    assert "layer3" in caught.value.where


def test_the_plan_counts_what_it_uses_beside_the_size() -> None:
    scores, sizes = instance(2, 4, (4, 8))
    bops = Resource(name="bops", cost=np.array([[4, 8]] * 4), limit=24)
    latency = Resource(name="latency", cost=np.array([[1, 2]] * 4), fixed=5)
    budget = Budget(size_bytes=10**6, bops=24)
    plan = allocate(layers(4), scores, sizes, budget, resources=[bops, latency])
    assert plan.bops == sum(row.weight_bits for row in plan.layers) == 24
    assert plan.latency_ns == 5 + 6
    assert plan.activation_bytes is None


def test_an_infeasible_second_budget_is_named_with_its_smallest_value() -> None:
    scores, sizes = instance(2, 4, (4, 8))
    bops = Resource(name="bops", cost=np.array([[4, 8]] * 4), limit=15)
    with pytest.raises(InfeasibleBudget, match="smallest feasible bops is 16") as caught:
        allocate(layers(4), scores, sizes, Budget(size_bytes=10**6), resources=[bops])
    assert "--bops to 16" in caught.value.fix


def test_pairs_of_widths_reach_the_plan() -> None:
    loss = np.array([[2.0, 1.0, 0.0]] * 2)
    scores = Scores(metric="test", bits=(4, 4, 8), loss=loss, importance=loss[:, 0])
    sizes = SizeTable(fixed=0, bytes=np.array([[10, 10, 20]] * 2))
    plan = allocate(layers(2), scores, sizes, Budget(size_bytes=20), activation_bits=(4, 8, 8))
    assert [(row.weight_bits, row.activation_bits) for row in plan.layers] == [(4, 8), (4, 8)]
