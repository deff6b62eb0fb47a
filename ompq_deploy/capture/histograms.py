"""The optional second pass: how often each magnitude occurs, for percentile, MSE and entropy calibration.

    bin(x) = min(floor(|x| / limit * BINS), BINS - 1),    limit = max |x| from the first pass

Small batches keep the memory bounded: the activations of `BATCH` samples are fetched, counted and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.artifacts import Histogram, PreparedGraph, Samples
from ompq_deploy.capture.session import session_options, start

BINS = 2048
BATCH = 1
CHUNK = 1 << 16
"""Elements binned at a time, so that the temporaries stay in the cache."""


def count_histograms(
    graph: PreparedGraph, samples: Samples, ranges: Mapping[str, tuple[float, float]], threads: int
) -> dict[str, Histogram]:
    """Counts of |x| of every activation over all samples, in `BINS` equal bins up to the largest |x|."""
    limits = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
    counts = {name: np.zeros(BINS, np.int64) for name in graph.activations}
    model = onnx.utils.Extractor(graph.model).extract_model(list(graph.input_names), list(graph.activations))
    session = start(model, session_options(threads))
    for feed in samples.batches(graph.batch or BATCH):
        values = session.run(list(graph.activations), {name: feed[name] for name in graph.input_names})
        for name, value in zip(graph.activations, values, strict=True):
            counts[name] += bin_counts(value, limits[name])
    return {name: Histogram(counts=counts[name], limit=limits[name]) for name in graph.activations}


def bin_counts(x: NDArray[np.float32], limit: float) -> NDArray[np.int64]:
    """How many |x| fall into each of `BINS` equal bins from 0 to `limit`; all into the first where limit is 0."""
    scale = np.float32(BINS / limit) if limit > 0 else np.float32(0)
    counts = np.zeros(BINS, np.int64)
    values, bins = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.int64)
    flat = x.reshape(-1)
    for offset in range(0, flat.size, CHUNK):
        chunk = flat[offset : offset + CHUNK]
        magnitude, position = values[: chunk.size], bins[: chunk.size]
        np.abs(chunk, out=magnitude)
        np.multiply(magnitude, scale, out=magnitude)
        np.minimum(magnitude, np.float32(BINS - 1), out=magnitude)
        np.copyto(position, magnitude, casting="unsafe")
        counts += np.bincount(position, minlength=BINS)
    return counts
