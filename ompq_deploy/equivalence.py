"""Check on one sample that the canonical graph computes what the user's file does.

    ||ours - theirs|| <= TOLERANCE ||theirs||        over the elements of each float output

Everything later is compared with the canonical graph. Were that one wrong, nothing would tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ompq_deploy.artifacts import PreparedGraph, Samples
from ompq_deploy.errors import OmpqError
from ompq_deploy.prepare import load_sized
from ompq_deploy.runner import ORT_FAILURES, feeds, start

TOLERANCE = 0.01
"""Folding a BatchNorm moves float32 outputs by less than a thousandth even in deep networks."""


def refuse_other_function(
    graph: PreparedGraph, samples: Samples, input_shapes: Sequence[str] = (), threads: int = 0
) -> None:
    """Raise OmpqError where an output differs from that of `graph.source`; say nothing where that file does not run."""
    original, _ = load_sized(graph.source, input_shapes)
    feed, _ = next(feeds(samples, graph.batch, 1))
    try:
        theirs = start(original, threads).run(list(graph.output_names), feed)
    except ORT_FAILURES:
        return
    ours = start(graph.model, threads).run(list(graph.output_names), feed)
    for name, expected, found in zip(graph.output_names, theirs, ours, strict=True):
        if expected.dtype.kind != "f" or not np.isfinite(expected).all():
            continue
        distance = np.linalg.norm(np.float64(found).ravel() - np.float64(expected).ravel())
        if found.shape != expected.shape or distance > TOLERANCE * np.linalg.norm(expected.astype(np.float64)):
            raise OmpqError(
                f"the graph this tool made of the model computes another {name!r}: it is {distance:.3g} off",
                where=str(graph.source),
                fix="this is a defect of ompq-deploy: please report it with the model",
            )
