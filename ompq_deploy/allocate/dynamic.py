"""An independent exact solver for one budget: a dynamic programme over lists of Pareto-optimal partial plans.

    F_0 = {(0, 0)},   F_k = Pareto { (cost + cost_kc, value + value_kc) : (cost, value) in F_(k-1), c allowed }

Partial plans are dropped that cannot fit, or whose value plus the Lagrangian bound of the layers to come exceeds
that of a plan already known:

    value + l (cost - room) + sum_{later k} min_c (value_kc + l cost_kc) > known
"""

from __future__ import annotations

import numpy as np

from ompq_deploy.allocate.greedy import one_hot
from ompq_deploy.allocate.problem import Compact, Float64, Int64, Problem, Solution, compact
from ompq_deploy.errors import BadInput

BISECTIONS = 100
MARGIN = 1e-9


def solve(problem: Problem) -> Solution | None:
    """The optimum, or None where there is none. Raises BadInput where more than one limit can bind."""
    rows = compact(problem, count_identical=False)
    if len(rows.room) > 1:
        raise BadInput("this solver handles one budget", where="--solver dp", fix="use --solver cp-sat")
    if not len(rows.room):
        chosen = np.where(rows.allowed, rows.value, np.iinfo(np.int64).max).argmin(axis=1)
    else:
        if rows.least[0].sum() > rows.room[0]:
            return None
        chosen = _programme(rows)
    choice = rows.expand(one_hot(chosen, rows))
    return Solution(choice=choice, status="OPTIMAL", bound=problem.loss_of(choice))


def _programme(rows: Compact) -> Int64:
    cost, value, room = rows.costs[0], rows.value, int(rows.room[0])
    price = _price(rows)
    known = _known(rows, price)
    priced = np.where(rows.allowed, value + price * cost, np.inf).min(axis=1)
    after = np.concatenate([np.cumsum(priced[::-1])[::-1], [0.0]])
    least_after = np.concatenate([np.cumsum(rows.least[0][::-1])[::-1], [0]])
    slack = MARGIN * (known + price * room)

    costs, values = np.zeros(1, np.int64), np.zeros(1, np.int64)
    history: list[tuple[Int64, Int64]] = []
    for k in range(len(value)):
        columns = np.flatnonzero(rows.allowed[k])
        new_costs = (costs[:, None] + cost[k, columns]).ravel()
        new_values = (values[:, None] + value[k, columns]).ravel()
        hopeful = new_costs + least_after[k + 1] <= room
        hopeful &= new_values + price * (new_costs - room) + after[k + 1] <= known + slack
        kept = np.flatnonzero(hopeful)
        kept = kept[_pareto(new_costs[kept], new_values[kept])]
        history.append((kept // len(columns), columns[kept % len(columns)]))
        costs, values = new_costs[kept], new_values[kept]

    chosen = np.zeros(len(value), np.int64)
    state = int(values.argmin())
    for k in reversed(range(len(value))):
        parents, columns = history[k]
        chosen[k], state = columns[state], int(parents[state])
    return chosen


def _pareto(costs: Int64, values: Int64) -> Int64:
    """Positions of the pairs that no other pair equals or beats, by rising cost."""
    order = np.lexsort((values, costs))
    best_before = np.minimum.accumulate(values[order])
    first = np.ones(len(order), bool)
    first[1:] = best_before[1:] < best_before[:-1]
    return order[first]


def _price(rows: Compact) -> float:
    """The least multiplier whose priced optimum fits."""
    low, high = 0.0, 1.0
    while not _priced_plan_fits(rows, high):
        low, high = high, 4 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if _priced_plan_fits(rows, middle) else (middle, high)
    return high


def _known(rows: Compact, price: float) -> float:
    """The value of a plan that fits: the priced optimum, then single changes that fit while they gain."""
    cost, value = rows.costs[0], np.where(rows.allowed, rows.value.astype(np.float64), np.inf)
    chosen = _priced_plan(rows, price)
    every = np.arange(len(chosen))
    while True:
        left = rows.room[0] - cost[every, chosen].sum()
        gain = value[every, chosen][:, None] - value
        gain = np.where(cost - cost[every, chosen][:, None] <= left, gain, -np.inf)
        row, column = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[row, column] <= 0:
            return float(value[every, chosen].sum())
        chosen[row] = column


def _priced_plan(rows: Compact, price: float) -> Int64:
    """Per row the choice of least priced value; of equal ones the cheapest."""
    priced: Float64 = np.where(rows.allowed, rows.value + price * rows.costs[0], np.inf)
    tied = priced <= priced.min(axis=1, keepdims=True)
    return np.where(tied, rows.costs[0], np.iinfo(np.int64).max).argmin(axis=1)


def _priced_plan_fits(rows: Compact, price: float) -> bool:
    chosen = _priced_plan(rows, price)
    return bool(rows.costs[0][np.arange(len(chosen)), chosen].sum() <= rows.room[0])
