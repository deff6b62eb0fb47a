"""Refuse samples that the network cannot be run on, in words a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ompq_deploy.artifacts import PreparedGraph, Samples
from ompq_deploy.errors import BadInput
from ompq_deploy.runtime.runner import ORT_FAILURES


@contextmanager
def running(graph: PreparedGraph, samples: Samples) -> Iterator[None]:
    """Within it the float network runs on the samples. Raises BadInput where they do not fit it or it fails on them."""
    _refuse_misfit(graph, samples)
    try:
        yield
    except ORT_FAILURES as e:
        words = " ".join(str(e).rpartition("] : ")[2].split())
        raise BadInput(
            f"onnxruntime cannot run the float model on the samples: {words}",
            where=f"{graph.source}, on {samples.source}",
            fix="check the shapes of the samples (--calib, --input-shape), and that the model runs in onnxruntime",
        ) from e


def _refuse_misfit(graph: PreparedGraph, samples: Samples) -> None:
    missing = set(graph.input_names) - set(samples.inputs)
    if missing:
        raise BadInput(
            f"the samples hold no array for the graph input {sorted(missing)[0]!r}",
            where=samples.source,
            fix=f"name the arrays after the inputs: {', '.join(graph.input_names)}",
        )
    if not len(samples):
        raise BadInput("there are no calibration samples", where=samples.source, fix="give at least one sample")
    if graph.batch is not None and len(samples) % graph.batch:
        raise BadInput(
            f"{len(samples)} samples do not fill batches of {graph.batch}, the size fixed in the model",
            where=samples.source,
            fix=f"give a multiple of {graph.batch} samples",
        )
