"""What is minimized when a layer is rounded: its target, the covariance of its inputs, how its channels are coupled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Float64, Layer
from ompq_deploy.quantize import columns, gptq
from ompq_deploy.quantize.covariance import Moments
from ompq_deploy.quantize.kronecker import coupled_codes
from ompq_deploy.quantize.shrinkage import STEPS, best_shrinkage, shrunk
from ompq_deploy.quantize.target import fitted_target

DAMPING = 0.01
COUPLING_DAMPING = 0.2

Halves = tuple[NDArray, NDArray]
MOST_CHANNELS = 4096
"""Channels rounded together: twice as many take eight times as long, 4,000 of them half a minute on one thread."""


@dataclass(frozen=True, kw_only=True)
class RoundingProblem:
    """One layer's W' (G, K, R) and damped H (G, K, K), as `gptq.py` takes them, and A (G, R, R) of `kronecker.py`."""

    layer: Layer
    target: NDArray
    hessian: NDArray
    coupling: Float64 | None = None

    def codes(self, widths: Sequence[int], least: Float32) -> list[tuple[NDArray[np.int8], Float32]]:
        """At each width codes of the weight's shape and scales per channel, none below `least`."""
        groups, _, rows = self.target.shape
        count, shared = len(widths), groups * rows > self.layer.channels
        floor = np.broadcast_to(least.reshape(-1, rows), (groups, rows))
        found, scale = gptq.second_order_codes(
            np.tile(self.target, count), self.hessian, np.repeat(widths, rows), np.tile(floor, count), shared=shared
        )
        results = []
        for i, width in enumerate(widths):
            some = slice(i * rows, (i + 1) * rows)
            codes, scales = found[:, :, some], scale[:, some]
            if self.coupling is not None:
                codes, scales = self._coupled(self.coupling, codes, scales, width, floor)
            codes = codes.reshape(self.layer.groups, -1, rows)  # parts joined
            stored = np.ascontiguousarray(columns.weight_from_columns(self.layer, codes))
            results.append((stored, scales[0] if shared else scales.reshape(-1)))
        return results

    def _coupled(
        self, coupling: Float64, codes: NDArray[np.int8], scales: Float32, width: int, least: Float32
    ) -> tuple[NDArray[np.int8], Float32]:
        """The codes (G, K, R) and scales (G, R) once more, with the channels of each group rounded together."""
        groups = zip(self.target, self.hessian, coupling, codes, scales, least, strict=True)
        found = [coupled_codes(w, h, a, q, s, width, floor) for w, h, a, q, s, floor in groups]
        return np.stack([q for q, _ in found]), np.stack([s for _, s in found])


def rounding_problem(
    layer: Layer,
    weight: Float32,
    moments: Moments,
    halves: tuple[Moments, ...],
    bias: Float32 | float | None,
    seed: int,
    channels: Halves | None = None,
) -> RoundingProblem:
    """The problem that the `moments` of all samples pose; `halves` are those of either half. A `bias` (C,) is one that
    has to stay, None one that follows from the means. `channels` are the layer's of OutputWeights (`refine.py`)."""
    if bias is not None:
        each = np.broadcast_to(np.asarray(bias, np.float64), moments.output_mean.size)
        rows = each.reshape(moments.output_mean.shape)
        moments = moments.around_zero(rows)
        halves = tuple(half.around_zero(rows) for half in halves)
    target = columns.in_parts(layer, columns.weight_columns(layer, weight))
    random = np.random.default_rng(seed)
    if moments.cross.size:
        target = fitted_target(target, moments, halves, random)
    r = STEPS[0]  # one sample does not tell what varies by chance
    if len(halves) == 2:
        r = best_shrinkage((halves[0].hessian, halves[1].hessian), DAMPING, random)
    hessian = gptq.damped(shrunk(moments.hessian, r), DAMPING)
    return RoundingProblem(layer=layer, target=target, hessian=hessian, coupling=_coupling(layer, channels, seed))


def coupled(layer: Layer) -> bool:
    """Whether the channels of a layer are rounded together: not those alone in their group, nor of inputs in parts, nor
    where they are so many that A alone takes minutes."""
    return layer.channels // layer.groups > 1 and layer.channels <= MOST_CHANNELS and columns.parts(layer) == 1


def _coupling(layer: Layer, channels: Halves | None, seed: int) -> Float64 | None:
    """A (G, R, R) of `kronecker.py` from the `channels` of OutputWeights, shrunk as their halves say and damped; None
    where none are known, or channels are not rounded together, also because groups share their scales
    (ConvTranspose)."""
    if channels is None or not coupled(layer) or len(channels[0]) != layer.channels:
        return None
    first, second = (_diagonal_blocks(half, layer.groups).astype(np.float64) for half in channels)
    r = best_shrinkage((first, second), COUPLING_DAMPING, np.random.default_rng(seed))
    return gptq.damped(shrunk((first + second) / 2, r), COUPLING_DAMPING)


def _diagonal_blocks(matrix: NDArray, count: int) -> NDArray:
    """The square blocks (count, R, R) on the diagonal of a matrix."""
    size = len(matrix) // count
    return np.stack([matrix[i : i + size, i : i + size] for i in range(0, len(matrix), size)])
