"""Find a network's heads: which layers decide which elements of its outputs.

A last layer is one with a path to an output on which no other layer lies. NaN comes through every arithmetic operator,
so the network runs once per last layer with NaN for that layer's weights, and the elements that come out NaN are those
it decides. Elements decided by the same last layers are one head, whatever lies between: concatenated strides, decoded
boxes, Softmax. Elements that none decides (constants; integers, which hold no NaN) are one more head of their output.

The outputs of a classifier are one head. Where it ends in Softmax the logits are that node's input, so that no
probability is rounded to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
import onnx

from ompq_deploy.artifacts import Float64, PreparedGraph, Samples
from ompq_deploy.evaluate.heads import Head, Heads, variation
from ompq_deploy.graph.index import GraphIndex, attributes, reads
from ompq_deploy.runtime.batches import select
from ompq_deploy.runtime.runner import run_batches, run_samples


def find_heads(graph: PreparedGraph, samples: Samples, threads: int = 0) -> Heads:
    """What to compare two versions of a network by; runs the samples unless it is a classifier."""
    tensors = compared_tensors(graph)
    if _classifier_logits(graph) is not None:
        return Heads(classifier=True, tensors=tensors)
    return Heads(classifier=False, tensors=tensors, parts=output_heads(graph, samples, threads))


def compared_tensors(graph: PreparedGraph) -> tuple[str, ...]:
    """The tensors that two versions of a network are compared by: a classifier's logits, else every output."""
    logits = _classifier_logits(graph)
    return graph.output_names if logits is None else (logits,)


def output_heads(graph: PreparedGraph, samples: Samples, threads: int = 0) -> tuple[Head, ...]:
    """The heads of all graph outputs, in the order of outputs and elements, with their variation over `samples`."""
    one = select(samples, np.zeros(1, np.int64))
    layers = last_layers(graph)
    weights = graph.layer_weights()
    runs = [
        run_samples(graph, {name: np.full_like(weights[name], np.nan)}, graph.output_names, one, threads)
        for name in layers
    ]
    heads = []
    for position, moments in enumerate(_moments(graph, samples, threads)):
        reached = np.stack([np.isnan(outputs[position][0]).reshape(-1) for outputs in runs], axis=1)
        sets, first, member = np.unique(reached, axis=0, return_index=True, return_inverse=True)
        for number in np.argsort(first):
            elements = np.flatnonzero(member.reshape(-1) == number)
            head = Head(
                tensor=graph.output_names[position],
                layers=tuple(name for name, hit in zip(layers, sets[number], strict=True) if hit),
                shape=runs[0][position][0].shape,
                elements=elements,
                variation=variation(float(moments.energy[elements].sum()), float(moments.variance[elements].sum())),
            )
            heads.append(head)
    return tuple(heads)


def last_layers(graph: PreparedGraph) -> tuple[str, ...]:
    """The layers with a path to an output on which no other layer lies, in the graph's order."""
    index = GraphIndex(graph.model)
    layer_of = {node: layer.name for layer in graph.layers for node in layer.nodes}
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(graph.output_names)
    while waiting:
        tensor = waiting.pop()
        node = index.producer.get(tensor)
        if tensor in seen or node is None:
            continue
        seen.add(tensor)
        if node.name in layer_of:
            found.add(layer_of[node.name])
        else:
            waiting += [name for name in reads(node) if not index.is_constant(name)]
    return tuple(layer.name for layer in graph.layers if layer.name in found)


@dataclass(frozen=True, kw_only=True)
class _Moments:
    """Per element of one sample of an output: mean square and variance over the samples, float64 (elements,)."""

    energy: Float64
    variance: Float64


def _moments(graph: PreparedGraph, samples: Samples, threads: int) -> list[_Moments]:
    """Of every output. Sums run over distances from the first sample, so that a large constant cancels exactly."""
    batches = run_batches(graph.model, graph.output_names, samples, graph.batch, threads)
    origins: list[Float64] = []
    sums: list[Float64] = []
    for row in chain.from_iterable(zip(*values, strict=True) for values in batches):  # one at a time: some are large
        values = [value.reshape(-1).astype(np.float64) for value in row]
        origins = origins or values
        sums = sums or [np.zeros((3, value.size)) for value in values]
        for total, value, origin in zip(sums, values, origins, strict=True):
            distance = value - origin
            total[0] += np.square(value)
            total[1] += distance
            total[2] += np.square(distance)
    count = len(samples)
    return [
        _Moments(energy=energy / count, variance=(squares - np.square(shift) / count) / max(count - 1, 1))
        for energy, shift, squares in sums
    ]


def _classifier_logits(graph: PreparedGraph) -> str | None:
    """The logits of a classifier, told by its declared output shapes; None for any other network."""
    index = GraphIndex(graph.model)
    outputs = graph.output_names
    shape = index.shapes.get(outputs[0], ())
    if len(outputs) > 1 or len(shape) < 2 or (shape[1] or 0) < 2 or any(size != 1 for size in shape[2:]):
        return None
    producer = index.producer.get(outputs[0])
    if producer is not None and producer.op_type in ("Softmax", "LogSoftmax") and _over_classes(producer, len(shape)):
        return str(producer.input[0])
    return outputs[0]


def _over_classes(node: onnx.NodeProto, rank: int) -> bool:
    return attributes(node).get("axis", -1) in (1, 1 - rank)
