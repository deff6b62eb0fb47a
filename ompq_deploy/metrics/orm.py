"""OMPQ's orthogonality metric (Ma et al., "OMPQ: Orthogonal Mixed Precision Quantization", AAAI 2023).

    G_i     = X_i X_i^T                                  X_i: output of layer i, N x (C H W)
    ORM_ij  = <K_i, K_j> / (||K_i|| ||K_j||)             Eq. 6 with Eq. 7
    gamma_i = sum_j ORM_ij - 1                           Eq. 8
    theta_i = exp(-beta gamma_i)                         Eq. 9; other decreasing functions in Table 1
    Eq. 10:   max sum_i b_i / (L - i + 1) sum_{j >= i} theta_j

The estimators differ in K:

    paper     K = G                                      as printed
    cka       K = H G H, H = I - 11^T / N                biased linear CKA, what the authors' code computes
    debiased  K = U-centred G                            HSIC_1 of Song et al., JMLR 2012, section 3; its inner
                                                         products are the unbiased HSIC up to a common factor

With far more features than samples the biased estimators saturate towards 1; the debiased one does not.
Eq. 10 is linear in b, so its optimum under one budget is all-low or all-high for all but one layer. The
concave form instead minimizes sum_i theta_i * e_i(b_i), with e_i(b) the relative weight error at b bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.errors import BadInput

ESTIMATORS = ("paper", "cka", "debiased")
FORMS = ("concave", "linear")
DEFAULT_BETA = 0.01
FEWEST_SAMPLES = 4
"""The debiased estimator divides by N - 3."""

Float64 = NDArray[np.float64]

SMALLEST_ARGUMENT = 1e-3
"""-log x has no value for x <= 0, which the debiased estimator can give."""

FUNCTIONS: dict[str, Callable[[Float64], Float64]] = {
    "exp": lambda x: np.exp(-x),
    "log": lambda x: -np.log(np.maximum(x, SMALLEST_ARGUMENT)),
    "linear": lambda x: -x,
    "cubic": lambda x: -(x**3),
    "negexp": lambda x: -np.exp(x),
}
"""Table 1: e^-x, -log x, -x, -x^3, -e^x, with x = beta gamma."""


def orm_matrix(grams: Sequence[Float64], estimator: str = "debiased") -> Float64:
    """ORM between all pairs of layers, float64 (L, L), symmetric, ones on the diagonal.

    `grams` are L Gram matrices (N, N). A layer whose output does not vary over the samples is orthogonal
    to all others (0 off the diagonal).
    """
    if estimator not in ESTIMATORS:
        raise BadInput(f"unknown ORM estimator {estimator!r}", fix=f"choose one of {', '.join(ESTIMATORS)}")
    count = len(grams[0])
    if estimator == "debiased" and count < FEWEST_SAMPLES:
        raise BadInput(
            f"the debiased ORM needs at least {FEWEST_SAMPLES} samples, got {count}",
            where="--samples",
            fix=f"use --samples {FEWEST_SAMPLES} or more, or --orm-estimator cka",
        )
    rows = np.stack([_centre(np.asarray(gram, np.float64), estimator).ravel() for gram in grams])
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = norms[:, 0] <= 1e-12 * np.array([np.linalg.norm(gram) for gram in grams])
    rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    rows[flat] = 0.0
    matrix = rows @ rows.T
    np.fill_diagonal(matrix, 1.0)
    return matrix


def gamma(matrix: Float64) -> Float64:
    """Eq. 8: how much each layer shares with all others, float64 (L,)."""
    return matrix.sum(axis=1) - 1.0


def importance(matrix: Float64, beta: float = DEFAULT_BETA, function: str = "exp") -> Float64:
    """Eq. 9: theta, float64 (L,), positive.

    All functions but e^-x can be negative, and a benefit must not be: those are shifted so that the least
    important layer keeps the theta that e^-x gives it, and the differences are the function's own.
    """
    if function not in FUNCTIONS:
        raise BadInput(
            f"unknown decreasing function {function!r}",
            where="--orm-function",
            fix=f"choose one of {', '.join(FUNCTIONS)}",
        )
    x = beta * gamma(matrix)
    theta = FUNCTIONS[function](x)
    return theta - theta.min() + np.exp(-x).min()


def linear_loss(theta: Float64, bits: Sequence[int]) -> Float64:
    """Eq. 10 as a loss to minimize, float64 (L, B), nonnegative: the benefit lost against the widest choice."""
    count = len(theta)
    tails = np.cumsum(theta[::-1])[::-1] / (count - np.arange(count))
    return tails[:, None] * (max(bits) - np.asarray(bits, np.float64))[None, :]


def _centre(gram: Float64, estimator: str) -> Float64:
    if estimator == "paper":
        return gram
    if estimator == "cka":
        return gram - gram.mean(axis=0) - gram.mean(axis=1, keepdims=True) + gram.mean()
    n = len(gram)
    hollow = gram - np.diag(np.diag(gram))
    sums = hollow.sum(axis=1)
    centred = hollow - (sums[:, None] + sums[None, :]) / (n - 2) + sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0.0)
    return centred
