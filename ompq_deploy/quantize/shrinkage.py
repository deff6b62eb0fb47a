"""How far to shrink a covariance of inputs towards its diagonal, by cross-validation.

    H_r = (1 - r) H + r diag H

Error feedback puts errors where the inputs hardly vary. With few samples in many dimensions there are directions in
which these vary by chance, and the errors return on every other sample. Rounding noise is white where it arises: with
H_r = U D U^T it leaves the error e = U^-T n in a row of the weight, n of variance s^2 / 12 (`gptq.py`), so that on
inputs of covariance H'

    E e^T H' e = s^2 / 12 tr(U^-1 H' U^-T)

r is that for which U of each half of the samples leaves least on the other half. Ledoit and Wolf's r (J. Multivariate
Analysis 88, 2004) minds the large eigenvalues, feedback lives on the small ones: on a layer of 960 inputs and 64
samples it gives 0.04, where 0.7 leaves least on unseen samples.

Covariances are (G, K, K).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Float64
from ompq_deploy.quantize.gptq import damped, unit_upper

STEPS = (0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.0)
BLOCK = 128
"""Rows of a triangular matrix that are solved for at once."""
PROBES = 64
"""Random vectors that estimate a trace over more dimensions than this (Hutchinson)."""


def shrunk(hessian: Float64, r: float) -> Float64:
    """H_r."""
    result = (1 - r) * hessian
    np.einsum("gkk->gk", result)[:] = np.einsum("gkk->gk", hessian)
    return result


def best_shrinkage(halves: tuple[Float64, Float64], damping: float, random: np.random.Generator) -> float:
    """r for the covariances of two halves of the samples, each damped as the whole will be.

    The trace falls and then rises with r; from the largest r down, the search ends where it rises.
    """
    order = np.argsort(-np.einsum("gkk->gk", halves[0] + halves[1]), axis=1, kind="stable")
    first, second = (
        np.stack([h[np.ix_(o, o)] for h, o in zip(half, order, strict=True)]) for half in halves
    )  # as second_order_codes takes the columns
    probes = _probes(first.shape[1], random)
    best, least = STEPS[0], np.inf
    for r in STEPS:
        left = _left(damped(shrunk(first, r), damping), second, probes)
        left += _left(damped(shrunk(second, r), damping), first, probes)
        if left > least:
            break
        best, least = r, left
    return best


def _left(hessian: Float64, other: Float64, probes: Float32) -> float:
    """tr(U^-1 H' U^-T) summed over the groups, for H = U D U^T and H' = `other`; P P^T of `probes` P is about I."""
    lower = unit_upper(hessian).astype(np.float32).swapaxes(1, 2)
    errors = np.tile(probes, (len(lower), 1, 1))
    for start in range(0, len(probes), BLOCK):
        block = slice(start, start + BLOCK)
        errors[:, block] -= lower[:, block, :start] @ errors[:, :start]
        errors[:, block] = np.linalg.solve(lower[:, block, block], errors[:, block])
    return float(np.einsum("gkp,gkp->", other.astype(np.float32) @ errors, errors))


def _probes(dimensions: int, random: np.random.Generator) -> NDArray[np.float32]:
    if dimensions <= PROBES:
        return np.eye(dimensions, dtype=np.float32)
    signs = random.integers(0, 2, (dimensions, PROBES)) * 2 - 1
    return (signs / np.sqrt(PROBES)).astype(np.float32)
