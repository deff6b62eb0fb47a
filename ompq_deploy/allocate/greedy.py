"""MPQCO's solver (Chen, Wang, Cheng, "Towards Mixed-Precision Quantization of Neural Networks via Constrained
Optimization", ICCV 2021): a multiple-choice knapsack by dominance and greed.

    1. of every layer keep the choices on the lower convex hull of (size, loss)
    2. give every layer its smallest choice
    3. take the steps along the hulls in the order of dLoss / dSize, as long as they fit

Within a layer the hull makes the ratio fall, so the order is consistent. Under several budgets, "size" is the sum
of the shares of each budget. The result can fall short of the optimum, and the bound says by how much.
"""

from __future__ import annotations

import itertools

import numpy as np

from ompq_deploy.allocate import bounds
from ompq_deploy.allocate.problem import Compact, Float64, Int64, Problem, Solution, compact


def solve(problem: Problem) -> Solution | None:
    """The greedy plan, over budget only where the smallest choices already are; None where the LP is infeasible."""
    rows = compact(problem, count_identical=False)
    relaxed = bounds.relaxation(rows)
    if relaxed is None:
        return None
    choice = rows.expand(one_hot(greedy(rows), rows))
    status = "OVER BUDGET" if problem.broken(choice) else "HEURISTIC"
    return Solution(choice=choice, status=status, bound=rows.loss_bound(relaxed.bound))


def greedy(rows: Compact) -> Int64:
    """The chosen column of every row, int64 (K,)."""
    size = (rows.costs / np.maximum(rows.room, 1)[:, None, None]).sum(axis=0)
    hulls = [_hull(size[k], rows.value[k], np.flatnonzero(rows.allowed[k])) for k in range(len(size))]
    steps = sorted(
        (-(rows.value[k, a] - rows.value[k, b]) / (size[k, b] - size[k, a]), k, at)
        for k, hull in enumerate(hulls)
        for at, (a, b) in enumerate(itertools.pairwise(hull))
    )
    position = [0] * len(hulls)
    every = np.arange(len(hulls))
    left = rows.room - rows.costs[:, every, [hull[0] for hull in hulls]].sum(axis=1)
    for _, k, at in steps:
        extra = rows.costs[:, k, hulls[k][at + 1]] - rows.costs[:, k, hulls[k][at]]
        if position[k] == at and (extra <= left).all():
            position[k] += 1
            left = left - extra
    return np.array([hull[at] for hull, at in zip(hulls, position, strict=True)], np.int64)


def one_hot(chosen: Int64, rows: Compact) -> Int64:
    """Counts (K, C) of a plan with one row per class."""
    return (np.arange(rows.value.shape[1]) == chosen[:, None]).astype(np.int64)


def _hull(size: Float64, value: Int64, columns: Int64) -> list[int]:
    """The columns on the lower convex hull, sizes rising and values falling."""
    hull: list[int] = []
    for c in sorted(columns.tolist(), key=lambda c: (size[c], value[c])):
        if hull and value[c] >= value[hull[-1]]:
            continue
        while len(hull) > 1 and _gain(size, value, hull[-2], hull[-1]) <= _gain(size, value, hull[-1], c):
            hull.pop()
        hull.append(c)
    return hull


def _gain(size: Float64, value: Int64, a: int, b: int) -> float:
    """How fast the value falls from a to b; infinite where it costs nothing."""
    return float(value[a] - value[b]) / (size[b] - size[a]) if size[b] > size[a] else np.inf
