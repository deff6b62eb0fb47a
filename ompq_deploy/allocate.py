"""Pick a weight width for every layer: the multiple-choice knapsack, solved exactly by OR-Tools CP-SAT.

    min  sum_i sum_b loss_i(b) x_ib        x_ib in {0, 1},  sum_b x_ib = 1
    s.t. fixed + sum_i sum_b bytes_i(b) x_ib <= budget

Bytes are integers as they will be stored, so a plan that is feasible here is feasible on disk. Among plans of
equal loss the smallest is taken, in the same solve: the objective is loss * (total bytes + 1) + bytes.
One worker, a fixed seed and a deterministic time limit make the plan the same on every run and machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from ortools.sat.python import cp_model

from ompq_deploy.artifacts import BitPlan, Budget, Layer, PlannedLayer, Scores, SizeTable, SolverRecord
from ompq_deploy.errors import BadInput, InfeasibleBudget
from ompq_deploy.units import format_bytes

LOSS_RESOLUTION = 10**8
"""Losses are rounded to this fraction of the largest possible total loss."""

DETERMINISTIC_LIMIT = 60.0
"""CP-SAT's machine-independent time; about as many seconds."""

BLOCKERS_NAMED = 5


def allocate(
    layers: Sequence[Layer],
    scores: Scores,
    sizes: SizeTable,
    budget: Budget,
    *,
    activation_bits: int = 8,
    seed: int = 0,
) -> BitPlan:
    """The plan of least total loss within the budget.

    Raises InfeasibleBudget when not even the smallest width of every layer fits, and BadInput for losses
    that are not finite.
    """
    _refuse_bad_losses(layers, scores)
    _refuse_infeasible(layers, scores.bits, sizes, budget)
    loss = _integer_loss(scores.loss)
    room = budget.size_bytes - sizes.fixed
    tie_break = int(sizes.bytes.max(axis=1).sum()) + 1

    model = cp_model.CpModel()
    choices = [[model.new_bool_var(f"{i}_{b}") for b in scores.bits] for i in range(len(layers))]
    for row in choices:
        model.add_exactly_one(row)
    flat = [variable for row in choices for variable in row]
    model.add(cp_model.LinearExpr.weighted_sum(flat, sizes.bytes.ravel().tolist()) <= room)
    model.minimize(cp_model.LinearExpr.weighted_sum(flat, (loss * tie_break + sizes.bytes).ravel().tolist()))

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed
    solver.parameters.max_deterministic_time = DETERMINISTIC_LIMIT
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise InfeasibleBudget(
            f"the solver found no plan ({solver.status_name(status)})",
            where=f"budget {format_bytes(budget.size_bytes)}",
            fix="raise the budget",
        )
    chosen = np.array([[solver.boolean_value(variable) for variable in row] for row in choices]).argmax(axis=1)
    rows = np.arange(len(layers))
    unit = _loss_unit(scores.loss)
    offset = float(scores.loss.min(axis=1).sum())
    return BitPlan(
        layers=tuple(
            PlannedLayer(
                name=layer.name,
                op=layer.op,
                weight_bits=scores.bits[column],
                activation_bits=activation_bits,
                numel=layer.numel,
                bytes=int(sizes.bytes[row, column]),
                score=float(scores.importance[row]),
            )
            for row, (layer, column) in enumerate(zip(layers, chosen, strict=True))
        ),
        budget=budget,
        size_bytes=sizes.fixed + int(sizes.bytes[rows, chosen].sum()),
        metric=scores.metric,
        solver=SolverRecord(
            name="cp-sat",
            status=solver.status_name(status),
            objective=float(scores.loss[rows, chosen].sum()),
            bound=min(
                float(scores.loss[rows, chosen].sum()), offset + unit * (solver.best_objective_bound // tie_break)
            ),
            seconds=solver.wall_time,
        ),
    )


def _refuse_bad_losses(layers: Sequence[Layer], scores: Scores) -> None:
    for layer, losses in zip(layers, scores.loss, strict=True):
        if not np.isfinite(losses).all():
            raise BadInput(
                f"metric {scores.metric!r} gave a loss that is not finite",
                where=f"layer {layer.name}",
                fix="check the calibration data, or choose another --metric",
            )


def _refuse_infeasible(layers: Sequence[Layer], bits: tuple[int, ...], sizes: SizeTable, budget: Budget) -> None:
    smallest = sizes.bytes.min(axis=1)
    least = sizes.fixed + int(smallest.sum())
    if least <= budget.size_bytes:
        return
    largest_first = sorted(range(len(layers)), key=lambda i: -int(smallest[i]))[:BLOCKERS_NAMED]
    parts = [f"{layers[i].name} {format_bytes(int(smallest[i]))}" for i in largest_first]
    raise InfeasibleBudget(
        f"{format_bytes(budget.size_bytes)} is too small: the smallest feasible size is {least} bytes "
        f"({format_bytes(least)}) with widths {','.join(map(str, bits))}",
        where=f"graph and scales take {format_bytes(sizes.fixed)}; the largest layers at their smallest width: "
        + ", ".join(parts),
        fix=f"raise --size to {least}B or more"
        + (", or allow smaller widths with --bits 2-8" if min(bits) > 2 else ", or use a smaller network"),
    )


def _loss_unit(loss: NDArray[np.float64]) -> float:
    """The loss that one integer step stands for."""
    spread = float((loss.max(axis=1) - loss.min(axis=1)).sum())
    return spread / LOSS_RESOLUTION if spread > 0 else 1.0


def _integer_loss(loss: NDArray[np.float64]) -> NDArray[np.int64]:
    """Losses above each layer's best, in integer steps."""
    above = loss - loss.min(axis=1, keepdims=True)
    return np.rint(above / _loss_unit(loss)).astype(np.int64)
