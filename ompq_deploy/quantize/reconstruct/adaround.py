"""Learned rounding (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020).

    w'(V) = s clip(floor + h(V), low, high)      h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)           (their Eq. 22, 23)
    R(V)  = mean over weights of 1 - |2 h(V) - 1|^beta         beta falls from 20 to 2 by a cosine        (their Eq. 24)

The two codes offered to a weight are the one it has and the next towards the float weight. h begins near the code at
hand, START of the way to the float weight, so that rounding h gives it back: refined codes make up for each other's
errors, and a start at the float weight itself would throw that away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STRETCH = 1.2
SHIFT = 0.1
FIRST_BETA, LAST_BETA = 20.0, 2.0
START = 0.5
FARTHEST = 0.98
"""How far from its code, in steps, a float weight counts at most: START of it stays below one half."""
EDGE = 1e-3
"""How near to 0 and 1 the first h may be: at the very edge V has no gradient."""


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V)."""
    return torch.clamp(STRETCH * torch.sigmoid(v) - SHIFT, 0.0, 1.0)


def inverse_sigmoid(h: Tensor) -> Tensor:
    """V of h, kept off the edges."""
    return torch.logit((h.clamp(EDGE, 1 - EDGE) + SHIFT) / STRETCH)


def beta_at(progress: float) -> float:
    """beta when a share `progress` of the steps is done."""
    return LAST_BETA + (FIRST_BETA - LAST_BETA) * 0.5 * (1 + math.cos(math.pi * progress))


class LearnedRounding:
    """The codes of one weight: `floor`, integers, and `v`, learned, both of the weight's shape."""

    def __init__(self, codes: Tensor, weight: Tensor, low: int, high: int) -> None:
        """`codes` are those at hand, `weight` the float weight in steps; codes stay within `low` and `high`."""
        start = codes + START * (weight - codes).clamp(-FARTHEST, FARTHEST)
        self.floor = torch.floor(start)
        self.v = inverse_sigmoid(start - self.floor).requires_grad_()
        self._low, self._high = low, high

    def soft(self) -> Tensor:
        """Codes between two integers, with gradients."""
        return torch.clamp(self.floor + rectified_sigmoid(self.v), self._low, self._high)

    def hard(self) -> Tensor:
        """The integers that the soft codes lean to."""
        return torch.clamp(self.floor + (self.v.detach() >= 0), self._low, self._high)

    def indecision(self, beta: float) -> Tensor:
        """Sum over the weights of 1 - |2 h - 1|^beta: 0 where every h is 0 or 1."""
        return (1 - (2 * rectified_sigmoid(self.v) - 1).abs().pow(beta)).sum()
