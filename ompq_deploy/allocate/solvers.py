"""The explicit list of solvers, and the one place that picks among them."""

from __future__ import annotations

from collections.abc import Callable

from ompq_deploy.allocate import cp_sat, dynamic, greedy, linear
from ompq_deploy.allocate.feasibility import infeasible_together
from ompq_deploy.allocate.problem import Int64, Problem, Solution
from ompq_deploy.errors import BadInput

Solver = Callable[[Problem, int, Int64 | None], Solution | None]

SOLVERS: dict[str, Solver] = {
    "cp-sat": lambda problem, seed, hint: cp_sat.solve(problem, seed=seed, hint=hint),
    "dp": lambda problem, _, __: dynamic.solve(problem),
    "mpqco-greedy": lambda problem, _, __: greedy.solve(problem),
    "ompq-lp": lambda problem, _, __: linear.solve(problem),
    "ompq-dfs": lambda problem, _, __: linear.solve_by_search(problem),
}


def run_solver(problem: Problem, name: str, *, seed: int = 0, hint: Int64 | None = None) -> Solution:
    """A solver's answer, which the published methods among them do not promise to keep the limits.

    `hint` is a plan to start from, one column per layer; only cp-sat makes use of it.
    """
    if name not in SOLVERS:
        raise BadInput(f"unknown solver {name!r}", where="--solver", fix=f"choose one of {', '.join(SOLVERS)}")
    found = SOLVERS[name](problem, seed, hint)
    if found is None:
        raise infeasible_together(problem)
    return found
