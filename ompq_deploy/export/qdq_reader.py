"""Read the integers of a Q/DQ model back: the inverse of `qdq_model`, so that files can be verified later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ompq_deploy.artifacts import BitPlan, Float64, Grid, Layer, PreparedGraph, QuantizedGraph, QuantizedLayer
from ompq_deploy.errors import BadInput
from ompq_deploy.export.qdq_names import QdqNames
from ompq_deploy.export.storage import needs_function, stored_form
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import layer_grid
from ompq_deploy.numerics import unpack_bits


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
    grids = {
        name: Grid(scale=float(value(names.scale(name))), zero_point=int(value(names.zero_point(name))))
        for name in graph.activations
    }
    bits = plan.bits()
    layers = []
    for layer in graph.layers:
        width = bits[layer.name]
        raw = value(names.tensor(layer.weight))
        _check_stored(layer, width, stored[names.tensor(layer.weight)])
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
                biases[node] = _real_bias(value(names.bias(node)), unbiased.bias_scale(grids[grid].scale))
        layers.append(replace(unbiased, biases=biases))
    return QuantizedGraph(graph=graph, layers=tuple(layers), grids=grids)


def as_stored(quantized: QuantizedGraph, model: onnx.ModelProto, plan: BitPlan) -> QuantizedGraph:
    """The same with the layers as `model`, its Q/DQ file, holds them: their biases are whole steps of a grid there."""
    return replace(quantized, layers=read_qdq(model, quantized.graph, plan).layers)


def _check_stored(layer: Layer, bits: int, tensor: onnx.TensorProto) -> None:
    """Raise BadInput where a weight is not stored as the plan's width and the model's shape ask for."""
    expected = stored_form(layer.shape, bits, tensor.name)
    if (tensor.data_type, list(tensor.dims)) != (expected.data_type, list(expected.dims)):
        raise BadInput(
            f"the weight of {layer.name!r} is not stored as {bits}-bit codes of shape {layer.shape}",
            where="model.qdq.onnx",
            fix="give the plan.json and the float model that the file was made from",
        )


def _real_bias(stored: NDArray, scale: NDArray[np.float32]) -> Float64 | NDArray[np.float32]:
    """A bias: int32 codes times their scale in float64, which tells them all, or what the Add behind a MatMul holds."""
    return stored * scale.astype(np.float64) if stored.dtype == np.int32 else stored
