"""OMPQ's own solver (section "Experiments"): the linear programme, then rounding or a depth-first search.

    ompq-lp    b_i = sum_b b x_ib of the relaxed optimum, rounded to the nearest width: np.around, unchecked,
               so the plan can break its budget (published lists do)
    ompq-dfs   every b_i down or up to a neighbouring width, or to one that the relaxed optimum mixes; of the plans
               that keep the budget, the one that uses most of it, found depth first from the last layer, widths up
               before down. Where sizes are linear in the widths, as in the paper, neighbours are what it mixes.

The paper solves with SLSQP, whose interior answer is fractional in many layers; the simplex answer used here is
fractional in at most as many layers as there are budgets. For Eq. 10 both have the same objective.
"""

from __future__ import annotations

import numpy as np

from ompq_deploy.allocate import bounds
from ompq_deploy.allocate.greedy import one_hot
from ompq_deploy.allocate.problem import Bool, Compact, Float64, Int64, Problem, Solution, compact


def solve(problem: Problem) -> Solution | None:
    """LP and rounding; None where even the LP is infeasible. The status says so when the budget is broken."""
    rows = compact(problem, count_identical=False)
    relaxed = bounds.relaxation(rows)
    if relaxed is None:
        return None
    distance = np.abs(_weight_bits(problem)[None, :] - _mean_bits(problem, relaxed)[:, None])
    chosen = np.where(rows.allowed, distance, np.inf).argmin(axis=1)
    return _solution(problem, rows, chosen, relaxed)


def solve_by_search(problem: Problem) -> Solution | None:
    """LP and depth-first search between the neighbouring widths; None where the LP is infeasible."""
    rows = compact(problem, count_identical=False)
    relaxed = bounds.relaxation(rows)
    if relaxed is None:
        return None
    bits, mean = _weight_bits(problem), _mean_bits(problem, relaxed)
    neighbours = [_neighbours(bits, rows.allowed[k], mean[k], relaxed.share[k]) for k in range(len(mean))]
    return _solution(problem, rows, _search(rows, neighbours), relaxed)


def _search(rows: Compact, neighbours: list[list[int]]) -> Int64:
    """Of the plans within the limits, the one that uses most of the first; all-down where there is none."""
    least = np.array([rows.costs[:, k, near].min(axis=1) for k, near in enumerate(neighbours)])
    before = np.concatenate([np.zeros((1, len(rows.room)), np.int64), np.cumsum(least, axis=0)])
    best = np.array([near[-1] for near in neighbours], np.int64)
    most = -1
    nothing: tuple[int, Int64, tuple[int, ...]] = (len(neighbours), np.zeros(len(rows.room), np.int64), ())
    stack = [nothing]
    while stack:
        row, used, tail = stack.pop()
        if (used + before[row] > rows.room).any():
            continue
        if row == 0:
            total = int(used[0]) if len(used) else 0
            if total > most:
                best, most = np.array(tail, np.int64), total
            continue
        for column in reversed(neighbours[row - 1]):
            stack.append((row - 1, used + rows.costs[:, row - 1, column], (column, *tail)))
    return best


def _neighbours(bits: Float64, allowed: Bool, mean: float, share: Float64) -> list[int]:
    """The columns of the next width up, the next width down, and those mixed; the widest first."""
    above = allowed & (bits >= mean - bounds.TOLERANCE)
    below = allowed & (bits <= mean + bounds.TOLERANCE)
    found = set(np.flatnonzero(share > bounds.TOLERANCE).tolist())
    if above.any():
        found.add(int(np.where(above, bits, np.inf).argmin()))
    if below.any():
        found.add(int(np.where(below, bits, -np.inf).argmax()))
    return sorted(found, key=lambda c: -bits[c])


def _solution(problem: Problem, rows: Compact, chosen: Int64, relaxed: bounds.Relaxation) -> Solution:
    choice = rows.expand(one_hot(chosen, rows))
    status = "OVER BUDGET" if problem.broken(choice) else "HEURISTIC"
    return Solution(choice=choice, status=status, bound=rows.loss_bound(relaxed.bound))


def _weight_bits(problem: Problem) -> Float64:
    """Widths as numbers; the activation width only orders columns of equal weight width."""
    return np.array([weight + activation / 1e6 for weight, activation in problem.choices])


def _mean_bits(problem: Problem, relaxed: bounds.Relaxation) -> Float64:
    return relaxed.share @ _weight_bits(problem)
