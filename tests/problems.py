"""Random allocation problems for tests, and their solution by trying every plan."""

from __future__ import annotations

import itertools

import numpy as np

from ompq_deploy.allocate.problem import Int64, Problem
from ompq_deploy.artifacts import Layer, Resource


def layers(count: int) -> list[Layer]:
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


def random_problem(
    seed: int, count: int, columns: int = 3, budgets: int = 1, *, ties: bool = False, fixed: bool = False
) -> Problem:
    """Losses mostly falling and costs rising with the column, but for some rows of a second budget; limits between
    least and most, so that one budget is always feasible. `ties` ties random layers; `fixed` leaves random layers, one
    of a group, one choice."""
    random = np.random.default_rng(seed)
    loss = np.sort(random.random((count, columns)), axis=1)[:, ::-1].copy()
    swapped = random.random(count) < 0.2
    loss[swapped] = loss[swapped][:, ::-1]
    group = random.integers(0, max(count // 2, 1), count) if ties else np.arange(count)
    allowed = np.ones((count, columns), bool)
    if fixed:
        for label in np.unique(group):
            if random.random() < 0.3:
                allowed[np.flatnonzero(group == label)[0]] = np.arange(columns) == random.integers(columns)
    resources = []
    for name in ("size", "bops", "latency")[:budgets]:
        cost = np.sort(random.integers(0, 1000, (count, columns)), axis=1)
        if resources:
            slower = random.random(count) < 0.3
            cost[slower] = cost[slower][:, ::-1]
        least, most = _extremes(cost, allowed, group)
        limit = 100 + int(least + (most - least) * random.uniform(0.1, 0.9))
        resources.append(Resource(name=name, cost=cost, fixed=100, limit=limit))
    return Problem(
        names=tuple(f"layer{i}" for i in range(count)),
        choices=tuple((2 + c, 8) for c in range(columns)),
        loss=loss,
        resources=tuple(resources),
        allowed=allowed,
        group=group,
    )


def best_by_trying_all(problem: Problem) -> tuple[float, int] | None:
    """(least loss, least use of the first resource at that loss) over all plans, or None where none is feasible."""
    count, columns = problem.loss.shape
    best = None
    for plan in itertools.product(range(columns), repeat=count):
        choice = np.array(plan)
        if is_feasible(problem, choice):
            figures = (round(problem.loss_of(choice), 9), problem.resources[0].used(choice))
            best = figures if best is None else min(best, figures)
    return best


def is_feasible(problem: Problem, choice: Int64) -> bool:
    """Whether a plan keeps limits, allowed choices and ties."""
    tied = all(len(set(choice[problem.group == label].tolist())) == 1 for label in np.unique(problem.group))
    return tied and bool(problem.allowed[np.arange(len(choice)), choice].all()) and not problem.broken(choice)


def _extremes(cost: Int64, allowed: np.ndarray, group: Int64) -> tuple[int, int]:
    least = most = 0
    for label in np.unique(group):
        total = cost[group == label].sum(axis=0)[allowed[group == label].all(axis=0)]
        least, most = least + total.min(), most + total.max()
    return least, most
