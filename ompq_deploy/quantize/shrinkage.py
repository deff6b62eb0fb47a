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
from ompq_deploy.quantize.cross_validation import downhill, probes
from ompq_deploy.quantize.gptq import columns_order, damped
from ompq_deploy.quantize.triangular import cholesky, solve_transposed

STEPS = (0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.0)


def shrunk(hessian: NDArray, r: float) -> NDArray:
    """H_r."""
    result = (1 - r) * hessian
    np.einsum("gkk->gk", result)[:] = np.einsum("gkk->gk", hessian)
    return result


def best_shrinkage(halves: tuple[Float64, Float64], damping: float, random: np.random.Generator) -> float:
    """r for the covariances of two halves of the samples, each damped as the whole will be."""
    order = columns_order(halves[0] + halves[1])[:, ::-1]
    first, second = (
        np.stack([h.astype(np.float32)[np.ix_(o, o)] for h, o in zip(half, order, strict=True)]) for half in halves
    )  # the columns from the last that second_order_codes takes to the first, so that U becomes lower triangular
    mixed = probes(first.shape[1], random)

    def left(r: float) -> float:
        return sum(
            _left(damped(shrunk(seen, r), damping), unseen, mixed)
            for seen, unseen in ((first, second), (second, first))
        )

    return downhill(STEPS, left, len(STEPS) // 2)


def _left(hessian: Float32, other: Float32, mixed: Float32) -> float:
    """tr(U^-1 H' U^-T) summed over the groups, for H = U D U^T and H' = `other`, in reversed order; P is `mixed`, of
    `probes`. There L = U sqrt(D) is the Cholesky factor, and U^-T P = L^-T sqrt(D) P."""
    lower = cholesky(hessian)
    errors = solve_transposed(lower, np.einsum("gkk->gk", lower)[:, :, None] * mixed)
    return float(np.einsum("gkp,gkp->", other @ errors, errors))
