"""Symmetric per-channel weights with the scale that leaves the least squared error.

    s_c = argmin over a grid of a of  sum_k ( s q_b(w_ck / s) - w_ck )^2,   s = a * max_k |w_ck| / (2^(b-1) - 1)

followed by the closed-form scale for the codes found, s = <w, q> / <q, q>, once more rounded and kept only
where it is better: one step of Lloyd's algorithm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.numerics import along_axis, signed_range

SHRINKAGE = {2: 0.3, 3: 0.4, 4: 0.5, 5: 0.6, 6: 0.7, 7: 0.8, 8: 0.9}
"""Smallest a tried per width: clipping pays more the fewer codes there are."""

STEPS = 24


def quantize_weight(
    weight: NDArray[np.float32], bits: int, channel_axis: int, *, steps: int = STEPS
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (int8, the weight's shape) and scales (float32, (C,), positive) of least squared error per channel.

    A channel of zeros gets codes 0. `steps` is the number of grid points tried.
    """
    rows = np.moveaxis(weight, channel_axis, 0).reshape(weight.shape[channel_axis], -1).astype(np.float32)
    scale = best_scale(rows, bits, steps)
    low, high = signed_range(bits)
    codes = np.clip(np.rint(weight / along_axis(scale, weight.ndim, channel_axis)), low, high)
    return codes.astype(np.int8), scale


def widen_for_bias(
    weight: NDArray[np.float32],
    codes: NDArray[np.int8],
    scale: NDArray[np.float32],
    least: NDArray[np.float32],
    bits: int,
    channel_axis: int,
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes and scales with no scale below `least` (C,); channels whose scale grows are rounded again.

    A bias is an int32 on the grid activation scale * weight scale. In a channel whose weights are nearly zero that
    grid would be so fine that the bias saturates; such a channel gets the finest grid that still holds its bias.
    """
    widened = scale < least
    if not widened.any():
        return codes, scale
    low, high = signed_range(bits)
    scale = np.maximum(scale, least)
    again = np.clip(np.rint(weight / along_axis(scale, weight.ndim, channel_axis)), low, high).astype(np.int8)
    return np.where(along_axis(widened, weight.ndim, channel_axis), again, codes), scale


def best_scale(rows: NDArray[np.float32], bits: int, steps: int = STEPS) -> NDArray[np.float32]:
    """The error-minimizing scale of each row, float32 (C,), for `rows` float32 (C, K)."""
    low, high = signed_range(bits)
    largest = np.abs(rows).max(axis=1)
    base = np.where(largest > high * np.finfo(np.float32).tiny, largest / high, 1.0).astype(np.float32)
    best, best_error = base.copy(), np.full(len(rows), np.inf, np.float32)
    candidates = [base * np.float32(a) for a in np.linspace(SHRINKAGE[bits], 1.0, steps)]
    for scale in candidates:
        best, best_error = _keep_better(rows, scale, best, best_error, low, high)
    codes = np.clip(np.rint(rows / best[:, None]), low, high)
    energy = np.einsum("ck,ck->c", codes, codes)
    refined = np.divide(np.einsum("ck,ck->c", rows, codes), energy, out=best.copy(), where=energy > 0)
    best, _ = _keep_better(rows, np.where(refined > 0, refined, best).astype(np.float32), best, best_error, low, high)
    return best


def _keep_better(
    rows: NDArray[np.float32],
    scale: NDArray[np.float32],
    best: NDArray[np.float32],
    best_error: NDArray[np.float32],
    low: int,
    high: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    difference = np.clip(np.rint(rows / scale[:, None]), low, high) * scale[:, None] - rows
    error = np.einsum("ck,ck->c", difference, difference)
    better = error < best_error
    return np.where(better, scale, best), np.where(better, error, best_error)
