"""Second moments of a layer's inputs and its float outputs around their means, summed batch by batch.

    m_X = mean X      m_Y = mean Y      H = mean (X - m_X)(X - m_X)^T      C = mean (X - m_X)(Y - m_Y)^T

X are the inputs that the quantized network would feed the layer, Y what the float layer returned for the same
samples, both at positions of the output feature map drawn at random with a fixed seed: neighbouring positions tell
much the same, and all of a large map would only cost time. Around the means, because with a free bias the mean is not
the weight's business. Sums are taken around the first batch's means, so that they do not cancel. Positions count the
same, or as weights of mean 1 say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Float64

MAX_POSITIONS = 16384
"""Positions used of all samples together."""
AT_ONCE = 1024
"""Positions multiplied at once: with few the sums (K, K) cost more to add up than to compute."""
ROUNDOFF = 1e-12
"""Share of m_X^2 added to the diagonal of H, so that it stays positive definite where an input is constant."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """`hessian` (G, K, K), `cross` (G, K, R), `input_mean` (G, K) and `output_mean` (G, R), all float64; `count` sums
    up the weights of the positions. `cross` is (G, K, 0) where it was not asked for; G is 1 in `output_mean` where the
    groups of the inputs are parts of one."""

    count: float
    hessian: Float64
    cross: Float64
    input_mean: Float64
    output_mean: Float64

    def around_zero(self, bias: Float64) -> Moments:
        """Mean X X^T and mean X (Y - bias)^T, for a bias (G, R) that has to stay as it is."""
        output_mean = self.output_mean - bias
        crossed = output_mean[:, None, : self.cross.shape[2]]
        return Moments(
            count=self.count,
            hessian=self.hessian + self.input_mean[:, :, None] * self.input_mean[:, None, :],
            cross=self.cross + self.input_mean[:, :, None] * crossed,
            input_mean=self.input_mean,
            output_mean=output_mean,
        )

    def merged(self, other: Moments) -> Moments:
        """The moments of the positions of both."""
        share = other.count / (self.count + other.count)
        dx, dy = other.input_mean - self.input_mean, other.output_mean - self.output_mean
        between, crossed = share * (1 - share) * dx, dy[:, None, : self.cross.shape[2]]
        return Moments(
            count=self.count + other.count,
            hessian=(1 - share) * self.hessian + share * other.hessian + between[:, :, None] * dx[:, None, :],
            cross=(1 - share) * self.cross + share * other.cross + between[:, :, None] * crossed,
            input_mean=self.input_mean + share * dx,
            output_mean=self.output_mean + share * dy,
        )


class Accumulator:
    """Adds up the moments of one layer; `cross` with those of inputs and outputs."""

    def __init__(self, *, cross: bool = True) -> None:
        self._cross = cross
        self._count = 0.0
        self._sums: list[Float64] = []
        self._around: list[Float32] = []
        self._waiting: list[tuple[Float32, Float32]] = []
        self._weights: list[Float32] = []

    def __bool__(self) -> bool:
        return bool(self._sums or self._waiting)

    def add(self, inputs: Float32, outputs: Float32, weights: Float32 | None = None) -> None:
        """One batch: inputs (G, K, P), outputs (G, R, P), and weights (P,) of all batches or of none."""
        self._waiting.append((inputs, outputs))
        if weights is not None:
            self._weights.append(weights)
        if sum(inputs.shape[2] for inputs, _ in self._waiting) >= AT_ONCE:
            self._sum_up()

    def _sum_up(self) -> None:
        """What waits, multiplied and added to the sums."""
        inputs, outputs = (np.concatenate(parts, axis=2) for parts in zip(*self._waiting, strict=True))
        weights = np.concatenate(self._weights) if self._weights else None
        self._waiting, self._weights = [], []
        if not self._around:
            self._around = [inputs.mean(axis=2, keepdims=True), outputs.mean(axis=2, keepdims=True)]
        x, y = inputs - self._around[0], outputs - self._around[1]
        weighted_x, weighted_y = (x, y) if weights is None else (x * weights, y * weights)
        sums = [
            weighted_x @ x.swapaxes(1, 2),
            weighted_x @ (y if self._cross else y[:, :0]).swapaxes(1, 2),
            weighted_x.sum(axis=2, dtype=np.float64),
            weighted_y.sum(axis=2, dtype=np.float64),
        ]
        if not self._sums:
            self._sums = [np.zeros(s.shape) for s in sums]
        for total, s in zip(self._sums, sums, strict=True):
            total += s
        self._count += inputs.shape[2] if weights is None else float(weights.sum(dtype=np.float64))

    def moments(self) -> Moments:
        if self._waiting:
            self._sum_up()
        hessian, cross, dx, dy = (s / self._count for s in self._sums)
        input_mean, output_mean = self._around[0][:, :, 0] + dx, self._around[1][:, :, 0] + dy
        hessian -= dx[:, :, None] * dx[:, None, :]
        diagonal = np.einsum("gkk->gk", hessian)  # a view
        diagonal += ROUNDOFF * np.square(input_mean)
        return Moments(
            count=self._count,
            hessian=hessian,
            cross=cross - dx[:, :, None] * dy[:, None, : cross.shape[2]],
            input_mean=input_mean,
            output_mean=output_mean,
        )


def draw_positions(available: int, wanted: int, random: np.random.Generator) -> NDArray[np.intp]:
    """`wanted` of the `available` positions, but at least one and at most all, ascending."""
    if wanted >= available:
        return np.arange(available)
    return np.sort(random.choice(available, max(1, wanted), replace=False))
