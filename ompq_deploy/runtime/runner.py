"""Run a model in memory on samples, in batches it accepts, and return the tensors asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from ompq_deploy.artifacts import Float32, PreparedGraph, Samples
from ompq_deploy.graph.part import returning
from ompq_deploy.runtime import sessions
from ompq_deploy.runtime.batches import by_sample, feeds, not_by_sample, size_of

BATCH = 16
ORT_FAILURES = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
"""What onnxruntime raises for a model that it cannot load or run."""


def start_without_spinning(
    model: onnx.ModelProto, threads: int = 0, lent: Mapping[str, NDArray[Any]] | None = None
) -> ort.InferenceSession:
    """A CPU session; `threads` 0 means one per core. Idle threads sleep: many sessions run after each other here.

    `model` gets the constants `lent`, which the session reads where they lie (`sessions.lend`).
    """
    options = sessions.session_options(threads)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if lent:
        sessions.lend(model, lent, options)
    return sessions.start(model, options)


def run_samples(
    graph: PreparedGraph,
    weights: Mapping[str, Float32],
    tensors: Sequence[str],
    samples: Samples,
    threads: int = 0,
) -> list[Float32]:
    """`tensors` for all samples, each with the samples on axis 0, under other weights for the layers named."""
    return run_model(with_weights(graph, weights), tensors, samples, graph.batch, threads)


def run_model(
    model: onnx.ModelProto, tensors: Sequence[str], samples: Samples, fixed: int | None, threads: int = 0
) -> list[Float32]:
    """`tensors` of a model for all samples, as `run_batches` gives them, put together."""
    parts = run_batches(model, tensors, samples, fixed, threads)
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def run_batches(
    model: onnx.ModelProto, tensors: Sequence[str], samples: Samples, fixed: int | None, threads: int = 0
) -> Iterator[list[Float32]]:
    """`tensors` of a model batch by batch, each with the samples on axis 0; `fixed` is its batch where it has one.

    Raises BadInput for a tensor whose shape depends on the sample, such as the boxes a detector keeps.
    """
    session = start_without_spinning(returning(model, tensors), threads)
    shapes: dict[str, tuple[int, ...]] = {}
    for feed, count in feeds(samples, fixed, BATCH):
        values = session.run(list(tensors), feed)
        batch = [by_sample(value, size_of(feed), name)[:count] for name, value in zip(tensors, values, strict=True)]
        for name, value in zip(tensors, batch, strict=True):
            if shapes.setdefault(name, value.shape[1:]) != value.shape[1:]:
                raise not_by_sample(name, "has another shape for other samples")
        yield batch


def with_weights(graph: PreparedGraph, weights: Mapping[str, Float32]) -> onnx.ModelProto:
    """A copy of the graph's model with the weights of some layers replaced, by layer name."""
    names = {layer.weight: layer.name for layer in graph.layers if layer.name in weights}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[names[tensor.name]], tensor.name))
    return model
