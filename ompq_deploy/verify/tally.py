"""How two integer tensors on one grid compare, summed up over runs.

exact share = equal elements / elements
SQNR        = 10 log10(sum theirs^2 / sum (ours - theirs)^2)     in dB, integers taken as steps
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(kw_only=True)
class Tally:
    """Elements compared, elements that differ, the largest difference in steps, and both sums of squares."""

    count: int = 0
    different: int = 0
    steps: int = 0
    signal: int = 0
    noise: int = 0

    def add(self, ours: NDArray[Any], theirs: NDArray[Any]) -> None:
        """Count two integer tensors of one shape."""
        reference = theirs.astype(np.int64)
        steps = np.abs(ours.astype(np.int64) - reference)
        self.count += steps.size
        self.different += int(np.count_nonzero(steps))
        self.steps = max(self.steps, int(steps.max(initial=0)))
        self.signal += int(np.square(reference).sum())
        self.noise += int(np.square(steps).sum())

    @property
    def exact(self) -> float:
        """The share of equal elements; 1 where nothing was compared."""
        return 1.0 - self.different / max(self.count, 1)

    @property
    def sqnr_db(self) -> float | None:
        """The signal-to-noise ratio; None where it is not finite: nothing differs, or there is no signal."""
        return 10 * math.log10(self.signal / self.noise) if self.noise and self.signal else None


def exact_share(tallies: Iterable[Tally]) -> float:
    """The share of equal elements over all of them."""
    total = Tally()
    for tally in tallies:
        total.count += tally.count
        total.different += tally.different
    return total.exact
