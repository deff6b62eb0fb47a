"""What a network's outputs are, and how far two sets of outputs are apart.

classifier   one output of N x C (or N x C x 1 x 1), C >= 2; with z the logits and p = softmax(z):
                 d_n = sum_c p_c (ln p_c - ln p'_c)
anything else (detectors, images, regressors, several outputs), y_k being the outputs:
                 d_n = mean over k of  ||y'_k - y_k||^2 / ||y_k||^2

divergence = mean over samples of d_n         additive to second order: what the losses of layers are made of
distance   = mean over samples of sqrt(d_n)   no single sample decides: what plans are compared by

By Pinsker's inequality sqrt(d_n / 2) bounds how much probability moves. On confident samples, such as training images,
the plain mean rests on the one or two that flip: over 14 contests its winner was 20 % worse in KL on other images than
the best plan, the winner by distance 9 % (docs/ablation.md).

Where a classifier ends in Softmax the logits are that node's input, so that no probability is rounded to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ompq_deploy.artifacts import Float32, Float64, PreparedGraph
from ompq_deploy.graph_index import GraphIndex, attributes

SMALLEST_ENERGY = 1e-12
FALLBACK = "the model is no classifier (one output of samples x classes), so output errors stand for its loss"


@dataclass(frozen=True, kw_only=True)
class Head:
    """The tensors to compare: the logits of a classifier, else every output of the graph."""

    classifier: bool
    tensors: tuple[str, ...]

    @property
    def measure(self) -> str:
        return "root of output KL" if self.classifier else "relative output error"

    @property
    def note(self) -> str:
        """What a metric says when it falls back; empty for a classifier."""
        return "" if self.classifier else FALLBACK


def find_head(graph: PreparedGraph) -> Head:
    """The head of a prepared graph, from its declared output shapes."""
    index = GraphIndex(graph.model)
    outputs = graph.output_names
    shape = index.shapes.get(outputs[0], ())
    if len(outputs) > 1 or len(shape) < 2 or (shape[1] or 0) < 2 or any(size != 1 for size in shape[2:]):
        return Head(classifier=False, tensors=outputs)
    producer = index.producer.get(outputs[0])
    if producer is not None and producer.op_type in ("Softmax", "LogSoftmax") and _over_classes(producer, len(shape)):
        return Head(classifier=True, tensors=(producer.input[0],))
    return Head(classifier=True, tensors=outputs)


def divergence(head: Head, reference: Sequence[Float32], other: Sequence[Float32]) -> float:
    """Mean of d_n, for the tensors of `head` in order, each with the samples on axis 0."""
    return float(np.mean(per_sample(head, reference, other)))


def distance(head: Head, reference: Sequence[Float32], other: Sequence[Float32]) -> float:
    """Mean of sqrt(d_n)."""
    return float(np.mean(np.sqrt(per_sample(head, reference, other))))


def per_sample(head: Head, reference: Sequence[Float32], other: Sequence[Float32]) -> Float64:
    """d_n of the formula above, float64 (N,), nonnegative."""
    if head.classifier:
        log_p, log_q = (log_softmax(values[0].reshape(len(values[0]), -1)) for values in (reference, other))
        return np.maximum(np.sum(np.exp(log_p) * (log_p - log_q), axis=1), 0.0)
    return np.mean([_relative_errors(a, b) for a, b in zip(reference, other, strict=True)], axis=0)


def log_softmax(logits: Float32) -> Float64:
    """ln softmax along axis 1 of (N, C)."""
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def returning(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` whose outputs are `tensors`."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    known = {value.name: value for value in (*model.graph.output, *model.graph.value_info, *model.graph.input)}
    result.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in tensors)
    return result


def _over_classes(node: onnx.NodeProto, rank: int) -> bool:
    return attributes(node).get("axis", -1) in (1, 1 - rank)


def _relative_errors(reference: Float32, other: Float32) -> Float64:
    """Per sample; one whose reference is zero counts its absolute error."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (reference, other))
    energy = np.square(a).sum(axis=1)
    return np.square(b - a).sum(axis=1) / np.where(energy > SMALLEST_ENERGY, energy, 1.0)
