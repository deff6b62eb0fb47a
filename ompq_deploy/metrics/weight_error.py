"""The relative error that rounding a layer's weights to b bits leaves: e(b) = ||Q_b(w) - w||^2 / ||w||^2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Layer
from ompq_deploy.numerics import along_axis
from ompq_deploy.weight_scale import quantize_weight

SCALE_STEPS = 5
"""Coarser than for the weights that ship: a sensitivity needs the error to a few percent only."""


def squared_errors(weights: Mapping[str, NDArray], layers: Sequence[Layer], bits: Sequence[int]) -> NDArray[np.float64]:
    """||Q_b(w) - w||^2 for every layer and width, float64 (L, B)."""
    table = np.zeros((len(layers), len(bits)))
    for row, layer in enumerate(layers):
        weight = weights[layer.name]
        for column, width in enumerate(bits):
            codes, scale = quantize_weight(weight, width, layer.channel_axis, steps=SCALE_STEPS)
            difference = codes * along_axis(scale, weight.ndim, layer.channel_axis) - weight
            table[row, column] = np.square(difference, dtype=np.float64).sum()
    return table


def relative_errors(
    weights: Mapping[str, NDArray], layers: Sequence[Layer], bits: Sequence[int]
) -> NDArray[np.float64]:
    """e(b) for every layer and width, float64 (L, B); 0 for a layer whose weights are all zero."""
    energy = np.array([np.square(weights[layer.name], dtype=np.float64).sum() for layer in layers])
    errors = squared_errors(weights, layers, bits)
    return np.divide(errors, energy[:, None], out=np.zeros_like(errors), where=energy[:, None] > 0)
