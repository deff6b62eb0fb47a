"""The optional second pass: how often each value occurs, for percentile, MSE and entropy calibration.

    bin(x) = min(floor(|x| / limit * BINS), BINS - 1) on either side of zero,    limit = max |x| from the first pass

Small batches keep the memory bounded: the activations of `BATCH` samples are fetched, counted and dropped. Of a
large tensor every k-th element counts, with k odd so that no row or channel is favoured: thresholds need the shape of
the distribution, and a million elements over 64 samples tell it as well as a hundred million do.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Histogram, PreparedGraph, Samples
from ompq_deploy.graph.part import returning
from ompq_deploy.runtime.sessions import brief_options, start

BINS = 2048
"""On either side of zero."""
BATCH = 1
LARGEST_SHARE = 1 << 14
"""Elements counted per tensor and batch."""


def count_histograms(
    graph: PreparedGraph, samples: Samples, ranges: Mapping[str, tuple[float, float]], threads: int
) -> dict[str, Histogram]:
    """Counts of every activation over all samples, in `BINS` equal bins per side up to the largest |x|.

    At most `LARGEST_SHARE` elements count per tensor and batch.
    """
    limits = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
    counts = {name: np.zeros(2 * BINS, np.int64) for name in graph.activations}
    session = start(returning(graph.model, graph.activations), brief_options(threads))
    for feed in samples.batches(graph.batch or BATCH):
        values = session.run(list(graph.activations), {name: feed[name] for name in graph.input_names})
        for name, value in zip(graph.activations, values, strict=True):
            counts[name] += bin_counts(evenly(value), limits[name])
    return {name: Histogram(counts=counts[name], limit=limits[name]) for name in graph.activations}


def evenly(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every k-th element, flat, for the smallest odd k that leaves at most `LARGEST_SHARE` of them."""
    step = -(-x.size // LARGEST_SHARE)
    return x.reshape(-1)[:: step + 1 - step % 2]


def bin_counts(x: NDArray[np.float32], limit: float) -> NDArray[np.int64]:
    """How many x fall into each of 2 `BINS` equal bins from -`limit` to `limit`; zeros into the first above zero."""
    flat = x.reshape(-1)
    scale = BINS / limit if limit > 0 else 0.0
    bins = np.minimum(np.abs(flat) * scale, BINS - 1).astype(np.int64)
    return np.bincount(np.where(flat < 0, BINS - 1 - bins, BINS + bins), minlength=2 * BINS).astype(np.int64)
