"""Smoothing: bring the channels of an activation closer to one range where a layer reads it, and its weights make up.

    x'_c = x_c 2^-k_c        W'_c = 2^k_c W_c        W' x' = W x exactly

One grid serves all channels of an activation, so that a channel a hundred times smaller than another falls on a step or
two: one tensor of YOLOX-nano costs its heads more than all 127 others together. 2^k_c is near s_c, where r_c is the
largest |x_c| of the calibration samples and w_c the largest weight that reads it (Xiao et al., "SmoothQuant", ICML
2023, eq. 4 with alpha 1/2; 1 for depthwise layers, whose channels have scales of their own):

    s_c = sqrt(r_c / w_c)    or    r_c,        divided by the largest

A channel is off by its step d_c, or, where that is coarse, by all that it holds. The readers' outputs are then off by

    sqrt( sum_c |W_c|^2 min(d_c, 2 r_c)^2 )      d_c = 2^k_c max_j (r_j 2^-k_j) / 255      up to a constant

Where a layer makes the activation, alone or through a Relu, its weights take the factors: each channel has a scale of
its own there, so that they cost nothing. Elsewhere a multiplication stays in the network. An activation is smoothed
where the above falls by `LEAST_FREE_GAIN` or `LEAST_GAIN`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ompq_deploy.artifacts import Float32, Float64, Layer, PreparedGraph
from ompq_deploy.graph.index import GraphIndex, attributes
from ompq_deploy.passes.equalize import (
    HOMOGENEOUS,
    activation_axis,
    alone,
    by_input,
    input_ranges,
    scale_inputs,
    scale_outputs,
)

LEVELS = 255
LEAST_GAIN, LEAST_FREE_GAIN = 4.0, 1.5
SMALLEST = -6
"""Least k: a channel that calibration hardly saw may be larger on other samples, and the integer-only model, which has
x on a grid of 16 bits, keeps 10 of them. YOLOX-nano's heads are 57 % off on average at -4, 39 % at -6, 42 % at -8."""

Smoothing = Mapping[str, Sequence[int]]
"""k of every channel, by activation."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An activation, the layers that read it, and its axis of channels, from the end.

    `maker` is the layer whose weights can take the factors, None where a multiplication has to.
    """

    tensor: str
    readers: tuple[Layer, ...]
    axis: int
    maker: Layer | None


def candidates(graph: PreparedGraph) -> list[Candidate]:
    """Activations that nodes make and layers alone read, all of which can take factors into their weights."""
    index = GraphIndex(graph.model)
    makers = {layer.name: layer for layer in graph.layers if alone(index, layer)}
    reading: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        for tensor in set(layer.inputs):
            reading.setdefault(tensor, []).append(layer)
    found = []
    for tensor, layers in reading.items():
        axes = {activation_axis(layer) for layer in layers}
        alike = len(axes) == 1 and all(_takes_factors(index, layer) for layer in layers)
        if alike and _read_by_layers_alone(index, tensor, layers):
            maker = makers.get(_maker(index, tensor))
            axis = axes.pop()
            takes = maker is not None and activation_axis(maker) == axis
            found.append(Candidate(tensor=tensor, readers=tuple(layers), axis=axis, maker=maker if takes else None))
    return found


def find_smoothing(
    graph: PreparedGraph, among: Sequence[Candidate], ranges: Mapping[str, Float64]
) -> dict[str, list[int]]:
    """k of the activations `among` the candidates that gain enough, from their largest magnitudes per channel."""
    weights = graph.layer_weights()
    found: dict[str, list[int]] = {}
    for candidate in among:
        r = ranges[candidate.tensor]
        if not r.any() or not np.isfinite(r).all():
            continue
        k = _exponents(candidate, weights, r)
        before, after = (_noise(candidate, weights, r, exponents) for exponents in (np.zeros_like(k), k))
        if before >= (LEAST_FREE_GAIN if candidate.maker else LEAST_GAIN) * after > 0:
            found[candidate.tensor] = k.astype(int).tolist()
    return found


