"""Metrics that look at no data: what any clever metric has to beat.

mse     loss_i(b) = ||Q_b(w_i) - w_i||^2
size    loss_i(b) = 4^-b                       every layer alike, so that only its bytes decide
random  loss_i(b) = u_i 4^-b,  u_i uniform in (0, 1]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Layer, Scores
from ompq_deploy.metrics.weight_error import squared_errors


def mse(weights: Mapping[str, NDArray], layers: Sequence[Layer], bits: tuple[int, ...]) -> Scores:
    """Squared weight error of every layer and width."""
    loss = squared_errors(weights, layers, bits)
    return Scores(metric="mse", bits=bits, loss=loss, importance=loss.max(axis=1))


def size(layers: Sequence[Layer], bits: tuple[int, ...]) -> Scores:
    """Every layer equally important."""
    return _scaled("size", np.ones(len(layers)), bits)


def random(layers: Sequence[Layer], bits: tuple[int, ...], seed: int) -> Scores:
    """Importance drawn from a seeded generator."""
    return _scaled("random", 1.0 - np.random.default_rng(seed).random(len(layers)), bits)


def _scaled(name: str, importance: NDArray[np.float64], bits: tuple[int, ...]) -> Scores:
    error = 4.0 ** -np.asarray(bits, np.float64)
    return Scores(metric=name, bits=bits, loss=importance[:, None] * error[None, :], importance=importance)
