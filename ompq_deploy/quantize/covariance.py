"""Second moments of a layer's inputs and its float outputs, summed batch by batch.

    H = X X^T / p        C = X Y^T / p        m_X = mean X        m_Y = mean Y

X are the inputs that the quantized network would feed the layer, Y what the float layer returned for the same
samples, both at positions of the output feature map drawn at random with a fixed seed: neighbouring positions tell
much the same, and all of a large map would only cost time. With a free bias the mean is not the weight's business, so
`centred` takes it out: H - m_X m_X^T and C - m_X m_Y^T.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float64

MAX_POSITIONS = 16384
"""Positions used of all samples together."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """`hessian` (G, K, K), `cross` (G, K, R), `input_mean` (G, K) and `output_mean` (G, R), all float64."""

    hessian: Float64
    cross: Float64
    input_mean: Float64
    output_mean: Float64

    def centred(self) -> Moments:
        """The same around the means."""
        return Moments(
            hessian=self.hessian - self.input_mean[:, :, None] * self.input_mean[:, None, :],
            cross=self.cross - self.input_mean[:, :, None] * self.output_mean[:, None, :],
            input_mean=self.input_mean,
            output_mean=self.output_mean,
        )

    def without(self, bias: Float64) -> Moments:
        """The same for outputs less a bias (G, R)."""
        return Moments(
            hessian=self.hessian,
            cross=self.cross - self.input_mean[:, :, None] * bias[:, None, :],
            input_mean=self.input_mean,
            output_mean=self.output_mean - bias,
        )


class Accumulator:
    """Adds up the moments of one layer."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[NDArray] = []

    def add(self, inputs: NDArray[np.float32], outputs: NDArray[np.float32]) -> None:
        """One batch: inputs (G, K, P), outputs (G, R, P)."""
        sums = [
            inputs @ inputs.swapaxes(1, 2),
            inputs @ outputs.swapaxes(1, 2),
            inputs.sum(axis=2, dtype=np.float64),
            outputs.sum(axis=2, dtype=np.float64),
        ]
        if not self._sums:
            self._sums = [np.zeros(s.shape) for s in sums]
        for total, s in zip(self._sums, sums, strict=True):
            total += s
        self._count += inputs.shape[2]

    def moments(self) -> Moments:
        hessian, cross, input_mean, output_mean = (s / self._count for s in self._sums)
        return Moments(hessian=hessian, cross=cross, input_mean=input_mean, output_mean=output_mean)


def draw_positions(available: int, wanted: int, random: np.random.Generator) -> NDArray[np.intp]:
    """`wanted` of the `available` positions, but at least one and at most all, ascending."""
    if wanted >= available:
        return np.arange(available)
    return np.sort(random.choice(available, max(1, wanted), replace=False))
