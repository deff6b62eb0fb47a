"""The exact solver: OR-Tools CP-SAT over any number of resources.

    min  sum_k sum_c value[k, c] n_kc          n_kc: how many rows of class k take choice c
    s.t. sum_c n_kc = count_k,   sum_k sum_c cost_r[k, c] n_kc <= room_r

Before that, the linear relaxation and a rounded plan rule out choices that no better plan holds (`bounds.py`):
for one budget at 1,000 layers, five in six. One worker, a fixed seed and a deterministic time limit make the plan the same on every run and machine.
"""

from __future__ import annotations

import numpy as np
from ortools.sat.python import cp_model

from ompq_deploy.allocate import bounds
from ompq_deploy.allocate.problem import Compact, Int64, Problem, Solution, compact

DETERMINISTIC_LIMIT = 60.0
"""CP-SAT's machine-independent time; about as many seconds."""


def solve(problem: Problem, *, seed: int = 0, hint: Int64 | None = None) -> Solution | None:
    """The best plan, or None where there is none. `hint` is a plan to start from, such as a neighbour's."""
    rows = compact(problem)
    start = None if hint is None else _counts(rows, hint)
    relaxed = bounds.relaxation(rows)
    if relaxed is not None:
        known = [counts for counts in (start, bounds.incumbent(rows, relaxed)) if counts is not None]
        start = min((counts for counts in known if bounds.fits(rows, counts)), default=None,
                    key=lambda counts: bounds.value_of(rows, counts))  # fmt: skip
        if start is not None:
            rows = bounds.without_hopeless(rows, relaxed.price, bounds.value_of(rows, start))
    model = cp_model.CpModel()
    variables: dict[tuple[int, int], cp_model.IntVar] = {}
    for k, c in np.argwhere(rows.allowed).tolist():
        count = int(rows.count[k])
        variables[k, c] = model.new_bool_var("") if count == 1 else model.new_int_var(0, count, "")
    for k, count in enumerate(rows.count.tolist()):
        mine = [variables[k, c] for c in np.flatnonzero(rows.allowed[k]).tolist()]
        if count == 1:
            model.add_exactly_one(mine)
        else:
            model.add(sum(mine) == count)
    flat = list(variables.values())
    for cost, room in zip(rows.costs, rows.room.tolist(), strict=True):
        model.add(cp_model.LinearExpr.weighted_sum(flat, cost[rows.allowed].tolist()) <= room)
    model.minimize(cp_model.LinearExpr.weighted_sum(flat, rows.value[rows.allowed].tolist()))
    if start is not None:
        for (k, c), variable in variables.items():
            model.add_hint(variable, int(start[k, c]))

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    solver.parameters.max_deterministic_time = DETERMINISTIC_LIMIT
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    counts = np.zeros(rows.value.shape, np.int64)
    for (k, c), variable in variables.items():
        counts[k, c] = solver.value(variable)
    choice = rows.expand(counts)
    loss = problem.loss_of(choice)
    bound = loss if status == cp_model.OPTIMAL else min(loss, rows.loss_bound(solver.best_objective_bound))
    return Solution(choice=choice, status=solver.status_name(status), bound=bound)


def _counts(rows: Compact, choice: Int64) -> Int64:
    """How many rows of each class take each column in a plan, int64 (K, C)."""
    counts = np.zeros(rows.value.shape, np.int64)
    for k, members in enumerate(rows.members):
        for layers in members:
            counts[k, choice[layers[0]]] += 1
    return counts
