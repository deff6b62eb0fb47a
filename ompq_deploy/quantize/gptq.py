"""Second-order rounding: choose codes for the error they leave in the layer's output, not in its weight.

    E(Q) = tr( (W - S Q) H (W - S Q)^T ),    H = X X^T / p + damping,    S = diag(s)

Error feedback (Frantar et al., "GPTQ", ICLR 2023, in the form of Chee et al., "QuIP", NeurIPS 2023, theorem 6):
with H = U D U^T, U unit upper triangular, columns are rounded in order, each after adding what the earlier ones owe:

    q_j = round( ( w_j + sum_{i<j} (w_i - s q_i) U_ij ) / s )

Coordinate descent (Behdin et al., "QuantEase", 2023) then revisits every column with all others fixed, and the scale
follows in closed form; neither ever increases E:

    q_j = round( ( w_j + sum_{i!=j} (w_i - s q_i) H_ij / H_jj ) / s )         s = <w, q>_H / <q, q>_H

Target for inputs X' that already carry quantization error, where Y is the output of the float layer (Li et al.,
"GPTAQ", 2025; here as ridge regression towards W):

    W' = W + (Y - W X') X'^T (X' X'^T + damping)^-1

Arrays carry a leading axis of groups: W (G, R, K), H (G, K, K), s (G, R); depthwise has R = 1, dense G = 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float64
from ompq_deploy.numerics import signed_range
from ompq_deploy.weight_scale import SHRINKAGE, best_scale

BLOCK = 128
"""Columns rounded between two matrix products."""
RATIOS = 6
"""Scales tried per row, from `SHRINKAGE` to 1 times the error-minimizing one, and one above."""
SWEEPS = 4
"""Rounds of coordinate descent and rescaling."""


def damped(hessian: Float64, fraction: float) -> Float64:
    """H + fraction * mean(diag H) * I per group; the identity for a group whose inputs are always zero."""
    level = np.einsum("gkk->g", hessian) / hessian.shape[-1]
    return hessian + np.where(level > 0, fraction * level, 1.0)[:, None, None] * np.eye(hessian.shape[-1])


def least_squares_target(weight: Float64, cross: Float64, hessian: Float64, fraction: float) -> Float64:
    """W' for `cross` = Y X'^T / p (G, R, K) and `hessian` = X' X'^T / p, undamped."""
    owed = cross - weight @ hessian
    return weight + np.linalg.solve(damped(hessian, fraction), owed.swapaxes(1, 2)).swapaxes(1, 2)


def output_error(weight: Float64, codes: Float64, scale: Float64, hessian: Float64) -> Float64:
    """E(Q) of every row, (G, R)."""
    error = weight - codes * scale[..., None]
    return np.einsum("grk,grk->gr", error @ hessian, error)


def second_order_codes(weight: Float64, hessian: Float64, bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes int8 (G, R, K) and positive scales float32 (G, R) of small E(Q), for a positive definite `hessian`.

    Each row takes the best of a few scales, tried with error feedback; then descent and rescaling in turn.
    """
    order, back = _by_diagonal(hessian)
    w = np.take_along_axis(weight, order[:, None, :], axis=2)
    h = np.take_along_axis(np.take_along_axis(hessian, order[:, :, None], axis=1), order[:, None, :], axis=2)
    codes, scale = _best_feedback(w, h, bits)
    for _ in range(SWEEPS):
        codes = descend(w, h, scale, codes, bits)
        scale = refit(w, h, scale, codes)
    scale = scale.astype(np.float32).astype(np.float64)
    codes = descend(w, h, scale, codes, bits)
    return np.take_along_axis(codes, back[:, None, :], axis=2).astype(np.int8), scale.astype(np.float32)


def feedback_codes(weight: Float64, hessian: Float64, scale: Float64, bits: int) -> Float64:
    """Codes after one pass of error feedback, in the order of the columns."""
    return _feedback(weight, _unit_upper(hessian), scale, bits)


def descend(weight: Float64, hessian: Float64, scale: Float64, codes: Float64, bits: int) -> Float64:
    """One sweep of coordinate descent over all columns; E(Q) does not grow."""
    low, high = signed_range(bits)
    s = scale[..., None]
    codes = codes.copy()
    error = weight - codes * s
    diagonal = np.einsum("gkk->gk", hessian)
    for start in range(0, weight.shape[2], BLOCK):
        block = slice(start, start + BLOCK)
        h = hessian[:, block, block]
        pull = error @ hessian[:, :, block]
        for j in range(h.shape[1]):
            column = start + j
            wanted = codes[..., column] + pull[..., j] / (diagonal[:, None, column] * scale)
            new = np.clip(np.rint(wanted), low, high)
            change = (codes[..., column] - new) * scale
            codes[..., column] = new
            error[..., column] += change
            pull += change[..., None] * h[:, None, j, :]
    return codes


def refit(weight: Float64, hessian: Float64, scale: Float64, codes: Float64) -> Float64:
    """The scale of least E(Q) for fixed codes; the old one where that would not be positive."""
    weighted = codes @ hessian
    energy = np.einsum("grk,grk->gr", weighted, codes)
    fitted = np.divide(np.einsum("grk,grk->gr", weighted, weight), energy, out=scale.copy(), where=energy > 0)
    return np.where(fitted > 0, fitted, scale)


def _best_feedback(weight: Float64, hessian: Float64, bits: int) -> tuple[Float64, Float64]:
    groups, rows, columns = weight.shape
    start = best_scale(weight.reshape(-1, columns).astype(np.float32), bits).reshape(groups, rows).astype(np.float64)
    unit = _unit_upper(hessian)
    best = feedback_first = _feedback(weight, unit, start, bits)
    scale, least = start, output_error(weight, feedback_first, start, hessian)
    for ratio in (*np.linspace(SHRINKAGE[bits], 1.0, RATIOS, endpoint=False), 1.1):
        candidate = start * ratio
        codes = _feedback(weight, unit, candidate, bits)
        error = output_error(weight, codes, candidate, hessian)
        better = error < least
        best = np.where(better[..., None], codes, best)
        scale, least = np.where(better, candidate, scale), np.where(better, error, least)
    return best, scale


def _feedback(weight: Float64, unit: Float64, scale: Float64, bits: int) -> Float64:
    low, high = signed_range(bits)
    codes, error = np.empty_like(weight), np.zeros_like(weight)
    for start in range(0, weight.shape[2], BLOCK):
        block = slice(start, start + BLOCK)
        u = unit[:, block, block]
        wanted = weight[..., block] + error[..., :start] @ unit[:, :start, block]
        for j in range(u.shape[1]):
            column = start + j
            codes[..., column] = np.clip(np.rint(wanted[..., j] / scale), low, high)
            error[..., column] = weight[..., column] - codes[..., column] * scale
            wanted[..., j + 1 :] += error[..., column, None] * u[:, None, j, j + 1 :]
    return codes


def _unit_upper(hessian: Float64) -> Float64:
    """U of H = U D U^T: the Cholesky factor of H with rows and columns reversed, reversed back and normalized."""
    upper = np.linalg.cholesky(hessian[:, ::-1, ::-1])[:, ::-1, ::-1]
    return upper / np.einsum("gkk->gk", upper)[:, None, :]


def _by_diagonal(hessian: Float64) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The order of columns in which those that matter most are rounded first, and its inverse, each (G, K)."""
    order = np.argsort(-np.einsum("gkk->gk", hessian), axis=1, kind="stable")
    return order, np.argsort(order, axis=1)
