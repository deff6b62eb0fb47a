"""Cross-layer equalization: give a channel the same weight range in the layer that makes it and the one that reads it.

    s_i = sqrt(r1_i r2_i) / r2_i        W1_i <- W1_i / s_i,  b1_i <- b1_i / s_i,  W2_i <- W2_i s_i

r1_i is the largest |weight| of output channel i of the first layer, r2_i that of input channel i of the second
(Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019, eq. 11), repeated
because a layer takes part in two pairs. What lies between must be positively homogeneous, f(s x) = s f(x): nothing,
Relu, LeakyRelu, or PRelu. A Clip such as ReLU6 is not, since its bound would have to change per channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ompq_deploy.artifacts import Float32, Layer, PreparedGraph
from ompq_deploy.graph.index import GraphIndex

HOMOGENEOUS = frozenset(("Relu", "LeakyRelu", "PRelu"))
ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class Equalized:
    """The rewritten graph, which computes what the old one did, and the pairs of layers it balanced."""

    graph: PreparedGraph
    pairs: tuple[tuple[str, str], ...]


def equalize(graph: PreparedGraph) -> Equalized:
    """Balance every pair of layers that allows it; `pairs` is empty where none does."""
    index = GraphIndex(graph.model)
    found = tuple(_pairs(index, graph.layers))
    if not found:
        return Equalized(graph=graph, pairs=())
    weights = graph.layer_weights()
    factors = {first.name: np.ones(first.channels) for first, _ in found}
    for _ in range(ROUNDS):
        for first, second in found:
            s = balance(output_ranges(first, weights[first.name]), input_ranges(second, weights[second.name]))
            weights[first.name] = scale_outputs(first, weights[first.name], 1 / s)
            weights[second.name] = scale_inputs(second, weights[second.name], s)
            factors[first.name] *= s
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    _write(model, index, found, weights, factors)
    return Equalized(graph=replace(graph, model=model), pairs=tuple((a.name, b.name) for a, b in found))


def balance(first: NDArray, second: NDArray) -> NDArray:
    """s for the ranges r1 and r2; 1 for a channel that is zero in either layer."""
    used = (first > 0) & (second > 0)
    return np.where(used, np.sqrt(np.where(used, first, 1) / np.where(used, second, 1)), 1.0)


def output_ranges(layer: Layer, weight: Float32) -> NDArray:
    """Largest |weight| of each output channel."""
    return np.abs(np.moveaxis(weight, layer.channel_axis, 0)).reshape(layer.channels, -1).max(axis=1)


def input_ranges(layer: Layer, weight: Float32) -> NDArray:
    """Largest |weight| of each input channel."""
    return np.abs(by_input(layer, weight)).max(axis=1)


def by_input(layer: Layer, weight: Float32) -> Float32:
    """The weight with a row for each input channel."""
    if layer.op == "Conv":
        per_group = weight.reshape(layer.groups, -1, *weight.shape[1:])
        return np.moveaxis(per_group, 2, 1).reshape(layer.groups * weight.shape[1], -1)
    return np.moveaxis(weight, layer.channel_axis, 1)


def scale_outputs(layer: Layer, weight: Float32, factor: NDArray) -> Float32:
    shape = [1] * weight.ndim
    shape[layer.channel_axis] = -1
    return (weight * factor.reshape(shape)).astype(np.float32)


def scale_inputs(layer: Layer, weight: Float32, factor: NDArray) -> Float32:
    if layer.op == "Conv":
        per_row = np.repeat(factor.reshape(layer.groups, -1), layer.shape[0] // layer.groups, axis=0)
        return (weight * per_row.reshape(weight.shape[:2] + (1,) * (weight.ndim - 2))).astype(np.float32)
    shape = (-1, 1) if layer.channel_axis == 1 else (1, -1)
    return (weight * factor.reshape(shape)).astype(np.float32)


def _pairs(index: GraphIndex, layers: tuple[Layer, ...]) -> Iterator[tuple[Layer, Layer]]:
    """Layers of one node each with channels on the same axis, the second alone reading what the first makes."""
    by_node = {layer.name: layer for layer in layers if alone(index, layer)}
    for layer in by_node.values():
        tensor = index.nodes[layer.name].output[0]
        reader = index.only_consumer(tensor)
        if reader is not None and reader.op_type in HOMOGENEOUS and reader.input[0] == tensor:
            reader = index.only_consumer(reader.output[0])
        second = by_node.get(reader.name) if reader is not None else None
        if second is not None and activation_axis(layer) == activation_axis(second):
            yield layer, second


def activation_axis(layer: Layer) -> int:
    """The axis of channels, from the end, of what a layer reads and makes."""
    return 1 - len(layer.shape) if layer.op in ("Conv", "ConvTranspose") else -1


def alone(index: GraphIndex, layer: Layer) -> bool:
    """Whether a layer is one node whose weight and bias nobody shares; ConvTranspose is left as it is."""
    constants = [name for name in index.nodes[layer.name].input[1:] if name]
    return (
        layer.op != "ConvTranspose" and len(layer.nodes) == 1 and all(len(index.consumers(c)) == 1 for c in constants)
    )


def _write(
    model: onnx.ModelProto,
    index: GraphIndex,
    pairs: tuple[tuple[Layer, Layer], ...],
    weights: dict[str, Float32],
    factors: dict[str, NDArray],
) -> None:
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer in {layer.name: layer for pair in pairs for layer in pair}.values():
        initializers[layer.weight].CopyFrom(numpy_helper.from_array(weights[layer.name], layer.weight))
    for name, factor in factors.items():
        node = index.nodes[name]
        if len(node.input) > 2 and node.input[2]:
            bias = (index.constant(node.input[2]) / factor).astype(np.float32)
            initializers[node.input[2]].CopyFrom(numpy_helper.from_array(bias, node.input[2]))
