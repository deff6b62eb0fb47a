"""Every layer's weights rounded to every width, once for all metrics: Q_b(w) - w and its squared norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Float64, PreparedGraph
from ompq_deploy.numerics import along_axis
from ompq_deploy.weight_scale import quantize_weight

SCALE_STEPS = 5
"""Coarser than for the weights that ship: a sensitivity needs the error to a few percent only."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """`weights` float, by layer name; `errors[layer]` is Q_b(w) - w, float32 (B, *shape), widths as in `bits`."""

    bits: tuple[int, ...]
    weights: Mapping[str, Float32]
    errors: Mapping[str, Float32]

    def rounded(self, layer: str, bits: int) -> Float32:
        """Q_b(w), float32, the weight's shape."""
        return self.weights[layer] + self.errors[layer][self.bits.index(bits)]

    def squared(self) -> Float64:
        """||Q_b(w) - w||^2, float64 (L, B)."""
        flat = (error.reshape(len(self.bits), -1) for error in self.errors.values())
        return np.stack([np.einsum("bk,bk->b", rows, rows, dtype=np.float64) for rows in flat])

    def relative(self) -> Float64:
        """||Q_b(w) - w||^2 / ||w||^2, float64 (L, B); 0 for a layer whose weights are all zero."""
        energy = np.array([np.square(weight, dtype=np.float64).sum() for weight in self.weights.values()])[:, None]
        squared = self.squared()
        return np.divide(squared, energy, out=np.zeros_like(squared), where=energy > 0)


def round_weights(graph: PreparedGraph, bits: Sequence[int], *, steps: int = SCALE_STEPS) -> Rounding:
    """Round every layer's weights to nearest at every width, with the scale of least squared error."""
    weights = graph.layer_weights()
    errors = {}
    for layer in graph.layers:
        weight, axis = weights[layer.name], layer.channel_axis
        nearest = (quantize_weight(weight, width, axis, steps=steps) for width in bits)
        errors[layer.name] = rounding_errors(weight, nearest, len(bits), axis)
    return Rounding(bits=tuple(bits), weights=weights, errors=errors)


def rounding_errors(
    weight: Float32, rounded: Iterable[tuple[NDArray[np.int8], Float32]], count: int, channel_axis: int
) -> Float32:
    """s q - w, float32 (B, *shape), for `count` pairs of codes and scales per channel."""
    errors = np.empty((count, *weight.shape), np.float32)
    for error, (codes, scale) in zip(errors, rounded, strict=True):
        np.subtract(codes * along_axis(scale, weight.ndim, channel_axis), weight, out=error)
    return errors
