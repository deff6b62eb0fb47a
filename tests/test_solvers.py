"""The solvers: exact against brute force and against each other, never worse than the published methods."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ompq_deploy.allocate import SOLVERS, bounds, cp_sat, dynamic, greedy, linear, solve
from ompq_deploy.allocate.problem import Problem, Solution, compact
from ompq_deploy.artifacts import Resource
from ompq_deploy.errors import BadInput, InfeasibleBudget
from ompq_deploy.settings import SOLVERS as NAMES
from tests.problems import best_by_trying_all, is_feasible, layers, random_problem

ROOT = Path(__file__).resolve().parents[1]


def figures(problem: Problem, solution: Solution | None) -> tuple[float, int]:
    assert solution is not None
    assert is_feasible(problem, solution.choice)
    return round(problem.loss_of(solution.choice), 9), problem.resources[0].used(solution.choice)


@pytest.mark.parametrize("batch", range(10))
def test_both_exact_solvers_agree(batch: int) -> None:
    for seed in range(30):
        problem = random_problem(1000 * batch + seed, 4 + seed, 2 + batch % 6, ties=seed % 3 == 0, fixed=seed % 2 == 0)
        exact, check = cp_sat.solve(problem), dynamic.solve(problem)
        assert exact is not None
        assert exact.status == "OPTIMAL"
        assert figures(problem, exact) == pytest.approx(figures(problem, check), rel=1e-6)


def test_control_c_is_still_pythons_after_a_solve() -> None:
    solve_and_interrupt = (
        "import os, signal; from ompq_deploy.allocate import cp_sat; from tests.problems import random_problem\n"
        "assert cp_sat.solve(random_problem(0, 6)) is not None\n"
        "try: os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    run = subprocess.run([sys.executable, "-c", solve_and_interrupt], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout == "interrupted\n", run.stderr


@pytest.mark.parametrize("seed", range(60))
def test_groups_pins_and_several_budgets_against_every_plan(seed: int) -> None:
    problem = random_problem(seed, 5, 3, 1 + seed % 3, ties=seed % 2 == 0, fixed=seed % 4 < 2)
    best, found = best_by_trying_all(problem), cp_sat.solve(problem)
    if best is None:
        assert found is None
    else:
        assert figures(problem, found) == pytest.approx(best, rel=1e-6)


def test_the_instances_above_hold_infeasible_ones_too() -> None:
    infeasible = [s for s in range(60) if best_by_trying_all(random_problem(s, 5, 3, 1 + s % 3, ties=s % 2 == 0,
                                                                            fixed=s % 4 < 2)) is None]  # fmt: skip
    assert infeasible


@pytest.mark.parametrize("seed", range(10))
def test_counting_identical_layers_changes_no_optimum(seed: int) -> None:
    kinds = random_problem(seed, 3, 4)
    kind = np.random.default_rng(seed).integers(0, 3, 24)
    cost = kinds.resources[0].cost[kind]
    limit = int(cost.min(axis=1).sum() + 0.4 * (cost.max(axis=1) - cost.min(axis=1)).sum())
    problem = Problem(
        names=tuple(map(str, range(24))),
        choices=kinds.choices,
        loss=kinds.loss[kind],
        resources=(Resource(name="size", cost=cost, limit=limit),),
        allowed=kinds.allowed[kind],
        group=np.arange(24),
    )
    assert len(compact(problem).count) <= 3 < len(compact(problem, count_identical=False).count)
    assert figures(problem, cp_sat.solve(problem)) == pytest.approx(figures(problem, dynamic.solve(problem)), rel=1e-6)


def test_a_choice_is_struck_out_only_where_every_budget_agrees() -> None:
    problem = small_problem(loss=[[0.0, 1.0, 2.0]], size=[[1, 2, 3]], bops=[[9, 1, 1]], limits=(2, 5))
    found = cp_sat.solve(problem)
    assert found is not None
    assert found.choice.tolist() == [1]


def test_layers_are_identical_only_where_every_budget_agrees() -> None:
    problem = small_problem(loss=[[1.0, 0.0]] * 2, size=[[1, 2]] * 2, bops=[[1, 9], [1, 3]], limits=(None, 4))
    assert len(compact(problem).count) == 2
    found = cp_sat.solve(problem)
    assert found is not None
    assert found.choice.tolist() == [0, 1]


def small_problem(
    *, loss: list[list[float]], size: list[list[int]], bops: list[list[int]], limits: tuple[int | None, int | None]
) -> Problem:
    count, columns = len(loss), len(loss[0])
    return Problem(
        names=tuple(f"layer{i}" for i in range(count)),
        choices=tuple((4 + c, 8) for c in range(columns)),
        loss=np.array(loss),
        resources=(
            Resource(name="size", cost=np.array(size), limit=limits[0]),
            Resource(name="bops", cost=np.array(bops), limit=limits[1]),
        ),
        allowed=np.ones((count, columns), bool),
        group=np.arange(count),
    )


@pytest.mark.parametrize(
    ("solver", "budgets"),
    [("dp", 1), *((name, budgets) for name in ("mpqco-greedy", "ompq-lp", "ompq-dfs") for budgets in (1, 2))],
)
def test_the_exact_solver_is_never_worse(solver: str, budgets: int) -> None:
    kept = worse = 0
    for seed in range(40):
        problem = random_problem(seed, 15, 5, budgets)
        exact, other = cp_sat.solve(problem), SOLVERS[solver](problem, 0, None)
        if exact is None:
            continue
        assert other is not None
        best = problem.loss_of(exact.choice)
        assert other.bound <= best + 1e-6
        assert (other.status == "OVER BUDGET") == bool(problem.broken(other.choice))
        if not problem.broken(other.choice):
            kept += 1
            worse += problem.loss_of(other.choice) > best + 1e-6
            assert best <= problem.loss_of(other.choice) + 1e-6
    assert kept
    assert (worse == 0) == (solver == "dp")


def test_greed_can_miss_the_optimum_and_its_bound_says_so() -> None:
    cost = np.array([[0, 60], [0, 50], [0, 50]])
    loss = np.array([[7.0, 0.0], [5.0, 0.0], [5.0, 0.0]])
    problem = Problem(
        names=("a", "b", "c"),
        choices=((4, 8), (8, 8)),
        loss=loss,
        resources=(Resource(name="size", cost=cost, limit=100),),
        allowed=np.ones((3, 2), bool),
        group=np.arange(3),
    )
    greedily = greedy.solve(problem)
    assert greedily is not None
    assert greedily.choice.tolist() == [1, 0, 0]
    assert greedily.bound == pytest.approx(6.0)
    exact = cp_sat.solve(problem)
    assert exact is not None
    assert exact.choice.tolist() == [0, 1, 1]


def rounding_up() -> Problem:
    """One layer whose relaxed width, 5.6 of 2 to 8 bits, is rounded up past its budget."""
    bits = np.arange(2, 9)
    return Problem(
        names=("layer0",),
        choices=tuple((int(b), 8) for b in bits),
        loss=(8.0 - bits)[None, :],
        resources=(Resource(name="size", cost=100 * bits[None, :], limit=560),),
        allowed=np.ones((1, 7), bool),
        group=np.arange(1),
    )


def test_rounding_the_linear_programme_can_break_the_budget_and_is_refused() -> None:
    problem = rounding_up()
    rounded = linear.solve(problem)
    assert rounded is not None
    assert rounded.status == "OVER BUDGET"
    assert problem.choices[rounded.choice[0]][0] == 6
    with pytest.raises(InfeasibleBudget, match="OVER BUDGET") as caught:
        solve(problem, layers(1), "ompq-lp")
    assert caught.value.exit_code == 3
    searched = linear.solve_by_search(problem)
    assert searched is not None
    assert problem.choices[searched.choice[0]][0] == 5


@pytest.mark.parametrize("seed", range(20))
def test_the_depth_first_search_keeps_the_budget(seed: int) -> None:
    problem = random_problem(seed, 12, 5)
    found = linear.solve_by_search(problem)
    assert found is not None
    assert not problem.broken(found.choice)


@pytest.mark.parametrize("seed", range(20))
def test_the_relaxation_bounds_every_plan_and_rules_out_no_better_one(seed: int) -> None:
    problem = random_problem(seed, 5, 3, 1)
    rows = compact(problem)
    exact = cp_sat.solve(problem)
    relaxed = bounds.relaxation(rows)
    assert exact is not None
    assert relaxed is not None
    plan = rows.counts(exact.choice)
    best = bounds.value_of(rows, plan)
    prices = [relaxed.price, *np.random.default_rng(seed).uniform(0, 4, (20, 1)) * relaxed.price]
    for price in prices:
        assert bounds.bound(rows, price) <= best * (1 + 1e-12)
        assert not plan[~bounds.without_hopeless(rows, price, best).allowed].any()
    start = bounds.incumbent(rows, relaxed)
    assert start is None or (bounds.fits(rows, start) and bounds.value_of(rows, start) >= best)


def test_dp_refuses_a_second_budget() -> None:
    with pytest.raises(BadInput, match="one budget"):
        dynamic.solve(random_problem(0, 5, 3, 2))


def test_budgets_that_exclude_each_other_name_what_each_would_need() -> None:
    size = Resource(name="size", cost=np.array([[10, 20]]), limit=15)
    latency = Resource(name="latency", cost=np.array([[9, 4]]), limit=5)
    problem = Problem(
        names=("layer0",),
        choices=((4, 8), (8, 8)),
        loss=np.array([[1.0, 0.0]]),
        resources=(size, latency),
        allowed=np.ones((1, 2), bool),
        group=np.arange(1),
    )
    with pytest.raises(InfeasibleBudget, match="together") as caught:
        solve(problem, layers(1))
    assert "size needs 20B" in caught.value.where
    assert "latency needs 9ns" in caught.value.where


def test_activation_widths_are_part_of_the_choice() -> None:
    pairs = ((4, 4), (4, 8), (8, 8))
    problem = Problem(
        names=("a", "b"),
        choices=pairs,
        loss=np.array([[3.0, 2.0, 0.0], [3.0, 2.5, 0.0]]),
        resources=(
            Resource(name="size", cost=np.array([[40, 40, 80]] * 2)),
            Resource(name="bops", cost=np.array([[16, 32, 64]] * 2), limit=64),
        ),
        allowed=np.ones((2, 3), bool),
        group=np.arange(2),
    )
    found = cp_sat.solve(problem)
    assert found is not None
    assert [pairs[c] for c in found.choice] == [(4, 8), (4, 8)]
    tight = cp_sat.solve(replace(problem, group=np.zeros(2, int)).limited("bops", 63))
    assert tight is not None
    assert [pairs[c] for c in tight.choice] == [(4, 4), (4, 4)]


def test_a_hint_changes_no_optimum() -> None:
    problem = random_problem(3, 20, 5, 2)
    free = cp_sat.solve(problem)
    assert free is not None
    for hint in (free.choice, np.zeros(20, np.int64), np.full(20, 4)):
        assert figures(problem, cp_sat.solve(problem, hint=hint)) == figures(problem, free)


def test_the_command_line_offers_every_solver() -> None:
    assert tuple(SOLVERS) == NAMES
    with pytest.raises(BadInput, match="unknown solver"):
        solve(random_problem(0, 3), layers(3), "magic")


def test_past_the_limit_the_gap_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses proportional to sizes: a subset sum, which no solver proves quickly."""
    random = np.random.default_rng(0)
    weights = random.integers(1_000, 2_000_000, 60)
    bits = np.arange(2, 9)
    cost = weights[:, None] * bits // 8
    problem = Problem(
        names=tuple(f"layer{i}" for i in range(60)),
        choices=tuple((int(b), 8) for b in bits),
        loss=weights[:, None] * 4.0**-bits,
        resources=(Resource(name="size", cost=cost, limit=int(0.55 * cost.max(axis=1).sum())),),
        allowed=np.ones((60, 7), bool),
        group=np.arange(60),
    )
    monkeypatch.setattr(cp_sat, "DETERMINISTIC_LIMIT", 0.1)
    found = cp_sat.solve(problem)
    assert found is not None
    assert found.status == "FEASIBLE"
    assert not problem.broken(found.choice)
    assert 0.99 * problem.loss_of(found.choice) < found.bound < problem.loss_of(found.choice)
    again = cp_sat.solve(problem)
    assert again is not None
    assert again.choice.tolist() == found.choice.tolist()
