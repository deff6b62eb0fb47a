"""Pick a weight width for every layer under hard budgets: the one stage between scores and quantization.

`problem.py` states the problem; each solver is one file; `limits/rules.py` is what the user fixes beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ompq_deploy.allocate.feasibility import refuse_broken, refuse_infeasible
from ompq_deploy.allocate.problem import Int64, Problem, Solution
from ompq_deploy.allocate.solvers import SOLVERS, run_solver
from ompq_deploy.artifacts import BitPlan, Budget, Layer, PlannedLayer, Resource, Scores, SizeTable, SolverRecord
from ompq_deploy.errors import BadInput
from ompq_deploy.limits.rules import Rules, allowed_choices, fixed_widths, spread_over_ties, tied_groups

__all__ = ["SOLVERS", "Rules", "allocate", "build_problem", "plan_of", "solve"]


def allocate(
    layers: Sequence[Layer],
    scores: Scores,
    sizes: SizeTable,
    budget: Budget,
    *,
    resources: Sequence[Resource] = (),
    rules: Rules | None = None,
    ties: Sequence[Sequence[str]] = (),
    offered: Sequence[int] | None = None,
    activation_bits: int | Sequence[int] = 8,
    solver: str = "cp-sat",
    seed: int = 0,
) -> BitPlan:
    """The plan of least total loss within every budget.

    Raises InfeasibleBudget when there is none, and BadInput for losses that are not finite and nonnegative.
    See `build_problem` for the parameters.
    """
    problem = build_problem(
        layers, scores, sizes, budget,
        resources=resources, rules=rules, ties=ties, offered=offered, activation_bits=activation_bits,
    )  # fmt: skip
    started = time.perf_counter()
    solution = solve(problem, layers, solver, seed=seed)
    return plan_of(problem, solution, layers, scores, budget, solver, time.perf_counter() - started)


def build_problem(
    layers: Sequence[Layer],
    scores: Scores,
    sizes: SizeTable,
    budget: Budget,
    *,
    resources: Sequence[Resource] = (),
    rules: Rules | None = None,
    ties: Sequence[Sequence[str]] = (),
    offered: Sequence[int] | None = None,
    activation_bits: int | Sequence[int] = 8,
) -> Problem:
    """The instance to solve. The columns of `scores`, `sizes` and `resources` are its choices.

    `resources` come beside the size, with their limits. `offered` are the weight widths open to a layer that no
    rule fixes (default: all of `scores.bits`). `activation_bits` is one width, or one per column: then columns
    are (weight, activation) pairs, and `scores.bits` may repeat. `ties` are layers to tie, by name.
    """
    rules = rules or Rules()
    names = tuple(layer.name for layer in layers)
    _refuse_bad_losses(names, scores)
    group = tied_groups(rules, names, ties)
    fixed = spread_over_ties(fixed_widths(rules, names), names, group)
    widths = [activation_bits] * len(scores.bits) if isinstance(activation_bits, int) else list(activation_bits)
    size = Resource(name="size", cost=sizes.bytes, fixed=sizes.fixed, limit=budget.size_bytes)
    return Problem(
        names=names,
        choices=tuple(zip(scores.bits, widths, strict=True)),
        loss=scores.loss,
        resources=(size, *resources),
        allowed=allowed_choices(fixed, names, scores.bits, scores.bits if offered is None else offered),
        group=group,
    )


def solve(
    problem: Problem, layers: Sequence[Layer], solver: str = "cp-sat", *, seed: int = 0, hint: Int64 | None = None
) -> Solution:
    """A plan that keeps every limit, or InfeasibleBudget saying what stands in the way."""
    refuse_infeasible(problem, layers)
    solution = run_solver(problem, solver, seed=seed, hint=hint)
    refuse_broken(problem, solution, solver)
    return solution


def plan_of(
    problem: Problem,
    solution: Solution,
    layers: Sequence[Layer],
    scores: Scores,
    budget: Budget,
    solver: str,
    seconds: float,
) -> BitPlan:
    """The plan as the later stages read it."""
    size = problem.resources[0]
    used = {resource.name: resource.used(solution.choice) for resource in problem.resources}
    return BitPlan(
        layers=tuple(
            PlannedLayer(
                name=layer.name,
                op=layer.op,
                weight_bits=problem.choices[column][0],
                activation_bits=problem.choices[column][1],
                numel=layer.numel,
                bytes=int(size.cost[row, column]),
                score=float(scores.importance[row]),
            )
            for row, (layer, column) in enumerate(zip(layers, solution.choice.tolist(), strict=True))
        ),
        budget=budget,
        size_bytes=used["size"],
        bops=used.get("bops"),
        latency_ns=used.get("latency"),
        activation_bytes=used.get("activation memory"),
        metric=scores.metric,
        solver=SolverRecord(
            name=solver,
            status=solution.status,
            objective=problem.loss_of(solution.choice),
            bound=solution.bound,
            seconds=seconds,
        ),
    )


def _refuse_bad_losses(names: Sequence[str], scores: Scores) -> None:
    for name, losses in zip(names, scores.loss, strict=True):
        if not np.isfinite(losses).all() or (losses < 0).any():
            bad = "negative" if np.isfinite(losses).all() else "not finite"
            raise BadInput(
                f"metric {scores.metric!r} gave a loss that is {bad}",
                where=f"layer {name}",
                fix="check the calibration data, or choose another --metric",
            )
