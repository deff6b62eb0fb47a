"""Metrics that look at no data: what any clever metric has to beat.

mse     loss_i(b) = ||Q_b(w_i) - w_i||^2
size    loss_i(b) = 4^-b                       every layer alike, so that only its bytes decide
random  loss_i(b) = u_i 4^-b,  u_i uniform in (0, 1]
"""

from __future__ import annotations

import numpy as np

from ompq_deploy.artifacts import Float64, Scores
from ompq_deploy.metrics.rounding import Rounding


def mse(rounding: Rounding) -> Scores:
    """Squared weight error of every layer and width."""
    loss = rounding.squared()
    return Scores(metric="mse", bits=rounding.bits, loss=loss, importance=loss.max(axis=1))


def size(layers: int, bits: tuple[int, ...]) -> Scores:
    """Every layer equally important."""
    return _scaled("size", np.ones(layers), bits)


def random(layers: int, bits: tuple[int, ...], seed: int) -> Scores:
    """Importance drawn from a seeded generator."""
    return _scaled("random", 1.0 - np.random.default_rng(seed).random(layers), bits)


def _scaled(name: str, importance: Float64, bits: tuple[int, ...]) -> Scores:
    error = 4.0 ** -np.asarray(bits, np.float64)
    return Scores(metric=name, bits=bits, loss=importance[:, None] * error[None, :], importance=importance)
