"""Read the integers of a Q/DQ model back: the inverse of `qdq_model`, so that files can be verified later."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ompq_deploy.artifacts import BitPlan, Layer, PreparedGraph, QuantizedGraph, QuantizedLayer
from ompq_deploy.errors import BadInput
from ompq_deploy.export.storage import needs_function
from ompq_deploy.graph_index import GraphIndex
from ompq_deploy.numerics import unpack_bits
from ompq_deploy.placement import layer_grid


def read_qdq(model: onnx.ModelProto, graph: PreparedGraph, plan: BitPlan) -> QuantizedGraph:
    """The quantized graph whose Q/DQ model `model` is. Raises BadInput where a tensor of the plan is missing."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def value(name: str) -> NDArray:
        if name not in stored:
            raise BadInput(
                f"the Q/DQ model holds no tensor {name!r}", where="model.qdq.onnx", fix="run ompq-deploy again"
            )
        return numpy_helper.to_array(stored[name])

    index = GraphIndex(graph.model)
    scales = {name: float(value(f"{name}_scale")) for name in graph.activations}
    bits = plan.bits()
    layers = []
    for layer in graph.layers:
        width = bits[layer.name]
        raw = value(layer.weight)
        codes = unpack_bits(raw, width, layer.numel) if needs_function(width) else raw.astype(np.int8)
        quantized = QuantizedLayer(
            layer=layer, bits=width, codes=codes.reshape(layer.shape), scale=value(f"{layer.weight}_scale"), biases={}
        )
        biases = _biases(index, graph, layer, quantized, stored, scales)
        layers.append(
            QuantizedLayer(layer=layer, bits=width, codes=quantized.codes, scale=quantized.scale, biases=biases)
        )
    return QuantizedGraph(graph=graph, layers=tuple(layers), activation_scales=scales)


def _biases(
    index: GraphIndex,
    graph: PreparedGraph,
    layer: Layer,
    quantized: QuantizedLayer,
    stored: dict[str, onnx.TensorProto],
    scales: dict[str, float],
) -> dict[str, NDArray[np.float32]]:
    biases = {}
    for node, tensor in zip(layer.nodes, layer.inputs, strict=True):
        name = f"{node}_bias"
        if name not in stored:
            continue
        bias = numpy_helper.to_array(stored[name])
        if bias.dtype == np.int32:
            grid = layer_grid(index, graph.activations, tensor)
            bias = bias * quantized.bias_scale(scales[grid])
        biases[node] = bias.astype(np.float32)
    return biases
