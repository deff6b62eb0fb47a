"""The learning rate: a linear rise over the first steps, then a cosine to zero (Loshchilov & Hutter, ICLR 2017).

With w the steps of the rise and T all steps, step t = 0, 1, ... is taken at lr times

    (t + 1) / w                                     t < w
    (1 + cos(pi (t - w) / (T - w))) / 2             t >= w
"""

from __future__ import annotations

import math


def rate(step: int, steps: int, warmup: float) -> float:
    """The factor of step `step` of `steps`; `warmup` is the share of steps over which it rises."""
    rise = int(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
