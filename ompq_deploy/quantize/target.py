"""The weight that a layer is rounded towards: it makes up for the errors that the quantized prefix left in the inputs.

    W_0 = gamma W        gamma = <W, C> / <W, H W>             C and H of `covariance.py`
    W'  = W_0 + D_t      D_t = (H + t mean(diag H) I)^-1 B     B = C - H W_0

(Li et al., "GPTAQ", 2025; here as ridge regression towards W_0.) Errors of the inputs make all outputs smaller or
larger by one factor, which few samples tell: of the last layer of MobileNetV2 at 3.6 bits 64 tell that gamma = 1.05,
and nothing of D. How far to trust D differs from layer to layer by orders of magnitude: where a sample has many
positions it is known well, behind a pooling only as well as samples are many. Too small a t fits their noise, and the
layers that follow see inputs too good to be true: with t = 1 everywhere MobileNetV2 at 3.6 bits errs on the calibration
samples a tenth as much as on others. t is that for which D_t of each half of the samples leaves least on the other,
which has B' and H':

    E ||Y - (W_0 + D) X'||^2 = constant + tr D^T (H' D - 2 B')

Groups lead, as in `gptq.py`: `weight` (G, K, R).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32
from ompq_deploy.quantize.covariance import Moments
from ompq_deploy.quantize.cross_validation import downhill, probes
from ompq_deploy.quantize.gptq import damped
from ompq_deploy.quantize.triangular import solve_positive

NONE = float("inf")
"""t of a layer that keeps W_0."""
STEPS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, NONE)
START = STEPS.index(1.0)


def fitted_target(
    weight: NDArray, moments: Moments, halves: tuple[Moments, ...], random: np.random.Generator
) -> NDArray:
    """W' for the `moments` of all samples, with the t that the two halves choose; W where there is one half."""
    if len(halves) < 2:
        return weight
    weight = weight * gain(weight, moments)
    t = best_ridge(weight, halves, random)
    return weight if t == NONE else weight + _fit(_single(moments.hessian), _missing(weight, moments), t)


def gain(weight: NDArray, moments: Moments) -> float:
    """gamma; 1 where the inputs are zero."""
    made = float(np.sum(weight * (moments.hessian @ weight), dtype=np.float64))
    return float(np.sum(weight * moments.cross, dtype=np.float64)) / made if made > 0 else 1.0


def best_ridge(weight: NDArray, halves: tuple[Moments, ...], random: np.random.Generator) -> float:
    """t, one of `STEPS`."""
    mixed = probes(weight.shape[2], random)
    hessians = [_single(half.hessian) for half in halves]
    missing = [_missing(weight, half) @ mixed for half in halves]

    def left(t: float) -> float:
        if t == NONE:
            return 0.0
        fits = [_fit(h, b, t) for h, b in zip(hessians, missing, strict=True)]
        others = zip(fits, hessians[::-1], missing[::-1], strict=True)
        return sum(float(np.einsum("gkr,gkr->", d, h @ d - 2 * b, dtype=np.float64)) for d, h, b in others)

    return downhill(STEPS, left, START)


def _fit(hessian: Float32, missing: Float32, t: float) -> Float32:
    """D_t."""
    found: Float32 = solve_positive(damped(hessian, t), missing)
    return found


def _missing(weight: NDArray, moments: Moments) -> Float32:
    """B."""
    return _single(moments.cross - moments.hessian @ weight)


def _single(values: NDArray) -> Float32:
    return values.astype(np.float32)
