"""Where to clip an activation, from its histogram: n_k is the count and x_k the centre of bin k.

    percentile   each end where 0.01 % of all values lie beyond
    mse          argmin over grids of  sum_k n_k (x_k - Q(x_k))^2,    Q(x) = s clip(round(x / s), low, high)
    entropy      argmin_t  KL(P_t || Q_t)                (Migacz, "8-bit inference with TensorRT", GTC 2017)

In `entropy`, P_t holds the magnitudes below t with everything above t added to the last bin; Q_t is the same bins
merged into as many levels as the grid has on its longer side, each level's count spread evenly over its occupied
bins. The first bin, which ReLU fills with zeros that every grid represents exactly, is not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float64, Grid, Histogram

PERCENTILE = 99.99
FEWEST_BINS = 256
"""Kept between both ends by `mse`, so that a step is no finer than a bin."""
BIN_STEP = 16
"""Ends are tried at every 16th bin edge."""
FLOOR = 1e-10
"""Probability given to a bin that Q_t leaves empty."""

Ends = tuple[float, float]
"""The smallest and the largest value kept: at most and at least zero."""


def percentile_threshold(histogram: Histogram) -> float:
    """The smallest bin edge with at least `PERCENTILE` percent of the magnitudes below it."""
    return histogram.width * _bins_below(histogram.magnitudes, PERCENTILE)


def percentile_ends(histogram: Histogram) -> Ends:
    """The same for either side of zero; values on the other side count as below."""
    half = histogram.counts.size // 2
    low, high = (
        histogram.width * _bins_below(side, PERCENTILE, already=int(histogram.counts.sum() - side.sum()))
        for side in (histogram.counts[:half][::-1], histogram.counts[half:])
    )
    return -low, high


def _bins_below(counts: NDArray[np.int64], percent: float, already: int = 0) -> int:
    below = already + np.cumsum(counts)
    return int(np.searchsorted(below, below[-1] * (percent / 100))) + 1


def squared_error(histogram: Histogram, grid: Grid) -> float:
    """sum_k n_k (x_k - Q(x_k))^2."""
    return _squared_error(histogram)(grid)


def least_error_threshold(histogram: Histogram, grid: Callable[[float], Grid]) -> float:
    """The bin edge t whose `grid` minimizes the squared error."""
    error = _squared_error(histogram)
    edges = [bins * histogram.width for bins in _thresholds(histogram, FEWEST_BINS // 2)]
    return min(edges, key=lambda edge: error(grid(edge)))


def least_error_ends(histogram: Histogram, widest: Ends, grid: Callable[[float, float], Grid]) -> Ends:
    """Ends within `widest` whose `grid` minimizes the squared error, one end after the other until neither moves."""
    error = _squared_error(histogram)
    reach = [math.ceil(abs(end) / histogram.width) for end in widest]

    def ends(bins: list[int]) -> Ends:
        return max(widest[0], -bins[0] * histogram.width), min(widest[1], bins[1] * histogram.width)

    best, moved = reach, True
    least = error(grid(*widest))
    while moved:
        moved = False
        for side in (0, 1):
            fewest = max(0, FEWEST_BINS - best[1 - side])
            for bins in range(reach[side], fewest - 1, -BIN_STEP):
                tried = [bins, best[1]] if side == 0 else [best[0], bins]
                if (found := error(grid(*ends(tried)))) < least:
                    best, least, moved = tried, found, True
    return ends(best)


def _squared_error(histogram: Histogram) -> Callable[[Grid], float]:
    """The squared error as a function of the grid, over the occupied bins."""
    occupied = np.flatnonzero(histogram.counts)
    counts, x = histogram.counts[occupied].astype(np.float64), histogram.centres[occupied]

    def error(grid: Grid) -> float:
        steps = x / grid.scale
        kept = np.minimum(np.maximum(np.rint(steps), grid.low), grid.high)
        return float(counts @ np.square(steps - kept)) * grid.scale**2

    return error


def entropy_threshold(histogram: Histogram, levels: int) -> float:
    """The bin edge at which `levels` levels tell most about the distribution of the magnitudes."""
    counts = histogram.magnitudes.astype(np.float64)
    counts[0] = 0
    if not counts.any():
        return histogram.limit
    bins = min(_thresholds(histogram, levels), key=lambda bins: divergence(counts, bins, levels))
    return bins * histogram.width


def divergence(counts: Float64, bins: int, levels: int) -> float:
    """KL(P || Q) when the first `bins` of all counts are kept."""
    kept = counts[:bins]
    if not kept.any():
        return np.inf
    p = kept.copy()
    p[-1] += counts[bins:].sum()
    level = np.arange(bins) * levels // bins
    total = np.bincount(level, kept, levels)
    occupied = np.bincount(level, kept > 0, levels)
    q = np.where(kept > 0, (total / np.maximum(occupied, 1))[level], 0)
    return _divergence(p / p.sum(), np.maximum(q / q.sum(), FLOOR))


def _divergence(p: Float64, q: Float64) -> float:
    """sum_k p_k log(p_k / q_k), where 0 log 0 = 0."""
    support = p > 0
    return float(np.sum(p[support] * np.log(p[support] / q[support])))


def _thresholds(histogram: Histogram, fewest: int) -> range:
    """Numbers of bins to keep on either side: from all down to `fewest`, so that ties keep the most."""
    half = histogram.counts.size // 2
    return range(half, min(fewest, half) - 1, -BIN_STEP)
