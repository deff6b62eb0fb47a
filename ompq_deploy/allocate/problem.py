"""An instance of the allocation problem as plain arrays, and its compact form that the solvers read.

    min  sum_i loss[i, c_i]                                 L layers, each takes one of C choices
    s.t. fixed_r + sum_i cost_r[i, c_i] <= limit_r          every resource r that has a limit
         allowed[i, c_i],   c_i = c_j where group_i = group_j

Compact form: the layers of a group become one row (losses and costs added), choices that another choice beats
in everything are struck out, rows that are identical become one class with a count, and the objective becomes
integer, so that among plans of equal loss the one using least of the first resource wins in the same pass:

    value = steps * (total of the first resource + 1) + cost of the first resource,   steps = loss / unit
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Resource

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

LOSS_RESOLUTION = 10**8
"""Losses are rounded to this fraction of the largest possible total loss."""

LARGEST_TIE_BREAK = 4 * 10**10
"""Keeps LOSS_RESOLUTION times the tie-break within 63 bits."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One instance. `loss` is finite and nonnegative; `choices` are (weight bits, activation bits); the first
    of `resources` breaks ties; `group` holds one label per layer, equal where layers are tied;
    every group has a choice that all its layers may take."""

    names: tuple[str, ...]
    choices: tuple[tuple[int, int], ...]
    loss: Float64
    resources: tuple[Resource, ...]
    allowed: Bool
    group: Int64

    def loss_of(self, choice: Int64) -> float:
        return float(self.loss[np.arange(len(choice)), choice].sum())

    def broken(self, choice: Int64) -> tuple[Resource, ...]:
        """The resources whose limit a plan exceeds."""
        return tuple(r for r in self.resources if r.limit is not None and r.used(choice) > r.limit)

    def limited(self, name: str, limit: int | None) -> Problem:
        """The same problem with another limit on one resource."""
        resources = tuple(replace(r, limit=limit) if r.name == name else r for r in self.resources)
        return replace(self, resources=resources)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """What a solver found: a column per layer, its status, and a proven lower bound of the loss."""

    choice: Int64
    status: str
    bound: float


@dataclass(frozen=True, kw_only=True)
class Compact:
    """K classes of identical rows. `value` int64 (K, C) is minimized; `costs` int64 (R, K, C) and `room` (R,)
    are the limits that can bind; `count` (K,) rows per class; `members[k]` the layers of each of its rows.
    A loss is `offset + unit * (value // weight)`."""

    value: Int64
    costs: Int64
    room: Int64
    allowed: Bool
    count: Int64
    members: tuple[tuple[Int64, ...], ...]
    layers: int
    weight: int
    unit: float
    offset: float

    def expand(self, counts: Int64) -> Int64:
        """A column per layer from (K, C) counts; of identical rows the first get the first columns."""
        choice = np.zeros(self.layers, np.int64)
        for rows, taken in zip(self.members, counts, strict=True):
            for layers, column in zip(rows, np.repeat(np.arange(len(taken)), taken), strict=True):
                choice[layers] = column
        return choice

    def counts(self, choice: Int64) -> Int64:
        """How many rows of each class take each column in a plan, int64 (K, C); the inverse of `expand`."""
        counts = np.zeros(self.value.shape, np.int64)
        for k, rows in enumerate(self.members):
            for layers in rows:
                counts[k, choice[layers[0]]] += 1
        return counts

    def loss_bound(self, value: float) -> float:
        """The lower bound of the loss that a lower bound of the objective proves."""
        return self.offset + self.unit * float(value // self.weight)

    @cached_property
    def least(self) -> Int64:
        """The least each class row can use of each resource, int64 (R, K)."""
        return np.where(self.allowed, self.costs, np.iinfo(np.int64).max).min(axis=2)


def compact(problem: Problem, *, count_identical: bool = True) -> Compact:
    """The compact form. With `count_identical` off, every row is a class of its own."""
    groups = [np.flatnonzero(problem.group == label) for label in dict.fromkeys(problem.group.tolist())]
    loss = np.stack([problem.loss[rows].sum(axis=0) for rows in groups])
    allowed = np.stack([problem.allowed[rows].all(axis=0) for rows in groups])
    totals = [np.stack([r.cost[rows].sum(axis=0) for rows in groups]) for r in problem.resources]
    binding = [i for i, r in enumerate(problem.resources) if r.limit is not None and _can_bind(r, totals[i], allowed)]
    costs = np.stack([totals[i] for i in binding]) if binding else np.zeros((0, *loss.shape), np.int64)
    room = np.array([(problem.resources[i].limit or 0) - problem.resources[i].fixed for i in binding], np.int64)

    best = np.where(allowed, loss, np.inf).min(axis=1)
    spread = float((np.where(allowed, loss, -np.inf).max(axis=1) - best).sum())
    unit = spread / LOSS_RESOLUTION if spread > 0 else 1.0
    steps = np.where(allowed, np.rint((loss - best[:, None]) / unit), 0).astype(np.int64)
    coarse = 1 + int(totals[0].max(axis=1).sum()) // LARGEST_TIE_BREAK if spread > 0 else 1
    tie = totals[0] // coarse
    weight = int(tie.max(axis=1).sum()) + 1
    value = steps * weight + tie

    allowed = allowed & ~_dominated(value, costs, allowed)
    value, costs = np.where(allowed, value, 0), np.where(allowed, costs, 0)
    classes: dict[bytes, list[int]] = {}
    for row in range(len(groups)):
        key = value[row].tobytes() + costs[:, row].tobytes() + allowed[row].tobytes()
        classes.setdefault(key if count_identical else bytes(str(row), "ascii"), []).append(row)
    first = [rows[0] for rows in classes.values()]
    return Compact(
        value=value[first],
        costs=costs[:, first],
        room=room,
        allowed=allowed[first],
        count=np.array([len(rows) for rows in classes.values()], np.int64),
        members=tuple(tuple(groups[row] for row in rows) for rows in classes.values()),
        layers=len(problem.loss),
        weight=weight,
        unit=unit,
        offset=float(best.sum()),
    )


def _can_bind(resource: Resource, cost: Int64, allowed: Bool) -> bool:
    most = int(np.where(allowed, cost, np.iinfo(np.int64).min).max(axis=1).sum())
    return resource.limit is not None and resource.fixed + most > resource.limit


def _dominated(value: Int64, costs: Int64, allowed: Bool) -> Bool:
    """Choices that another allowed choice equals or beats in value and in every cost (the earlier of equals stays)."""
    figures = np.concatenate([value[None], costs])
    no_worse = (figures[:, :, None, :] <= figures[:, :, :, None]).all(axis=0)
    equal = (figures[:, :, None, :] == figures[:, :, :, None]).all(axis=0)
    columns = np.arange(value.shape[1])
    earlier = columns[None, :] < columns[:, None]
    beaten = no_worse & (~equal | earlier[None]) & allowed[:, None, :]
    return beaten.any(axis=2) & allowed
