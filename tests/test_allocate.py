"""allocate: exact against brute force, within the budget always, and clear when nothing fits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ompq_deploy.allocate import allocate
from ompq_deploy.artifacts import Budget, Layer, Scores, SizeTable
from ompq_deploy.errors import BadInput, InfeasibleBudget
from ompq_deploy.metrics import orm


def make_layers(count: int) -> list[Layer]:
    return [
        Layer(
            name=f"layer{i}",
            op="Conv",
            nodes=(f"layer{i}",),
            weight=f"w{i}",
            shape=(4, 4, 3, 3),
            channel_axis=0,
            groups=1,
            inputs=("x",),
            output="y",
            macs=1,
        )
        for i in range(count)
    ]


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
    plan = allocate(make_layers(6), scores, sizes, Budget(size_bytes=budget))

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
    sizes = SizeTable(fixed=0, bytes=np.array([[10, 20]] * 3))
    assert allocate(make_layers(3), scores, sizes, Budget(size_bytes=1000)).size_bytes == 30


def test_equation_10_ends_all_low_or_all_high_but_for_one_layer() -> None:
    bits = tuple(range(2, 9))
    theta = np.random.default_rng(3).random(12)
    sizes = SizeTable(fixed=0, bytes=np.outer(np.random.default_rng(4).integers(50, 500, 12), bits))
    scores = Scores(metric="orm", bits=bits, loss=orm.linear_loss(theta, bits), importance=theta)
    plan = allocate(make_layers(12), scores, sizes, Budget(size_bytes=int(sizes.bytes.mean(axis=1).sum())))
    assert sum(row.weight_bits not in (2, 8) for row in plan.layers) <= 2


def test_the_same_instance_gives_the_same_plan() -> None:
    scores, sizes = instance(7, 30, (2, 3, 4, 5, 6, 7, 8))
    budget = Budget(size_bytes=100 + int(sizes.bytes.mean(axis=1).sum()))
    plans = {allocate(make_layers(30), scores, sizes, budget).bits().__repr__() for _ in range(3)}
    assert len(plans) == 1


def test_an_infeasible_budget_names_the_smallest_size_and_what_takes_the_room() -> None:
    scores, sizes = instance(1, 5, (4, 8))
    least = 100 + int(sizes.bytes.min(axis=1).sum())
    heaviest = int(sizes.bytes.min(axis=1).argmax())
    with pytest.raises(InfeasibleBudget, match=f"{least} bytes") as caught:
        allocate(make_layers(5), scores, sizes, Budget(size_bytes=least - 1))
    assert caught.value.exit_code == 3
    assert f"layer{heaviest}" in caught.value.where
    assert f"{least}B" in caught.value.fix
    assert allocate(make_layers(5), scores, sizes, Budget(size_bytes=least)).size_bytes == least


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_losses_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    scores, sizes = instance(1, 5, (4, 8))
    scores.loss[3, 1] = bad
    with pytest.raises(BadInput, match="not finite") as caught:
        allocate(make_layers(5), scores, sizes, Budget(size_bytes=10**6))
    assert "layer3" in caught.value.where
