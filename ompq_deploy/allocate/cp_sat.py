"""The exact solver: OR-Tools CP-SAT over any number of resources.

    min  sum_k sum_c value[k, c] n_kc          n_kc: how many rows of class k take choice c
    s.t. sum_c n_kc = count_k,   sum_k sum_c cost_r[k, c] n_kc <= room_r

Before that, the linear relaxation and a rounded plan rule out choices that no better plan holds (`bounds.py`):
for one budget at 1,000 layers, five in six. One worker, a fixed seed and a deterministic time limit make the
plan the same on every run and machine. Ctrl-C is left to Python, whose handler OR-Tools would replace for good.
"""

from __future__ import annotations

import numpy as np
from ortools.sat.python import cp_model

from ompq_deploy.allocate import bounds
from ompq_deploy.allocate.problem import Compact, Int64, Problem, Solution, compact

DETERMINISTIC_LIMIT = 10.0
"""CP-SAT's machine-independent time; about as many seconds. Reached where losses are proportional to sizes (a subset
sum), with a gap of about a millionth."""


def solve(problem: Problem, *, seed: int = 0, hint: Int64 | None = None) -> Solution | None:
    """The best plan, or None where there is none. `hint` is a plan to start from, such as a neighbour's."""
    rows = compact(problem)
    relaxed = bounds.relaxation(rows)
    if relaxed is None:
        return None
    near = None if hint is None else rows.counts(hint)
    known = _best_known(rows, [near, bounds.incumbent(rows, relaxed)])
    proven = relaxed.bound
    if known is not None:
        rows = bounds.without_hopeless(rows, relaxed.price, bounds.value_of(rows, known))
    status, counts, found = _search(rows, near, seed)
    known, proven = _best_known(rows, [counts, known]), max(proven, found)
    if known is None or status == cp_model.INFEASIBLE:
        return None
    choice = rows.expand(known)
    loss = problem.loss_of(choice)
    if status == cp_model.OPTIMAL:
        return Solution(choice=choice, status="OPTIMAL", bound=loss)
    return Solution(choice=choice, status="FEASIBLE", bound=min(loss, rows.loss_bound(proven)))


def _search(rows: Compact, hint: Int64 | None, seed: int) -> tuple[cp_model.CpSolverStatus, Int64 | None, float]:
    """CP-SAT's status, its plan as counts (K, C) where it has one, and the bound it proved."""
    model = cp_model.CpModel()
    columns = [np.flatnonzero(allowed).tolist() for allowed in rows.allowed]
    variables: dict[tuple[int, int], cp_model.IntVar] = {}
    for k, count in enumerate(rows.count.tolist()):
        mine = [model.new_bool_var("") if count == 1 else model.new_int_var(0, count, "") for _ in columns[k]]
        variables.update(zip([(k, c) for c in columns[k]], mine, strict=True))
        if count == 1:
            model.add_exactly_one(mine)
        else:
            model.add(cp_model.LinearExpr.sum(mine) == count)
    flat = list(variables.values())
    for cost, room in zip(rows.costs, rows.room.tolist(), strict=True):
        model.add(cp_model.LinearExpr.weighted_sum(flat, cost[rows.allowed].tolist()) <= room)
    model.minimize(cp_model.LinearExpr.weighted_sum(flat, rows.value[rows.allowed].tolist()))
    if hint is not None:
        for (k, c), variable in variables.items():
            model.add_hint(variable, int(hint[k, c]))

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    solver.parameters.max_deterministic_time = DETERMINISTIC_LIMIT
    solver.parameters.linearization_level = 2
    solver.parameters.catch_sigint_signal = False
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return status, None, -np.inf
    counts = np.zeros(rows.value.shape, np.int64)
    for (k, c), variable in variables.items():
        counts[k, c] = solver.value(variable)
    return status, counts, solver.best_objective_bound


def _best_known(rows: Compact, plans: list[Int64 | None]) -> Int64 | None:
    """The best of the plans that fit and take allowed choices only."""
    good = [plan for plan in plans if plan is not None and bounds.fits(rows, plan) and not plan[~rows.allowed].any()]
    return min(good, default=None, key=lambda plan: bounds.value_of(rows, plan))
