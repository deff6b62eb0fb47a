"""How many results may round another way than the Q/DQ model's, because 16-bit grids round on the way to them.

Fed the same integers, both models compute one real number, and the Q/DQ model rounds it once, to an 8-bit grid. Where
this model has put it on wide grids before, it is off by d, in steps of that grid, and E |d| of the results round to
another step: to the next one, while |d| < 1. Rounding is off by half a step at most, and a quarter on average, and
what reads the result carries that on by its gain, the steps of its output per step of its input:

    off[T]   = 1/4 + sum over inputs of gain off[input]       on a wide grid, on average;  1/2 for 1/4 at most
    share[T] = sum over inputs of gain off[input]             on an 8-bit grid; what it reads there is exact

The gain of a sum is |M| / 2^shift, which differs by channel behind a smoothing (`passes/smooth.py`), that of a table
its steepest slope. Other operations are taken for exact: their wide inputs are so fine that it hardly matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ompq_deploy.artifacts import Float64
from ompq_deploy.export.integer.program import IntegerMove, IntegerProgram, IntegerSum, IntegerTable, Operation

MEAN_ROUNDING, MOST_ROUNDING = 0.25, 0.5
STRETCH = 256
"""Entries of a table over which its slope is taken: entries on a coarser grid move by whole steps."""


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """How far off the Q/DQ model's real number a tensor is before its own rounding, in its steps."""

    mean: float = 0.0
    most: float = 0.0

    @property
    def steps(self) -> int:
        """The most steps that an integer may be off."""
        return max(1, math.ceil(self.most))


def most_by_chance(share: float, elements: int) -> float:
    """What a share of `elements` may come to by chance, at three standard deviations of a Poisson count."""
    return share + 3 * math.sqrt(share / max(elements, 1))


def rounded_before(program: IntegerProgram) -> dict[str, Rounded]:
    """Of every tensor that the operations of `program` put on a grid."""
    found: dict[str, Rounded] = {}
    for operation in program.operations:
        if isinstance(operation, IntegerMove):
            found[operation.output] = found.get(operation.input, Rounded())
            continue
        mean = most = 0.0
        for name, gain in _gains(operation):
            if program.grids[name].wide:
                before = found.get(name, Rounded())
                mean += float(gain.mean()) * (before.mean + MEAN_ROUNDING)
                most += float(gain.max()) * (before.most + MOST_ROUNDING)
        found[operation.output] = Rounded(mean=mean, most=most)
    return found


def _gains(operation: Operation) -> list[tuple[str, Float64]]:
    """Each input and the steps of the output per step of it, of every channel where they differ."""
    if isinstance(operation, IntegerSum):
        share = np.ldexp(1.0, -operation.clamp.shift.astype(np.int32))
        return [(name, np.abs(m) * share) for name, m in zip(operation.inputs, operation.multipliers, strict=True)]
    if isinstance(operation, IntegerTable) and operation.table.size > STRETCH:
        table = operation.table.astype(np.int64)
        return [(operation.input, np.abs(table[STRETCH:] - table[:-STRETCH]).max() / STRETCH)]
    return []
