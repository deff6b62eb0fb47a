"""The linear relaxation of the compact problem, the bound it proves, and the choices it rules out.

    LP             n_kc real, >= 0
    bound(l)     = sum_k count_k min_c (value[k, c] + l . cost[k, c]) - l . room        l >= 0, any
    reduced[k,c] = value[k, c] + l . cost[k, c] - min_c (...)

The bound holds for every l >= 0, so rounding errors of the linear solver can weaken it but not falsify it. A plan
that takes choice c in class k costs at least bound(l) + reduced[k, c]: where that exceeds the value of a plan
already known, the choice is in no better plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from ortools.linear_solver.python import model_builder

from ompq_deploy.allocate.problem import Compact, Float64, Int64

MARGIN = 1e-9
"""Relative slack for double precision where a choice is ruled out."""

TOLERANCE = 1e-6
"""What GLOP may be off by in a share."""


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """`share` float64 (K, C): how many rows take each choice; `price` (R,) the multipliers; `bound` on the value."""

    share: Float64
    price: Float64
    bound: float


def relaxation(rows: Compact) -> Relaxation | None:
    """The optimum of the LP by GLOP, or None where even that is infeasible."""
    if not len(rows.room):
        best = np.where(rows.allowed, rows.value, np.iinfo(np.int64).max).argmin(axis=1)
        share = np.zeros(rows.value.shape)
        share[np.arange(len(best)), best] = rows.count
        return Relaxation(share=share, price=np.zeros(0), bound=bound(rows, np.zeros(0)))
    scale = max(1.0, float(rows.value.max()))
    room = np.maximum(rows.room.astype(np.float64), 1.0)
    model = model_builder.Model()
    where = np.argwhere(rows.allowed)
    shares = [model.new_num_var(0.0, float(rows.count[k]), "") for k, _ in where.tolist()]
    starts = np.searchsorted(where[:, 0], np.arange(len(rows.count) + 1))
    for k, count in enumerate(rows.count.tolist()):
        model.add(model_builder.LinearExpr.sum(shares[starts[k] : starts[k + 1]]) == count)
    limits = [
        model.add(
            model_builder.LinearExpr.weighted_sum(shares, (cost[rows.allowed] / limit).tolist())
            <= float(exact) / float(limit)
        )
        for cost, limit, exact in zip(rows.costs, room, rows.room, strict=True)
    ]
    model.minimize(model_builder.LinearExpr.weighted_sum(shares, (rows.value[rows.allowed] / scale).tolist()))
    solver = model_builder.Solver("GLOP")
    if solver.solve(model) != model_builder.SolveStatus.OPTIMAL:
        return None
    share = np.zeros(rows.value.shape)
    share[rows.allowed] = [solver.value(variable) for variable in shares]
    price = np.maximum(0.0, [-solver.dual_value(limit) for limit in limits]) * scale / room
    return Relaxation(share=share, price=price, bound=bound(rows, price))


def bound(rows: Compact, price: Float64) -> float:
    """The lower bound of the value that a vector of multipliers proves."""
    priced = _priced(rows, price).min(axis=1)
    return float((priced * rows.count).sum() - (price * rows.room).sum())


def without_hopeless(rows: Compact, price: Float64, known: int) -> Compact:
    """The problem without the choices that no plan of value `known` or less can hold."""
    priced = _priced(rows, price)
    reduced = priced - priced.min(axis=1, keepdims=True)
    slack = MARGIN * (abs(float(known)) + float((price * np.abs(rows.room)).sum()))
    keep = rows.allowed & (bound(rows, price) + reduced <= known + slack)
    return replace(rows, allowed=keep)


def incumbent(rows: Compact, relaxed: Relaxation) -> Int64 | None:
    """A plan that fits, counts int64 (K, C), or None where rounding the relaxation down finds none.

    Whole shares stay, the few rows left over take the cheapest choice of their share, and then single rows
    change where that fits, the largest gain first.
    """
    shared = relaxed.share > TOLERANCE
    size = (rows.costs / np.maximum(rows.room, 1)[:, None, None]).sum(axis=0)
    counts = np.floor(relaxed.share + TOLERANCE).astype(np.int64)
    cheapest = np.where(shared, size, np.inf).argmin(axis=1)
    counts[np.arange(len(counts)), cheapest] += rows.count - counts.sum(axis=1)
    if not fits(rows, counts):
        return None
    gain = np.where(rows.allowed[:, None, :], rows.value[:, :, None] - rows.value[:, None, :], -1)
    extra = rows.costs[:, :, None, :] - rows.costs[:, :, :, None]
    while True:
        left = rows.room - (rows.costs * counts).sum(axis=(1, 2))
        possible = (counts > 0)[:, :, None] & (extra <= left[:, None, None, None]).all(axis=0)
        best = int(np.where(possible, gain, -1).argmax())
        k, old, new = np.unravel_index(best, gain.shape)
        if not possible[k, old, new] or gain[k, old, new] <= 0:
            return counts
        counts[k, old] -= 1
        counts[k, new] += 1


def value_of(rows: Compact, counts: Int64) -> int:
    return int((rows.value * counts).sum())


def fits(rows: Compact, counts: Int64) -> bool:
    return bool(((rows.costs * counts).sum(axis=(1, 2)) <= rows.room).all())


def _priced(rows: Compact, price: Float64) -> Float64:
    priced = rows.value + np.tensordot(price, rows.costs.astype(np.float64), axes=1)
    return np.where(rows.allowed, priced, np.inf)
