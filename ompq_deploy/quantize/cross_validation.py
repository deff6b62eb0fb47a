"""What the choice of a strength by cross-validation shares: the search, and probes that stand for many dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ompq_deploy.artifacts import Float32

PROBES = 64
"""Random vectors that estimate a trace over more dimensions than this (Hutchinson)."""


def downhill(steps: Sequence[float], left: Callable[[float], float], start: int) -> float:
    """The step at which `left`, what one half of the samples leaves on the other, stops falling.

    It is taken to fall and then rise along `steps`, and to be infinite where it raises np.linalg.LinAlgError: at a
    strength so small that float32 takes a covariance for singular.
    """

    def value(place: int) -> float:
        try:
            return left(steps[place])
        except np.linalg.LinAlgError:
            return np.inf

    best, least = start, value(start)
    for way in (1, -1):
        while 0 <= best + way < len(steps) and (found := value(best + way)) < least:
            best, least = best + way, found
        if best != start:
            break
    return steps[best]


def probes(dimensions: int, random: np.random.Generator) -> Float32:
    """P (dimensions, N) of which P P^T is about I, and I itself where `dimensions` are few."""
    if dimensions <= PROBES:
        return np.eye(dimensions, dtype=np.float32)
    signs = random.integers(0, 2, (dimensions, PROBES)) * 2 - 1
    return (signs / np.sqrt(PROBES)).astype(np.float32)
