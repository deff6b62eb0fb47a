"""The largest magnitude of every channel of some activations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ompq_deploy.artifacts import Float64, PreparedGraph, Samples
from ompq_deploy.capture.fit import running
from ompq_deploy.graph.part import returning
from ompq_deploy.runtime.batches import feeds
from ompq_deploy.runtime.runner import start_without_spinning

AT_ONCE = 4
"""Samples run at once: all these activations are held together."""


def channel_ranges(
    graph: PreparedGraph, axes: Mapping[str, int], samples: Samples, threads: int = 0
) -> dict[str, Float64]:
    """max |x| over all samples, float64 (C,), of the tensors in `axes`, which tells their axis of channels.

    Raises BadInput where the samples do not fit the graph.
    """
    found: dict[str, Float64] = {}
    with running(graph, samples):
        session = start_without_spinning(returning(graph.model, list(axes)), threads)
        for feed, _ in feeds(samples, graph.batch, AT_ONCE):
            for (name, axis), values in zip(axes.items(), session.run(list(axes), feed), strict=True):
                others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
                largest = np.maximum(values.max(axis=others), -values.min(axis=others)).astype(np.float64)
                found[name] = np.maximum(found.get(name, 0.0), largest)
    return found
