"""Pools and means: sums and maxima over windows or axes."""

from __future__ import annotations

import numpy as np

from ompq_deploy.export.integer.geometry import pad_widths, taps
from ompq_deploy.export.integer.program import IntegerAveragePool, IntegerMaxPool, IntegerMean
from ompq_deploy.export.integer.rules import Int64, Values


def sum_up(operation: IntegerAveragePool | IntegerMean, x: Values) -> Int64:
    """What an average is made from."""
    return window_sum(operation, x) if isinstance(operation, IntegerAveragePool) else axis_sum(operation, x)


def window_sum(pool: IntegerAveragePool, x: Values) -> Int64:
    """The sum under every window, padding counted as 0."""
    padded = np.pad(x.astype(np.int64), pad_widths(pool.window, x.ndim))
    return np.asarray(np.sum([view for _, view in taps(padded, pool.window)], axis=0))


def axis_sum(mean: IntegerMean, x: Values) -> Int64:
    """The sum over the averaged axes."""
    return np.asarray(x.astype(np.int64).sum(axis=mean.axes, keepdims=mean.keep_axes))


def max_pool(pool: IntegerMaxPool, x: Values) -> Values:
    """The largest value under every window; padding never wins."""
    padded = np.pad(x, pad_widths(pool.window, x.ndim), constant_values=np.iinfo(x.dtype).min)
    return np.asarray(np.max([view for _, view in taps(padded, pool.window)], axis=0))
