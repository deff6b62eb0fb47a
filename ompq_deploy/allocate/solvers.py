"""The explicit list of solvers, and the one place that picks among them."""

from __future__ import annotations

from ompq_deploy.allocate import cp_sat, dynamic, greedy, linear
from ompq_deploy.allocate.feasibility import infeasible_together
from ompq_deploy.allocate.problem import Problem, Solution
from ompq_deploy.errors import BadInput

SOLVERS = ("cp-sat", "dp", "mpqco-greedy", "ompq-lp", "ompq-dfs")


def run_solver(problem: Problem, name: str, *, seed: int = 0, hint: Solution | None = None) -> Solution:
    """A solver's answer, which the published methods among them do not promise to keep the limits."""
    if name == "cp-sat":
        found = cp_sat.solve(problem, seed=seed, hint=None if hint is None else hint.choice)
    elif name == "dp":
        found = dynamic.solve(problem)
    elif name == "mpqco-greedy":
        found = greedy.solve(problem)
    elif name == "ompq-lp":
        found = linear.solve(problem)
    elif name == "ompq-dfs":
        found = linear.solve_by_search(problem)
    else:
        raise BadInput(f"unknown solver {name!r}", where="--solver", fix=f"choose one of {', '.join(SOLVERS)}")
    if found is None:
        raise infeasible_together(problem)
    return found
