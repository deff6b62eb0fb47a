"""Read the integers of a Q/DQ model back: the inverse of `qdq_model`, so that files can be verified later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ompq_deploy.artifacts import BitPlan, Grid, PreparedGraph, QuantizedGraph, QuantizedLayer
from ompq_deploy.errors import BadInput
from ompq_deploy.export.qdq_names import QdqNames
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

    index, names = GraphIndex(graph.model), QdqNames(graph)
    scales = {name: float(value(names.scale(name))) for name in graph.activations}
    bits = plan.bits()
    layers = []
    for layer in graph.layers:
        width = bits[layer.name]
        raw = value(names.tensor(layer.weight))
        codes = unpack_bits(raw, width, layer.numel) if needs_function(width) else raw.astype(np.int8)
        unbiased = QuantizedLayer(
            layer=layer,
            bits=width,
            codes=codes.reshape(layer.shape),
            scale=value(names.scale(layer.weight)),
            biases={},
        )
        biases = {}
        for node, tensor in zip(layer.nodes, layer.inputs, strict=True):
            if names.bias(node) in stored:
                grid = layer_grid(index, graph.activations, tensor)
                biases[node] = _real_bias(value(names.bias(node)), unbiased.bias_scale(scales[grid]))
        layers.append(replace(unbiased, biases=biases))
    return QuantizedGraph(graph=graph, layers=tuple(layers), grids={name: Grid(scale=s) for name, s in scales.items()})


def _real_bias(stored: NDArray, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """A bias as float32: int32 codes times their scale, or what the Add behind a MatMul holds."""
    return (stored * scale).astype(np.float32) if stored.dtype == np.int32 else stored
