"""`kl`: quantize one layer at a time and measure how far the network's outputs move, in onnxruntime.

    loss_i(b) = divergence(f(x; w), f(x; w with w_i = Q_b(w_i)))      softened output KL, or the mean relative squared
                                                                      error of the heads (`heads.py`)

Everything before layer i is as in the float network, so only the nodes behind it run, fed with tensors kept from
one float pass. One session per layer, with that layer's weight as an input, serves all widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from ompq_deploy.artifacts import Float32, Float64, Layer, PreparedGraph, Samples, Scores
from ompq_deploy.graph_index import GraphIndex
from ompq_deploy.heads import SOFTENED, Heads, Reference
from ompq_deploy.metrics.rounding import Rounding
from ompq_deploy.runner import by_sample, feeds, returning, size_of, start


def output_error(
    graph: PreparedGraph,
    heads: Heads,
    samples: Samples,
    rounding: Rounding,
    threads: int = 0,
    metric: str = "kl",
) -> Scores:
    """The loss of every layer and width, measured on all of `samples`; those of a short fixed batch are dropped."""
    suffixes = [suffix_model(graph, layer, heads) for layer in graph.layers]
    kept = sorted({value.name for model in suffixes for value in model.graph.input} - {x.weight for x in graph.layers})
    session = start(returning(graph.model, list(dict.fromkeys([*heads.tensors, *_computed(graph, kept)]))), threads)
    names = [value.name for value in session.get_outputs()]
    passes = [
        feed | dict(zip(names, session.run(names, feed), strict=True))
        for feed, count in feeds(samples, graph.batch, len(samples))
        if count == (graph.batch or count)
    ]
    reference = Reference(heads=heads, outputs=_outputs(heads, passes, passes))
    loss = np.stack(
        [_layer_losses(model, layer, reference, passes, rounding, threads)
         for model, layer in zip(suffixes, graph.layers, strict=True)]
    )  # fmt: skip
    return Scores(metric=metric, bits=rounding.bits, loss=loss, importance=loss.max(axis=1), note=heads.note)


def suffix_model(graph: PreparedGraph, layer: Layer, heads: Heads) -> onnx.ModelProto:
    """The nodes that depend on a layer's weight, as a model from the tensors they read and the weight to the head."""
    index = GraphIndex(graph.model)
    changed: set[str] = {layer.weight}
    nodes = []
    for node in graph.model.graph.node:
        if not changed.isdisjoint(node.input):
            nodes.append(node)
            changed.update(node.output)
    read = {name for node in nodes for name in node.input if name}
    model = returning(graph.model, [name for name in heads.tensors if name in changed])
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
    reference: Reference,
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
        inputs = [{name: known[name] for name in outer} | {layer.weight: weight} for known in passes]
        moved = [dict(zip(names, session.run(names, feed), strict=True)) for feed in inputs]
        losses.append(reference.divergence(_outputs(reference.heads, moved, passes), SOFTENED))
    return np.array(losses)


def _outputs(
    heads: Heads, moved: Sequence[Mapping[str, Float32]], known: Sequence[Mapping[str, Float32]]
) -> list[Float32]:
    """The tensors to compare, all samples on axis 0: what each pass moved, and what it left as known."""
    return [
        np.concatenate(
            [by_sample(new.get(name, old[name]), size_of(old), name) for new, old in zip(moved, known, strict=True)]
        )
        for name in heads.tensors
    ]


def _computed(graph: PreparedGraph, names: list[str]) -> list[str]:
    return [name for name in names if name not in graph.input_names]


def _typed(graph: PreparedGraph, name: str) -> onnx.ValueInfoProto:
    values = (*graph.model.graph.input, *graph.model.graph.value_info, *graph.model.graph.output)
    return next(value for value in values if value.name == name)
