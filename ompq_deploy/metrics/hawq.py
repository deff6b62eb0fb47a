"""Average Hessian trace (Dong et al., "HAWQ-V2", NeurIPS 2020; Yao et al., "HAWQ-V3", ICML 2021).

    loss_i(b) = Tr(H_i) / n_i * ||Q_b(w_i) - w_i||^2          H_i: Hessian of the loss in the n_i weights of layer i
    Tr(H_i)   = E_v v^T H_i v,  v random signs                Hutchinson, one v for all layers at once: the products
                                                              between layers average out

A trace that the noise of few probes hides counts as its standard error, so that no layer comes out free.
"""

from __future__ import annotations

import numpy as np

from ompq_deploy.artifacts import Float64, Scores


def hawq(probes: Float64, sizes: Float64, squared: Float64, bits: tuple[int, ...], note: str = "") -> Scores:
    """Scores from v_i^T (H v)_i, float64 (P, L), the layers' weight counts (L,) and ||Q_b(w_i) - w_i||^2 (L, B)."""
    importance = trace(probes) / sizes
    return Scores(metric="hawq", bits=bits, loss=importance[:, None] * squared, importance=importance, note=note)


def trace(probes: Float64) -> Float64:
    """Tr(H_i), float64 (L,), from probes (P, L): the mean, or its standard error where that is larger."""
    spread = probes.std(axis=0, ddof=1) / np.sqrt(len(probes)) if len(probes) > 1 else np.zeros(probes.shape[1])
    return np.maximum(probes.mean(axis=0), spread)
