"""Check on one sample that the canonical graph computes what the user's file does.

    rms(ours - theirs) <= TOLERANCE max(rms(theirs), SMALLEST)        over the elements of each float output

Everything later is compared with the canonical graph. Were that one wrong, nothing would tell. A network that selects
by computed numbers, or draws random ones, is not checked: the last bit of a score may turn its outputs over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import PreparedGraph, Samples
from ompq_deploy.calib import input_specs
from ompq_deploy.capture.fit import running
from ompq_deploy.errors import OmpqError
from ompq_deploy.prepare import load_sized
from ompq_deploy.runtime.batches import feeds
from ompq_deploy.runtime.runner import ORT_FAILURES, start_without_spinning

TOLERANCE = 0.01
"""Folding a BatchNorm moves float32 outputs by less than a thousandth even in deep networks."""
SMALLEST = 1e-4
"""Outputs below it are taken for zeros."""
SELECTING = frozenset(
    ("ArgMax", "ArgMin", "Bernoulli", "Multinomial", "NonMaxSuppression", "NonZero", "RandomNormal", "RandomNormalLike",
     "RandomUniform", "RandomUniformLike", "TopK", "Unique")
)  # fmt: skip


def refuse_other_function(
    graph: PreparedGraph, samples: Samples, input_shapes: Sequence[str] = (), threads: int = 0
) -> None:
    """Raise OmpqError where an output differs from that of `graph.source`, BadInput where the samples do not fit; say
    nothing where that file does not run, or selects."""
    if any(node.op_type in SELECTING for node in graph.model.graph.node):
        return
    names = list(graph.output_names)
    with running(graph, samples):
        feed, _ = next(feeds(samples, graph.batch, 1))
        ours = start_without_spinning(graph.model, threads).run(names, feed)
    try:
        model, _ = load_sized(graph.source, input_shapes)
        fed = {spec.name: spec.fitted(feed[spec.name]) for spec in input_specs(model)}
        theirs = start_without_spinning(model, threads).run(names, fed)
    except ORT_FAILURES:
        return
    for name, expected, found in zip(names, theirs, ours, strict=True):
        if expected.dtype.kind == "f" and np.isfinite(expected).all() and not _alike(expected, found):
            raise OmpqError(
                f"the graph this tool made of the model computes another {name!r}",
                where=str(graph.source),
                fix="this is a defect of ompq-deploy: please report it with the model",
            )


def _alike(expected: NDArray[Any], found: NDArray[Any]) -> bool:
    if found.shape != expected.shape:
        return False
    difference, size = _rms(found - expected), _rms(expected)
    return difference <= TOLERANCE * max(size, SMALLEST)


def _rms(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean())) if values.size else 0.0
