"""The front of loss against one resource: an exact plan at evenly spaced limits, each started from the one before.

    limit_j = least + j (most - least) / (points - 1)
    least: the smallest use of the resource that the other limits allow; most: its use where it is not limited

Ties in loss go to the plan that uses less of the resource, so every point is Pareto-optimal among the plans that
keep the other limits. The plan at one limit fits the next, wider one: it is where the solver starts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ompq_deploy.allocate import solve
from ompq_deploy.allocate.feasibility import infeasible_together, smallest
from ompq_deploy.allocate.problem import Int64, Problem
from ompq_deploy.artifacts import Layer
from ompq_deploy.errors import BadInput

OVER = ("size", "bops", "latency")
USED_AS = {
    "size": "size_bytes",
    "bops": "bops",
    "latency": "latency_ns",
    "activation memory": "activation_bytes",
}


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """The best plan under `limit`. `used` holds every resource; `bits` the weight width per layer."""

    limit: int
    used: Mapping[str, int]
    loss: float
    bound: float
    status: str
    seconds: float
    bits: Mapping[str, int]


def front(
    problem: Problem, layers: Sequence[Layer], over: str, points: int, *, seed: int = 0
) -> tuple[FrontPoint, ...]:
    """At most `points` plans, the resource rising and the loss falling; plans met twice are kept once."""
    problem = _freed(problem, over)
    least = _least(problem)
    most = problem.resources[0].used(solve(problem, layers, seed=seed).choice)
    limits = [least + (most - least) * j // max(points - 1, 1) for j in range(points)]
    found: list[FrontPoint] = []
    hint: Int64 | None = None
    for limit in dict.fromkeys(limits):
        started = time.perf_counter()
        solution = solve(problem.limited(over, limit), layers, seed=seed, hint=hint)
        hint = solution.choice
        used = {USED_AS[r.name]: r.used(hint) for r in problem.resources}
        if found and used[USED_AS[over]] <= found[-1].used[USED_AS[over]]:
            continue
        found.append(
            FrontPoint(
                limit=limit,
                used=used,
                loss=problem.loss_of(hint),
                bound=solution.bound,
                status=solution.status,
                seconds=time.perf_counter() - started,
                bits={name: problem.choices[c][0] for name, c in zip(problem.names, hint.tolist(), strict=True)},
            )
        )
    return tuple(found)


def halfway(problem: Problem, over: str) -> int:
    """A limit half way between the least and the most any plan uses: where a sweep compares metrics."""
    problem = _freed(problem, over)
    swept, least = problem.resources[0], _least(problem)
    return (least + swept.fixed + int(np.where(problem.allowed, swept.cost, 0).max(axis=1).sum())) // 2


def front_document(points: Sequence[FrontPoint], over: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The front as JSON values; `facts` say of which model and metric."""
    rows = [asdict(point) for point in points]
    return {**facts, "over": over, "points": [{**row.pop("used"), **row} for row in rows]}


def _least(problem: Problem) -> int:
    """The smallest use of the first resource that the other limits allow; InfeasibleBudget where there is none."""
    least = smallest(problem, problem.resources[0])
    if least is None:
        raise infeasible_together(problem)
    return least


def _freed(problem: Problem, over: str) -> Problem:
    """The problem without a limit on one resource, and with that resource breaking ties."""
    chosen = [r for r in problem.resources if r.name == over]
    if not chosen:
        raise BadInput(
            f"there is nothing to count {over} with", where=f"--over {over}", fix="give --latency-table FILE"
        )
    others = tuple(r for r in problem.resources if r.name != over)
    return replace(problem, resources=(replace(chosen[0], limit=None), *others))
