"""`kl`: quantize one layer at a time and measure how far the network's outputs move, in onnxruntime.

    loss_i(b) = divergence(f(x; w), f(x; w with w_i = Q_b(w_i)))      softened output KL, or the mean relative squared
                                                                      error of the heads (`evaluate/heads.py`)

Everything before layer i is as in the float network, so only the nodes behind it run, fed with tensors kept from
one float pass. One session per layer, with that layer's weight as an input, serves all widths; the sessions share the
other weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from ompq_deploy.artifacts import Float32, Float64, Layer, PreparedGraph, Samples, Scores
from ompq_deploy.evaluate.heads import SOFTENED, Heads, Reference
from ompq_deploy.graph.index import GraphIndex, reads
from ompq_deploy.graph.part import returning
from ompq_deploy.metrics.rounding import Rounding
from ompq_deploy.runtime.batches import by_sample, evenly, feeds, size_of
from ompq_deploy.runtime.runner import start_without_spinning
from ompq_deploy.runtime.timing import Listener, counted, within

MOST_NUMBERS = 2**29
"""Numbers of all samples in the tensors that are kept in front of layers: 2 GiB."""


def output_error(
    graph: PreparedGraph,
    heads: Heads,
    samples: Samples,
    rounding: Rounding,
    threads: int = 0,
    metric: str = "kl",
    tell: Listener | None = None,
) -> Scores:
    """The loss of every layer and width, measured on `samples`, or on as many of them as have `MOST_NUMBERS` numbers in
    front of the layers. `tell` hears how far it has come."""
    index = GraphIndex(graph.model)
    suffixes = [_suffix(index, layer) for layer in graph.layers]
    kept = sorted({name for suffix in suffixes for name in suffix.outer})
    session = start_without_spinning(
        returning(graph.model, list(dict.fromkeys([*heads.tensors, *_computed(graph, kept)]))), threads
    )
    names = [value.name for value in session.get_outputs()]
    some = evenly(samples, max(MOST_NUMBERS // max(sum(map(index.numbers, names)), 1), 1))
    passes = [
        _Pass(tensors=feed | dict(zip(names, session.run(names, feed), strict=True)), samples=count)
        for feed, count in feeds(some, graph.batch, len(some))
    ]
    reference = Reference(heads=heads, outputs=_outputs(heads, [known.tensors for known in passes], passes))
    weights = {layer.weight: rounding.weights[layer.name] for layer in graph.layers}
    loss = np.zeros((len(suffixes), len(rounding.bits)))
    for row, suffix in enumerate(counted(suffixes, "measuring layer", within(metric, tell))):
        lent = {name: weights[name] for name in suffix.constants if name in weights}
        model = _model(graph, index, suffix, heads, lent)
        if model.graph.output:
            loss[row] = _losses(start_without_spinning(model, threads, lent), suffix.layer, reference, passes, rounding)
    return Scores(metric=metric, bits=rounding.bits, loss=loss, importance=loss.max(axis=1), note=heads.note)


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """A run of the float network: the tensors that suffixes read, and how many samples they hold besides those that
    fill up a fixed batch."""

    tensors: Mapping[str, Float32]
    samples: int


@dataclass(frozen=True, kw_only=True)
class Suffix:
    """The nodes that depend on a layer's weight, the tensors that they change, and what else they read."""

    layer: Layer
    nodes: tuple[onnx.NodeProto, ...]
    changed: frozenset[str]
    constants: tuple[str, ...]
    outer: tuple[str, ...]


def _suffix(index: GraphIndex, layer: Layer) -> Suffix:
    changed: set[str] = {layer.weight}
    nodes = []
    for node in index.graph.node:
        if not changed.isdisjoint(reads(node)):
            nodes.append(node)
            changed.update(node.output)
    read = sorted({name for node in nodes for name in reads(node)} - changed)
    return Suffix(
        layer=layer,
        nodes=tuple(nodes),
        changed=frozenset(changed),
        constants=tuple(name for name in read if name in index.initializers),
        outer=tuple(name for name in read if name not in index.initializers),
    )


def _model(
    graph: PreparedGraph, index: GraphIndex, suffix: Suffix, heads: Heads, lent: Collection[str]
) -> onnx.ModelProto:
    """A suffix as a model from the outer tensors and the weight to the heads, without the constants that are `lent`."""
    layer = suffix.layer
    weight = helper.make_tensor_value_info(layer.weight, onnx.TensorProto.FLOAT, layer.shape)
    outputs = [name for name in heads.tensors if name in suffix.changed]
    body = helper.make_graph(
        suffix.nodes,
        "suffix",
        [*(index.values[name] for name in suffix.outer), weight],
        [index.values.get(name, onnx.ValueInfoProto(name=name)) for name in outputs],
        [index.initializers[name] for name in suffix.constants if name not in lent],
    )
    return helper.make_model(body, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)


def _losses(
    session: ort.InferenceSession,
    layer: Layer,
    reference: Reference,
    passes: Sequence[_Pass],
    rounding: Rounding,
) -> Float64:
    """The loss of every width of one layer."""
    outer = [value.name for value in session.get_inputs() if value.name != layer.weight]
    names = [value.name for value in session.get_outputs()]
    losses = []
    for width in rounding.bits:
        weight = rounding.rounded(layer.name, width)
        inputs = [{name: known.tensors[name] for name in outer} | {layer.weight: weight} for known in passes]
        moved = [dict(zip(names, session.run(names, feed), strict=True)) for feed in inputs]
        losses.append(reference.divergence(_outputs(reference.heads, moved, passes), SOFTENED))
    return np.array(losses)


def _outputs(heads: Heads, moved: Sequence[Mapping[str, Float32]], passes: Sequence[_Pass]) -> list[Float32]:
    """The tensors to compare, all samples on axis 0: what each pass moved, and what it left as known."""

    def of_pass(name: str, new: Mapping[str, Float32], known: _Pass) -> Float32:
        value = by_sample(new.get(name, known.tensors[name]), size_of(known.tensors), name)
        return value[: known.samples]

    return [
        np.concatenate([of_pass(name, new, known) for new, known in zip(moved, passes, strict=True)])
        for name in heads.tensors
    ]


def _computed(graph: PreparedGraph, names: list[str]) -> list[str]:
    return [name for name in names if name not in graph.input_names]
