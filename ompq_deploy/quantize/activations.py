"""One 8-bit grid per activation tensor, from what the capture saw of it.

    asymmetric   s = (b - a) / 255,  zero-point round(-a / s)      a = min(0, smallest kept),  b = max(0, largest kept)
    symmetric    s = T / 127,        zero-point 128                T = largest magnitude kept

Zero is on every grid: padding, Relu and sparse inputs hold it exactly. A tensor that is nowhere negative has
zero-point 0 and all 255 steps above zero. The methods differ in what they keep: `minmax` everything, the others what
`clipping.py` says.
"""

from __future__ import annotations

import numpy as np

from ompq_deploy.artifacts import LARGEST_SYMMETRIC, SYMMETRIC, Capture, Grid, Histogram
from ompq_deploy.errors import BadInput
from ompq_deploy.quantize import clipping
from ompq_deploy.quantize.clipping import Ends

METHODS = ("minmax", "percentile", "mse", "entropy")
STEPS = 255


def activation_grids(capture: Capture, method: str, *, symmetric: bool = False) -> dict[str, Grid]:
    """The grid of every captured activation tensor."""
    return {
        name: activation_grid(value_range, capture.histograms.get(name), method, symmetric=symmetric)
        for name, value_range in capture.ranges.items()
    }


def activation_grid(
    value_range: tuple[float, float], histogram: Histogram | None, method: str, *, symmetric: bool = False
) -> Grid:
    """The grid of one tensor.

    `value_range` is (min, max). All methods but `minmax` need the histogram. A tensor that is always zero gets scale
    1, which represents it exactly.
    """
    if method not in METHODS:
        raise BadInput(
            f"unknown calibration method {method!r}", where="activation grids", fix=f"use one of {', '.join(METHODS)}"
        )
    widest = min(value_range[0], 0.0), max(value_range[1], 0.0)
    if widest == (0.0, 0.0):
        return Grid(scale=1.0, zero_point=SYMMETRIC if symmetric else 0)
    if method == "minmax":
        return symmetric_grid(max(-widest[0], widest[1])) if symmetric else asymmetric_grid(*widest)
    if histogram is None:
        raise BadInput(
            f"calibration method {method!r} needs a histogram and none was captured",
            where="activation grids",
            fix="capture with histograms=True, or use minmax",
        )
    return _symmetric(histogram, widest, method) if symmetric else _asymmetric(histogram, widest, method)


def symmetric_grid(threshold: float) -> Grid:
    """The grid that reaches from -`threshold` to `threshold`."""
    return Grid(scale=_exact(threshold / LARGEST_SYMMETRIC))


def asymmetric_grid(low: float, high: float) -> Grid:
    """The grid that reaches from `low` <= 0 to `high` >= 0, up to half a step, one of them not zero."""
    scale = _exact((high - low) / STEPS)
    return Grid(scale=scale, zero_point=round(-low / scale) if high > 0 else STEPS)


def _symmetric(histogram: Histogram, widest: Ends, method: str) -> Grid:
    thresholds = {
        "percentile": lambda: clipping.percentile_threshold(histogram),
        "mse": lambda: clipping.least_error_threshold(histogram, symmetric_grid),
        "entropy": lambda: clipping.entropy_threshold(histogram, LARGEST_SYMMETRIC + 1),
    }
    return symmetric_grid(min(thresholds[method](), max(-widest[0], widest[1])))


def _asymmetric(histogram: Histogram, widest: Ends, method: str) -> Grid:
    if method == "mse":
        return _least_error(histogram, widest)
    if method == "percentile":
        low, high = clipping.percentile_ends(histogram)
    else:
        high = clipping.entropy_threshold(histogram, asymmetric_grid(*widest).largest + 1)
        low = -high
    return asymmetric_grid(max(low, widest[0]), min(high, widest[1]))


def _least_error(histogram: Histogram, widest: Ends) -> Grid:
    """The best grid between two ends, or that of the symmetric grid's scale where the search missed it."""
    found = asymmetric_grid(*clipping.least_error_ends(histogram, widest, asymmetric_grid))
    one_sided = 0.0 in widest
    rival = Grid(
        scale=_symmetric(histogram, widest, "mse").scale, zero_point=found.zero_point if one_sided else SYMMETRIC
    )
    return min(found, rival, key=lambda grid: clipping.squared_error(histogram, grid))


def _exact(scale: float) -> float:
    """A scale in float32, kept above zero for subnormal ranges."""
    return float(np.maximum(np.float32(scale), np.finfo(np.float32).tiny))
