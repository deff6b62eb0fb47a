"""Run a model in memory on samples, in batches it accepts, and return the tensors asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, PreparedGraph, Samples
from ompq_deploy.heads import returning

BATCH = 16
ERRORS_ONLY = 3


def start(model: onnx.ModelProto, threads: int = 0) -> ort.InferenceSession:
    """A CPU session; `threads` 0 means one per core. Idle threads sleep: many sessions run after each other here."""
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_samples(
    graph: PreparedGraph,
    weights: Mapping[str, Float32],
    tensors: Sequence[str],
    samples: Samples,
    threads: int = 0,
) -> list[Float32]:
    """`tensors` for all samples, each with the samples on axis 0, under other weights for the layers named."""
    session = start(returning(with_weights(graph, weights), tensors), threads)
    parts = [
        [value[:count] for value in session.run(list(tensors), feed)]
        for feed, count in feeds(samples, graph.batch, BATCH)
    ]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def with_weights(graph: PreparedGraph, weights: Mapping[str, Float32]) -> onnx.ModelProto:
    """A copy of the graph's model with the weights of some layers replaced, by layer name."""
    names = {layer.weight: layer.name for layer in graph.layers if layer.name in weights}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[names[tensor.name]], tensor.name))
    return model


def feeds(samples: Samples, fixed: int | None, batch: int) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
    """Consecutive feeds and how many samples of each are new: a fixed batch is filled up with the last sample."""
    size = fixed or batch
    for start_at in range(0, len(samples), size):
        rows = np.arange(start_at, min(start_at + size, len(samples)))
        count = len(rows)
        if fixed:
            rows = np.concatenate([rows, np.full(fixed - count, rows[-1])])
        yield {name: array[rows] for name, array in samples.inputs.items()}, count
