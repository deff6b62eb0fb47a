"""Keep a budget on the engine file, whose size only building it tells.

An engine holds its constants and, per distinct kernel, generated source; the second part depends on the plan as a
whole, so no table per layer can be exact. So the room for the constants is found by bisection: each step plans within
that room, builds the engine and asks whether it keeps the budget. More room mostly means a larger engine, not always;
the best plan that was seen to fit is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from ompq_deploy.artifacts import BitPlan, SizeTable
from ompq_deploy.errors import InfeasibleBudget
from ompq_deploy.units import format_bytes

ROUNDS = 7
"""Bisection steps: the room is found to within 1 % of its range."""


def refuse_too_small(plans: Iterable[BitPlan], budget: int, measure: Callable[[BitPlan], int]) -> None:
    """Raise InfeasibleBudget where the engines of all `plans`, the extreme ones, are above `budget` bytes. Fewer kinds
    of kernels may make the engine of the widest plan smaller than that of the narrowest."""
    sizes = []
    for plan in plans:
        sizes.append(measure(plan))
        if sizes[-1] <= budget:
            return
    least = min(sizes)
    raise InfeasibleBudget(
        f"{format_bytes(budget)} is too small: the smallest engine tried takes {least} bytes",
        where="--size-of engine",
        fix=f"raise --size to {least}B or more; generated kernels, not weights, may take most of it",
    )


def fit_engine(
    sizes: SizeTable, budget: int, measure: Callable[[BitPlan], int], solve: Callable[[SizeTable], BitPlan]
) -> BitPlan:
    """The plan with most room whose engine keeps `budget` bytes; that of the smallest or the widest plan must.

    `solve` plans under a size table and the budget; `measure` builds a plan's engine and tells its bytes, which become
    the plan's `size_bytes`.
    """
    fits, too_much = int(sizes.bytes.min(axis=1).sum()), int(sizes.bytes.max(axis=1).sum())
    best: BitPlan | None = None
    room = too_much
    for _ in range(ROUNDS):
        plan = solve(SizeTable(fixed=budget - room, bytes=sizes.bytes))
        engine = measure(plan)
        if engine <= budget:
            best, fits = replace(plan, size_bytes=engine), room
        else:
            too_much = room
        if fits == too_much:
            break
        room = (fits + too_much) // 2
    if best is None:
        plan = solve(SizeTable(fixed=budget - fits, bytes=sizes.bytes))
        best = replace(plan, size_bytes=measure(plan))
    return best


def stored_constants(numel: int, channels: int, bits: int) -> int:
    """Bytes TensorRT stores for a layer: INT4 codes two per byte, others one each; float scale and bias per channel."""
    packed = bits <= 4 and numel % 2 == 0
    return (numel // 2 if packed else numel) + 2 * np.dtype(np.float32).itemsize * channels
