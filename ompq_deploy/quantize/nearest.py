"""Round every layer's weights to nearest (`--effort quick`), and its biases for the error that leaves.

Q, s = quantize_weight(W)      b' = b - mean error of the output, from the capture's input means
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ompq_deploy.artifacts import BitPlan, Capture, Float32, Grid, Layer, PreparedGraph, QuantizedLayer
from ompq_deploy.graph.index import GraphIndex, attributes
from ompq_deploy.graph.placement import layer_grid
from ompq_deploy.numerics import along_axis
from ompq_deploy.quantize.bias_correction import mean_output_error, reads_channels_of
from ompq_deploy.quantize.biases import float_biases, least_scales
from ompq_deploy.weight_scale import quantize_weight, widen_for_bias


def rounded_to_nearest(
    graph: PreparedGraph, capture: Capture, plan: BitPlan, grids: Mapping[str, Grid], bias_correction: bool
) -> tuple[QuantizedLayer, ...]:
    """Every layer at the plan's widths, on scales of least weight error. `grids` are those of the activations; with
    `bias_correction` biases absorb the mean output error."""
    index = GraphIndex(graph.model)
    weights = graph.layer_weights()
    bits = plan.bits()
    layers = []
    for layer in graph.layers:
        weight, width = weights[layer.name], bits[layer.name]
        codes, scale = quantize_weight(weight, width, layer.channel_axis)
        biases = float_biases(index, layer)
        least = least_scales(index, layer, biases, grids)
        codes, scale = widen_for_bias(weight, codes, scale, least, width, layer.channel_axis)
        if bias_correction:
            error = codes * along_axis(scale, weight.ndim, layer.channel_axis) - weight
            biases = _corrected(index, graph, capture, layer, error, biases)
        layers.append(QuantizedLayer(layer=layer, bits=width, codes=codes, scale=scale, biases=biases))
    return tuple(layers)


def _corrected(
    index: GraphIndex,
    graph: PreparedGraph,
    capture: Capture,
    layer: Layer,
    error: np.ndarray,
    biases: dict[str, Float32],
) -> dict[str, Float32]:
    corrected = dict(biases)
    for name, tensor in zip(layer.nodes, layer.inputs, strict=True):
        root = layer_grid(index, graph.activations, tensor)
        means = capture.means.get(root)
        if means is None or means.size != _input_channels(layer):
            continue
        if not reads_channels_of(index, graph.layers, layer, tensor, root):
            continue
        strides = tuple(attributes(index.nodes[name]).get("strides", ()))
        shift = mean_output_error(layer, error, means, strides)
        corrected[name] = (biases.get(name, np.float32(0)) - shift).astype(np.float32)
    return corrected


def _input_channels(layer: Layer) -> int:
    if layer.op == "Conv":
        return layer.shape[1] * layer.groups
    return layer.shape[1 - layer.channel_axis] if layer.op in ("Gemm", "MatMul") else layer.shape[0]
