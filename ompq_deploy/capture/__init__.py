"""Run the float network over the calibration samples once and keep only what the later stages need.

    G_i = X_i X_i^T                       X_i = output of layer i flattened to N x (C H W)   (OMPQ, Eq. 7)
    (min, max), mean over all but the channel axis           of every tensor that gets an integer grid
    (min, max)                                               of those that get one in the integer-only model alone

`taps.py` writes these reductions into the graph, so onnxruntime frees each activation as it goes and
nothing larger than N x N leaves the session. Where one batch cannot hold all N samples, `stream.py` feeds
them one by one and computes the same figures. `histograms.py` is the optional second pass.
"""

from __future__ import annotations

import numpy as np

from ompq_deploy.artifacts import Capture, PreparedGraph, Samples
from ompq_deploy.capture.fit import running
from ompq_deploy.capture.histograms import count_histograms
from ompq_deploy.capture.one_pass import run_one_pass
from ompq_deploy.capture.statistics import Statistics
from ompq_deploy.capture.stream import run_streamed
from ompq_deploy.errors import BadInput

__all__ = ["capture"]


def capture(graph: PreparedGraph, samples: Samples, *, histograms: bool = False, threads: int = 0) -> Capture:
    """Gram matrices of all layers, ranges and channel means of all activations; `threads` 0 means all cores.

    Streams the samples where the batch axis is fixed, or where a layer's output does not keep it in front.
    Raises BadInput where the samples do not fit the graph, or an activation is not finite on them.
    """
    found: Statistics | None = None
    with running(graph, samples):
        if graph.batch is None or graph.batch == len(samples):
            found = run_one_pass(graph, samples, threads)
        streamed = found is None
        if found is None:
            found = run_streamed(graph, samples, threads)
    _refuse_overflow(found, samples)
    return Capture(
        grams=found.grams,
        ranges=found.ranges,
        wide_ranges=found.wide_ranges,
        means=found.means,
        histograms=count_histograms(graph, samples, found.ranges, threads) if histograms else {},
        count=len(samples),
        streamed=streamed,
    )


def _refuse_overflow(found: Statistics, samples: Samples) -> None:
    """NaN shows in a mean, where an extreme may pass over it."""
    for name, ends in found.ranges.items():
        if not np.isfinite([*ends, found.means[name].sum()]).all():
            raise BadInput(
                f"the float network itself overflows: its activation {name!r} holds NaN or infinite values",
                where=samples.source,
                fix="check the samples and their preprocessing (--preprocess, --mean, --std), and the network",
            )
