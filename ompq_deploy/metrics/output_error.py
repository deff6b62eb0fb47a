"""`kl`: quantize one layer at a time and measure how far the network's outputs move, in onnxruntime.

    loss_i(b) = d(f(x; w), f(x; w with w_i = Q_b(w_i)))           d: output KL, or relative output error (`heads.py`)

Everything before layer i is as in the float network, so only the nodes behind it run, fed with tensors kept from
one float pass. One session per layer, with that layer's weight as an input, serves all widths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx

from ompq_deploy.artifacts import Float32, Float64, Layer, PreparedGraph, Samples, Scores
from ompq_deploy.graph_index import GraphIndex
from ompq_deploy.heads import Head, divergence, returning
from ompq_deploy.metrics.rounding import Rounding
from ompq_deploy.runner import feeds, start


def output_error(graph: PreparedGraph, head: Head, samples: Samples, rounding: Rounding, threads: int = 0) -> Scores:
    """The loss of every layer and width, measured on all of `samples`; those of a short fixed batch are dropped."""
    suffixes = [suffix_model(graph, layer, head) for layer in graph.layers]
    kept = sorted({value.name for model in suffixes for value in model.graph.input} - {x.weight for x in graph.layers})
    session = start(returning(graph.model, list(dict.fromkeys([*head.tensors, *_computed(graph, kept)]))), threads)
    names = [value.name for value in session.get_outputs()]
    passes = [
        feed | dict(zip(names, session.run(names, feed), strict=True))
        for feed, count in feeds(samples, graph.batch, len(samples))
        if count == (graph.batch or count)
    ]
    loss = np.stack(
        [_layer_losses(model, layer, head, passes, rounding, threads)
         for model, layer in zip(suffixes, graph.layers, strict=True)]
    )  # fmt: skip
    return Scores(metric="kl", bits=rounding.bits, loss=loss, importance=loss.max(axis=1), note=head.note)


def suffix_model(graph: PreparedGraph, layer: Layer, head: Head) -> onnx.ModelProto:
    """The nodes that depend on a layer's weight, as a model from the tensors they read and the weight to the head."""
    index = GraphIndex(graph.model)
    changed: set[str] = {layer.weight}
    nodes = []
    for node in graph.model.graph.node:
        if not changed.isdisjoint(node.input):
            nodes.append(node)
            changed.update(node.output)
    read = {name for node in nodes for name in node.input if name}
    model = returning(graph.model, [name for name in head.tensors if name in changed])
    del model.graph.node[:], model.graph.input[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    constants = [t for name, t in index.initializers.items() if name in read and name != layer.weight]
    model.graph.initializer.extend(constants)
    outer = sorted(read - changed - {t.name for t in constants})
    model.graph.input.extend(_typed(graph, name) for name in outer)
    model.graph.input.append(onnx.helper.make_tensor_value_info(layer.weight, onnx.TensorProto.FLOAT, layer.shape))
    return model


def _layer_losses(
    model: onnx.ModelProto,
    layer: Layer,
    head: Head,
    passes: list[dict[str, Float32]],
    rounding: Rounding,
    threads: int,
) -> Float64:
    if not model.graph.output:
        return np.zeros(len(rounding.bits))
    session = start(model, threads)
    outer = [value.name for value in model.graph.input if value.name != layer.weight]
    names = [value.name for value in model.graph.output]
    losses = []
    for width in rounding.bits:
        weight = rounding.rounded(layer.name, width)
        found: Mapping[str, list[Float32]] = defaultdict(list)
        for known in passes:
            feed = {name: known[name] for name in outer} | {layer.weight: weight}
            moved = dict(zip(names, session.run(names, feed), strict=True))
            for name in head.tensors:
                found[name].append(moved.get(name, known[name]))
        reference = [np.concatenate([known[name] for known in passes]) for name in head.tensors]
        losses.append(divergence(head, reference, [np.concatenate(found[name]) for name in head.tensors]))
    return np.array(losses)


def _computed(graph: PreparedGraph, names: list[str]) -> list[str]:
    return [name for name in names if name not in graph.input_names]


def _typed(graph: PreparedGraph, name: str) -> onnx.ValueInfoProto:
    values = (*graph.model.graph.input, *graph.model.graph.value_info, *graph.model.graph.output)
    return next(value for value in values if value.name == name)