def smooth(graph: PreparedGraph, smoothing: Smoothing) -> onnx.ModelProto:
    """The model with the activations multiplied where they are made or in front of the layers that read them, and the
    readers' weights divided."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    index, weights = GraphIndex(model), graph.layer_weights()
    factors = []
    changed: dict[str, Layer] = {}
    for candidate in candidates(graph):
        if candidate.tensor not in smoothing:
            continue
        k = np.array(smoothing[candidate.tensor], np.float64)
        for layer in candidate.readers:
            weights[layer.name] = scale_inputs(layer, weights[layer.name], np.exp2(k))
            changed[layer.name] = layer
        if candidate.maker is None:
            factors.append(_multiplied(model, index, candidate, np.exp2(-k)))
        else:
            maker = candidate.maker
            weights[maker.name] = scale_outputs(maker, weights[maker.name], np.exp2(-k))
            changed[maker.name] = maker
            for bias in filter(None, index.nodes[maker.name].input[2:]):
                scaled = (index.constant(bias) * np.exp2(-k)).astype(np.float32)
                index.initializers[bias].CopyFrom(numpy_helper.from_array(scaled, bias))
    for layer in changed.values():
        index.initializers[layer.weight].CopyFrom(numpy_helper.from_array(weights[layer.name], layer.weight))
    for node in factors:
        producer = next(i for i, other in enumerate(model.graph.node) if node.input[0] in other.output)
        model.graph.node.insert(producer + 1, node)
    return model


def _multiplied(model: onnx.ModelProto, index: GraphIndex, candidate: Candidate, factors: Float64) -> onnx.NodeProto:
    """A Mul of an activation, still to be put into the graph, which its readers read from now on."""
    name, factor = f"{candidate.tensor}_smooth", f"{candidate.tensor}_smoothing"
    shape = (-1,) + (1,) * (-1 - candidate.axis)
    model.graph.initializer.append(numpy_helper.from_array(factors.astype(np.float32).reshape(shape), factor))
    if candidate.tensor in index.values:
        value = model.graph.value_info.add()
        value.CopyFrom(index.values[candidate.tensor])
        value.name = name
    for layer in candidate.readers:
        index.nodes[layer.name].input[0] = name
    return helper.make_node("Mul", [candidate.tensor, factor], [name], name=name)


def _maker(index: GraphIndex, tensor: str) -> str:
    """The node whose output times a positive factor is the activation times it."""
    node = index.producer[tensor]
    passes_on = node.op_type in HOMOGENEOUS and index.only_consumer(node.input[0]) is node
    before = index.producer.get(node.input[0]) if passes_on else None
    return node.name if before is None else before.name


def _read_by_layers_alone(index: GraphIndex, tensor: str, layers: Sequence[Layer]) -> bool:
    """Whether a node makes it, and nothing else would still need it on a grid of its own."""
    return (
        tensor in index.producer
        and tensor not in index.outputs
        and {node.name for node in index.consumers(tensor)} == {layer.name for layer in layers}
    )


def _takes_factors(index: GraphIndex, layer: Layer) -> bool:
    """Whether a layer is alone with its weight, and its channels lie where `Candidate.axis` says."""
    transposed = attributes(index.nodes[layer.name]).get("transA", 0)
    return alone(index, layer) and not transposed and (layer.op == "Conv" or len(layer.shape) == 2)


def _exponents(candidate: Candidate, weights: Mapping[str, Float32], r: Float64) -> Float64:
    w = np.max([input_ranges(layer, weights[layer.name]) for layer in candidate.readers], axis=0)
    depthwise = all(layer.groups == len(r) for layer in candidate.readers)
    seen = np.maximum(r, r.max() * 2.0**SMALLEST)
    s = seen if depthwise else np.sqrt(seen / np.maximum(w, w.max() * 2.0**SMALLEST))
    return np.maximum(np.rint(np.log2(s / s.max())), SMALLEST)


def _noise(candidate: Candidate, weights: Mapping[str, Float32], r: Float64, k: Float64) -> float:
    """How far off a grid on x 2^-k leaves the readers' outputs."""
    rows = np.concatenate([by_input(layer, weights[layer.name]) for layer in candidate.readers], axis=1)
    power = np.square(rows, dtype=np.float64).sum(axis=1)
    step = np.exp2(k) * (r / np.exp2(k)).max() / LEVELS
    return float(np.sqrt(np.sum(power * np.square(np.minimum(step, 2 * r)))))
