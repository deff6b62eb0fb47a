"""Second-order rounding: choose codes for the error they leave in the layer's output, not in its weight.

    E(Q) = tr( (W - S Q) H (W - S Q)^T ),    H = X X^T / p + damping,    S = diag(s)

Error feedback (Frantar et al., "GPTQ", ICLR 2023, in the form of Chee et al., "QuIP", NeurIPS 2023, theorem 6):
with H = U D U^T, U unit upper triangular, columns are rounded in order, each after adding what the earlier ones owe:

    q_j = round( ( w_j + sum_{i<j} (w_i - s q_i) U_ij ) / s )

Coordinate descent (Behdin et al., "QuantEase", 2023) then revisits every column with all others fixed, and the scale
follows in closed form; neither ever increases E:

    q_j = round( ( w_j + sum_{i!=j} (w_i - s q_i) H_ij / H_jj ) / s )         s = <w, q>_H / <q, q>_H

Arrays have a leading axis of groups (dense: G = 1; depthwise: R = 1) and hold a column of W as a row, since columns
are what the loops run over: `weight` and `codes` (G, K, R), `hessian` (G, K, K), `scale` (G, R). `bits` is one width,
or one per row (R,). A column costs nearly the same for few rows as for many, so the scales tried are rows, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Float64
from ompq_deploy.numerics import IntArray
from ompq_deploy.quantize.triangular import cholesky
from ompq_deploy.weight_scale import SHRINKAGE, best_scale

Bits = int | IntArray

NUMBERS = 2**18
"""Weights of a block rounded at once, for each scale tried."""
BLOCK = 128
"""Columns rounded between two matrix products."""
RATIOS = 6
"""Scales tried per row below the error-minimizing one; one above it is tried too."""
SWEEPS = 3
"""Rounds of coordinate descent and rescaling."""
SEARCHED_COLUMNS = 640
"""With more columns than this one scale and one round do: more gain less than 2 % of E and cost most of the time."""


def damped(hessian: NDArray, fraction: float) -> NDArray:
    """H + fraction * mean(diag H) * I per group; the identity for a group whose inputs are always zero."""
    result = hessian.copy()
    diagonal = np.einsum("gkk->gk", result)  # a view
    level = diagonal.mean(axis=1, keepdims=True)
    diagonal += np.where(level > 0, fraction * level, 1.0).astype(hessian.dtype)
    return result


def columns_order(hessian: NDArray) -> NDArray[np.intp]:
    """The order (G, K) in which columns are rounded: those of large inputs first, while many follow to make up."""
    return np.argsort(-np.einsum("gkk->gk", hessian), axis=1, kind="stable")


def output_error(weight: NDArray, codes: NDArray, scale: NDArray, hessian: NDArray) -> NDArray:
    """E(Q) of every row of W, (G, R)."""
    error = weight - codes * scale[:, None, :]
    return np.einsum("gkr,gkr->gr", hessian @ error, error)


def second_order_codes(
    weight: NDArray, hessian: Float64, bits: Bits, least: Float32 | None = None, *, shared: bool = False
) -> tuple[NDArray[np.int8], Float32]:
    """Codes int8 (G, K, R) and positive scales float32 (G, R), none below `least`, of small E(Q).

    `hessian` must be positive definite. Row r has one scale in all groups where it is `shared`.

    Each row takes the best of a few scales, tried with error feedback; then descent and rescaling in turn.
    """
    groups, columns, rows = weight.shape
    order = columns_order(hessian)
    w = np.take_along_axis(weight, order[:, :, None], axis=1).astype(np.float32)
    ordered = np.stack([h[np.ix_(o, o)] for h, o in zip(hessian, order, strict=True)])
    unit = unit_upper(ordered).astype(np.float32)
    h = ordered.astype(np.float32)
    del ordered
    least = np.zeros((groups, rows), np.float32) if least is None else least
    of_row = np.broadcast_to(bits, rows)
    codes, scale = np.empty_like(w), np.empty_like(least)
    at_once = max(NUMBERS // (groups * min(columns, BLOCK)), 1)
    for first in range(0, rows, at_once):
        some = slice(first, first + at_once)
        codes[:, :, some], scale[:, some] = _descended(w[:, :, some], h, unit, of_row[some], least[:, some], shared)
    back = np.argsort(order, axis=1)
    return np.take_along_axis(codes, back[:, :, None], axis=1).astype(np.int8), scale


def _descended(
    weight: Float32, hessian: Float32, unit: Float32, bits: IntArray, least: Float32, shared: bool
) -> tuple[Float32, Float32]:
    codes, scale = _best_feedback(weight, hessian, unit, bits, least, shared)
    for _ in range(SWEEPS if weight.shape[1] <= SEARCHED_COLUMNS else 1):
        codes = descend(weight, hessian, scale, codes, bits)
        scale = np.maximum(refit(weight, hessian, scale, codes, shared), least)
    return descend(weight, hessian, scale, codes, bits), scale


def feedback(weight: NDArray, unit: NDArray, scale: NDArray, bits: Bits) -> NDArray:
    """Codes after one pass of error feedback with U = `unit` (G, K, K), in the order of the columns."""
    low, high = _limits(bits)
    codes, error = np.empty_like(weight), np.zeros_like(weight)
    for start in range(0, weight.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        u = unit[:, block, block]
        wanted = weight[:, block] + unit[:, :start, block].swapaxes(1, 2) @ error[:, :start]
        for j in range(u.shape[1]):
            column = start + j
            codes[:, column] = np.minimum(np.maximum(np.rint(wanted[:, j] / scale), low), high)
            error[:, column] = weight[:, column] - codes[:, column] * scale
            wanted[:, j + 1 :] += u[:, j, j + 1 :, None] * error[:, column, None, :]
    return codes


def descend(weight: NDArray, hessian: NDArray, scale: NDArray, codes: NDArray, bits: Bits) -> NDArray:
    """The codes after one sweep of coordinate descent over all columns; E(Q) does not grow."""
    low, high = _limits(bits)
    codes = codes.copy()
    error = weight - codes * scale[:, None, :]
    step = scale[:, None, :] * np.einsum("gkk->gk", hessian)[:, :, None]
    for start in range(0, weight.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        h = hessian[:, block, block]
        pull = hessian[:, block] @ error
        for j in range(h.shape[1]):
            column = start + j
            nearest = np.rint(codes[:, column] + pull[:, j] / step[:, column])
            new = np.minimum(np.maximum(nearest, low), high)
            change = (codes[:, column] - new) * scale
            codes[:, column] = new
            error[:, column] += change
            pull[:, j + 1 :] += h[:, j, j + 1 :, None] * change[:, None, :]
    return codes


def _limits(bits: Bits) -> tuple[Float32, Float32]:
    half = np.exp2(np.asarray(bits, np.float32) - 1)
    return -half, half - 1


def refit(weight: NDArray, hessian: NDArray, scale: NDArray, codes: NDArray, shared: bool = False) -> NDArray:
    """The scale of least E(Q) for fixed codes; the old one where that would not be positive."""
    weighted = hessian @ codes
    energy, product = (_over_groups(np.einsum("gkr,gkr->gr", weighted, x), shared) for x in (codes, weight))
    fitted = np.divide(product, energy, out=scale.copy(), where=energy > 0)
    return np.where(fitted > 0, fitted, scale)


def unit_upper(hessian: NDArray) -> NDArray:
    """U of H = U D U^T: the Cholesky factor of H with rows and columns reversed, reversed back and normalized."""
    upper = cholesky(hessian[:, ::-1, ::-1])[:, ::-1, ::-1]
    upper /= np.einsum("gkk->gk", upper).copy()[:, None, :]
    return upper


def _best_feedback(
    weight: Float32, hessian: Float32, unit: Float32, bits: IntArray, least: Float32, shared: bool
) -> tuple[Float32, Float32]:
    """The codes and scales of least E(Q) among the scales tried, row by row."""
    groups, columns, rows = weight.shape
    start = np.empty((groups, rows), np.float32)
    for width in np.unique(bits):
        same = weight[:, :, bits == width].swapaxes(1, 2)  # (G, R, K)
        if shared:
            same = same.swapaxes(0, 1).reshape(1, -1, groups * columns)
        flat = np.ascontiguousarray(same).reshape(-1, same.shape[2])
        start[:, bits == width] = best_scale(flat, int(width)).reshape(len(same), -1)
    ratios = np.ones((1, rows), np.float32)
    if columns <= SEARCHED_COLUMNS:
        smallest = np.array([SHRINKAGE[int(width)] for width in bits])
        below = np.linspace(smallest, 1.0, RATIOS, endpoint=False)
        ratios = np.concatenate([ratios, below, np.full((1, rows), 1.1)]).astype(np.float32)
    tries = len(ratios)
    candidates = np.maximum(start[:, None] * ratios, least[:, None])  # (G, T, R)
    repeated = np.tile(weight, (1, 1, tries))
    scale = candidates.reshape(groups, -1)
    codes = feedback(repeated, unit, scale, np.tile(bits, tries))
    error = _over_groups(output_error(repeated, codes, scale, hessian), shared).reshape(groups, tries, rows)
    best = error.argmin(axis=1)[:, None]  # (G, 1, R)
    found = np.take_along_axis(codes.reshape(groups, columns, tries, rows), best[:, None], axis=2)
    return found[:, :, 0], np.take_along_axis(candidates, best, axis=1)[:, 0]


def _over_groups(values: NDArray, shared: bool) -> NDArray:
    """`values` (G, R), in every group the sum over groups where these share their scales."""
    return np.broadcast_to(values.sum(axis=0), values.shape) if shared else values
