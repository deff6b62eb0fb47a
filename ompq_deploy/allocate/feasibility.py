"""Why no plan keeps the limits, said with numbers: the smallest feasible value of each limited resource."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ompq_deploy.allocate import cp_sat
from ompq_deploy.allocate.problem import Problem, Solution
from ompq_deploy.artifacts import Layer, Resource
from ompq_deploy.errors import InfeasibleBudget
from ompq_deploy.units import format_bytes, format_count, format_time

FLAGS = {"size": "--size", "bops": "--bops", "latency": "--latency", "activation memory": "--activation-memory"}
FORMATS: dict[str, Callable[[int], str]] = {
    "size": format_bytes,
    "bops": format_count,
    "latency": format_time,
    "activation memory": format_bytes,
}
UNITS = {"size": "B", "bops": "", "latency": "ns", "activation memory": "B"}
BLOCKERS_NAMED = 5


def refuse_infeasible(problem: Problem, layers: Sequence[Layer]) -> None:
    """Raise InfeasibleBudget where one limit alone cannot be kept."""
    unconstrained = replace(problem, resources=tuple(replace(r, limit=None) for r in problem.resources))
    limited = [r for r in problem.resources if r.limit is not None]
    for resource in limited:
        least = smallest(unconstrained, resource)
        if least is not None and least > (resource.limit or 0):
            raise InfeasibleBudget(
                _too_small(problem, resource, least),
                where=_blockers(problem, resource, layers),
                fix=f"raise {FLAGS[resource.name]} to {least}{UNITS[resource.name]} or more"
                + _other_ways(problem, resource),
            )


def refuse_broken(problem: Problem, solution: Solution, solver: str) -> None:
    """Raise InfeasibleBudget for a plan over its limits: a published method that rounds without checking."""
    broken = problem.broken(solution.choice)
    if not broken:
        return
    over = [f"{r.name} {r.used(solution.choice):,} over {r.limit:,}" for r in broken]
    raise InfeasibleBudget(
        f"{solver} ends OVER BUDGET: " + ", ".join(over),
        where=f"--solver {solver}",
        fix="use --solver cp-sat, which keeps every budget; nothing was written",
    )


def infeasible_together(problem: Problem) -> InfeasibleBudget:
    """The error for limits that can be kept one by one but not together."""
    parts = []
    for resource in problem.resources:
        if resource.limit is not None and resource.cost.any():
            others = problem.limited(resource.name, None)
            least = smallest(others, resource)
            show, unit = FORMATS[resource.name], UNITS[resource.name]
            parts.append(
                f"{resource.name} needs {least}{unit} ({show(least)}) with the other limits kept"
                if least is not None
                else f"the limits without {resource.name} already exclude each other"
            )
    return InfeasibleBudget(
        "no plan keeps all the limits together",
        where="; ".join(parts),
        fix="raise one of them to the value named, or allow more widths with --bits 2-8",
    )


def smallest(problem: Problem, resource: Resource) -> int | None:
    """The least a plan can use of one resource within the problem's other limits, or None where they exclude
    each other."""
    resources = (replace(resource, limit=None), *(r for r in problem.resources if r.name != resource.name))
    only = replace(problem, loss=np.zeros_like(problem.loss), resources=resources)
    solution = cp_sat.solve(only)
    return None if solution is None else resource.used(solution.choice)


def _too_small(problem: Problem, resource: Resource, least: int) -> str:
    show = FORMATS[resource.name]
    widths = ",".join(str(bits) for bits in sorted({weight for weight, _ in problem.choices}))
    unit = {"size": " bytes", "activation memory": " bytes", "latency": " ns", "bops": ""}[resource.name]
    return (
        f"{show(resource.limit or 0)} is too small: the smallest feasible {resource.name} is {least}{unit} "
        f"({show(least)}) with widths {widths}"
    )


def _blockers(problem: Problem, resource: Resource, layers: Sequence[Layer]) -> str:
    show = FORMATS[resource.name]
    if not resource.cost.any():
        return "activations are 8 bits wide whatever the plan"
    least = np.where(problem.allowed, resource.cost, np.iinfo(np.int64).max).min(axis=1)
    largest_first = sorted(range(len(layers)), key=lambda i: -int(least[i]))[:BLOCKERS_NAMED]
    parts = [f"{layers[i].name} {show(int(least[i]))}" for i in largest_first]
    fixed = {"size": f"graph and scales take {show(resource.fixed)}; "}.get(resource.name, "")
    return fixed + "the largest layers at their smallest width: " + ", ".join(parts)


def _other_ways(problem: Problem, resource: Resource) -> str:
    if not resource.cost.any():
        return ", or use a network or an input of smaller size"
    narrow = min(weight for weight, _ in problem.choices) > 2
    return ", or allow smaller widths with --bits 2-8" if narrow else ", or use a smaller network"
