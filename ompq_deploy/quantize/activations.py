"""One symmetric int8 scale per activation tensor: s = T / 127, where T is the largest magnitude kept.

    minmax       T = max |x|
    percentile   T = smallest bin edge below which 99.99 % of all |x| lie
    mse          T = argmin_t  sum_k n_k (|x_k| - Q_t(|x_k|))^2,  Q_t(x) = (t/127) min(round(127 x / t), 127)
    entropy      T = argmin_t  KL(P_t || Q_t)                     (Migacz, "8-bit inference with TensorRT", GTC 2017)

n_k is the count and x_k the centre of histogram bin k. In `entropy`, P_t holds the bins below t with everything
above t added to the last one; Q_t is the same bins merged into 128 levels, each level's count spread evenly over its
occupied bins. The first bin, which ReLU fills with zeros that every scale represents exactly, is not compared.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ompq_deploy.artifacts import Capture, Float64, Histogram
from ompq_deploy.errors import BadInput

METHODS = ("minmax", "percentile", "mse", "entropy")
LARGEST_CODE = 127
PERCENTILE = 99.99
LEVELS = 128
"""Codes 0 to 127: the magnitudes int8 can hold."""
BIN_STEP = 16
"""Thresholds are tried at every 16th bin edge."""
FLOOR = 1e-10
"""Probability given to a bin that Q_t leaves empty."""


def activation_scales(capture: Capture, method: str) -> dict[str, float]:
    """Scale of every captured activation tensor."""
    return {
        name: activation_scale(value_range, capture.histograms.get(name), method)
        for name, value_range in capture.ranges.items()
    }


def activation_scale(value_range: tuple[float, float], histogram: Histogram | None, method: str) -> float:
    """The scale of one tensor, positive, and exact in float32.

    `value_range` is (min, max). All methods but `minmax` need the histogram of |x|. A tensor that is always
    zero gets scale 1, which represents it exactly.
    """
    if method not in METHODS:
        raise BadInput(
            f"unknown calibration method {method!r}", where="activation scales", fix=f"use one of {', '.join(METHODS)}"
        )
    largest = max(abs(value_range[0]), abs(value_range[1]))
    if largest == 0:
        return 1.0
    if method == "minmax":
        return _scale(largest)
    if histogram is None:
        raise BadInput(
            f"calibration method {method!r} needs a histogram and none was captured",
            where="activation scales",
            fix="capture with histograms=True, or use minmax",
        )
    return _scale(min(THRESHOLDS[method](histogram), largest))


def percentile_threshold(histogram: Histogram) -> float:
    """Smallest bin edge with at least `PERCENTILE` percent of the counts below it."""
    below = np.cumsum(histogram.counts)
    bins = int(np.searchsorted(below, below[-1] * (PERCENTILE / 100))) + 1
    return bins * histogram.limit / histogram.counts.size


def mse_threshold(histogram: Histogram) -> float:
    """The bin edge that minimizes the expected squared error of the histogram."""
    edges = [bins * histogram.limit / histogram.counts.size for bins in _candidates(histogram)]
    return min(edges, key=lambda edge: squared_error(histogram, edge))


def squared_error(histogram: Histogram, threshold: float) -> float:
    """sum_k n_k (x_k - Q_t(x_k))^2 over the bin centres x_k."""
    centres = (np.arange(histogram.counts.size) + 0.5) * (histogram.limit / histogram.counts.size)
    step = threshold / LARGEST_CODE
    codes = np.minimum(np.rint(centres / step), LARGEST_CODE)
    return float(histogram.counts @ np.square(centres - codes * step))


def entropy_threshold(histogram: Histogram) -> float:
    """The bin edge at which 128 levels tell most about the distribution of the values."""
    counts = histogram.counts.astype(np.float64)
    counts[0] = 0
    if not counts.any():
        return histogram.limit
    bins = min(_candidates(histogram), key=lambda bins: divergence(counts, bins))
    return bins * histogram.limit / counts.size


def divergence(counts: Float64, bins: int) -> float:
    """KL(P || Q) when the first `bins` of all counts are kept."""
    kept = counts[:bins]
    if not kept.any():
        return np.inf
    p = kept.copy()
    p[-1] += counts[bins:].sum()
    level = np.arange(bins) * LEVELS // bins
    total = np.bincount(level, kept, LEVELS)
    occupied = np.bincount(level, kept > 0, LEVELS)
    q = np.where(kept > 0, (total / np.maximum(occupied, 1))[level], 0)
    return _divergence(p / p.sum(), np.maximum(q / q.sum(), FLOOR))


def _divergence(p: Float64, q: Float64) -> float:
    """sum_k p_k log(p_k / q_k), where 0 log 0 = 0."""
    support = p > 0
    return float(np.sum(p[support] * np.log(p[support] / q[support])))


def _candidates(histogram: Histogram) -> range:
    """Numbers of bins to keep: from 128 to all of them, largest first, so that ties keep the most."""
    return range(histogram.counts.size, min(LEVELS, histogram.counts.size) - 1, -BIN_STEP)


def _scale(threshold: float) -> float:
    """T / 127 in float32, kept above zero for subnormal T."""
    return float(np.maximum(np.float32(threshold / LARGEST_CODE), np.finfo(np.float32).tiny))


THRESHOLDS: dict[str, Callable[[Histogram], float]] = {
    "percentile": percentile_threshold,
    "mse": mse_threshold,
    "entropy": entropy_threshold,
}
