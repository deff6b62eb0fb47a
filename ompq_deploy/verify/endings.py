"""Compare the float tensors where the integers end, from which the graph outputs come, with the Q/DQ model's.

    SQNR = 10 log10(sum theirs^2 / sum (ours - theirs)^2)     in dB

Fed the same integers, both models hold the same sums there as float32, but for biases rounded to the accumulator's
grid and tensors on 16-bit grids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.export.integer.program import IntegerProgram
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import grid_tensor
from ompq_deploy.verify.verdict import Check

MIN_SQNR_DB = 40.0
"""Real networks stay above 60 dB; a lost bias or a wrong scale falls below."""


@dataclass(kw_only=True)
class EndingTally:
    """Both sums of squares of one tensor, added up over runs."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
        """Count two float tensors of one shape."""
        reference = theirs.astype(np.float64)
        self.signal += float(np.square(reference).sum())
        self.noise += float(np.square(ours - reference).sum())

    @property
    def sqnr_db(self) -> float:
        """Infinite where nothing differs."""
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def compared_endings(program: IntegerProgram) -> tuple[str, ...]:
    """The tensors that are dequantized and lie on no grid of the Q/DQ model, where they would be compared anyway."""
    index, graph = GraphIndex(program.graph.model), program.graph
    tensors = (ending.tensor for ending in program.dequantized)
    return tuple(name for name in tensors if grid_tensor(index, graph.activations, name) is None)


def endings_check(program: IntegerProgram, tallies: Mapping[str, EndingTally]) -> Check:
    """Whether every ending is as close to the Q/DQ model's as rounding leaves it."""
    layers = {operation.output: operation.name for operation in program.operations}
    for name, tally in tallies.items():
        if not tally.sqnr_db >= MIN_SQNR_DB:
            detail = f"fed the same integers as the Q/DQ model, {name!r} is {tally.sqnr_db:.1f} dB from it"
            return Check(name="outputs", passed=False, layer=layers.get(name, name), detail=detail)
    return Check(name="outputs", passed=True)
