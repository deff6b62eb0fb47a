"""Write the Q/DQ model for onnxruntime: opset 21, weights stored at their planned width.

Every tensor T of `graph.activations` becomes

    T -> QuantizeLinear -> T_quantized (uint8, zero-point 128) -> DequantizeLinear -> T_dequantized -> readers

An int8 activation with zero-point 0 is stored as uint8 with zero-point 128: the same integers, for which
onnxruntime has much faster kernels. Weights and int32 biases go through DequantizeLinear per channel; a bias
grid is the product of the input's and the weight's scales, computed in the graph to save file bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ompq_deploy.artifacts import Layer, PreparedGraph, QuantizedGraph, QuantizedLayer
from ompq_deploy.export import storage
from ompq_deploy.graph_index import GraphIndex
from ompq_deploy.placement import layer_grid

ZERO_POINT = "zero_point_128"
PRODUCER = "ompq-deploy"


def qdq_model(quantized: QuantizedGraph) -> onnx.ModelProto:
    """The Q/DQ model of a quantized graph; names of inputs, outputs and nodes are those of the float model."""
    graph = quantized.graph
    index = GraphIndex(graph.model)
    by_node = {node: layer for layer in quantized.layers for node in layer.layer.nodes}
    writer = _Writer()
    writer.initializers.append(numpy_helper.from_array(np.array(128, np.uint8), ZERO_POINT))

    for layer in quantized.layers:
        _store_weight(writer, layer)
    for name in graph.input_names:
        _put_on_grid(writer, name, quantized.activation_scales)
    for node in graph.model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for position, name in enumerate(node.input):
            if name in quantized.activation_scales:
                copy.input[position] = f"{name}_dequantized"
        if node.name in by_node:
            layer = by_node[node.name]
            copy.input[1] = f"{layer.layer.weight}_dequantized"
            grid = layer_grid(index, quantized.activation_scales, node.input[0])
            _attach_bias(writer, copy, layer, grid, quantized.activation_scales)
        else:
            writer.nodes.append(copy)
        for name in node.output:
            _put_on_grid(writer, name, quantized.activation_scales)

    used = {name for node in writer.nodes for name in node.input}
    stored = {tensor.name for tensor in writer.initializers}
    kept = [t for t in graph.model.graph.initializer if t.name in used and t.name not in stored]
    result = helper.make_graph(
        writer.nodes, "ompq", graph.model.graph.input, graph.model.graph.output, [*kept, *writer.initializers]
    )
    widths = sorted({layer.bits for layer in quantized.layers if storage.needs_function(layer.bits)})
    functions = [helper.make_opsetid(storage.FUNCTION_DOMAIN, 1)] if widths else []
    return helper.make_model(
        result,
        opset_imports=[*graph.model.opset_import, *functions],
        functions=[storage.unpack_function(bits) for bits in widths],
        producer_name=PRODUCER,
        ir_version=graph.model.ir_version,
    )


def layer_bytes(layers: Sequence[Layer], bits: Sequence[int]) -> np.ndarray:
    """Bytes the codes of each layer add to the file at each width, int64 (L, B)."""
    return np.array(
        [[storage.stored_bytes(layer.shape, width, layer.weight) for width in bits] for layer in layers], np.int64
    )


def fixed_bytes(smallest: onnx.ModelProto, graph: PreparedGraph, bits: Sequence[int], allowed: Sequence[int]) -> int:
    """Bytes of a Q/DQ file that do not depend on the plan.

    `smallest` is the model written with the widths `bits`, one per layer; `allowed` are the widths a plan may
    use: the unpacking functions of all of them are counted, since any plan may need them.
    """
    codes = sum(
        storage.stored_bytes(layer.shape, width, layer.weight) for layer, width in zip(graph.layers, bits, strict=True)
    )
    present = set(bits)
    absent = [width for width in allowed if storage.needs_function(width) and width not in present]
    functions = sum(storage.framed_bytes(storage.unpack_function(width)) for width in absent)
    domain = FUNCTION_IMPORT_BYTES if absent and not any(map(storage.needs_function, present)) else 0
    return int(smallest.ByteSize()) - codes + functions + domain + FRAMING_SLACK


FUNCTION_IMPORT_BYTES = 16
FRAMING_SLACK = 8
"""The graph's own length prefix can grow by a few bytes with its content."""


class _Writer:
    """Collects what the new graph consists of, in order."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []


def _put_on_grid(writer: _Writer, name: str, scales: Mapping[str, float]) -> None:
    if name not in scales:
        return
    scale = f"{name}_scale"
    writer.initializers.append(numpy_helper.from_array(np.array(scales[name], np.float32), scale))
    writer.nodes.append(helper.make_node("QuantizeLinear", [name, scale, ZERO_POINT], [f"{name}_quantized"]))
    writer.nodes.append(
        helper.make_node("DequantizeLinear", [f"{name}_quantized", scale, ZERO_POINT], [f"{name}_dequantized"])
    )


def _store_weight(writer: _Writer, layer: QuantizedLayer) -> None:
    weight = layer.layer.weight
    initializers, nodes, codes = storage.store_codes(layer.codes, layer.bits, weight)
    writer.initializers += [*initializers, numpy_helper.from_array(layer.scale, f"{weight}_scale")]
    dequantize = helper.make_node(
        "DequantizeLinear", [codes, f"{weight}_scale"], [f"{weight}_dequantized"], axis=layer.layer.channel_axis
    )
    writer.nodes += [*nodes, dequantize]


def _attach_bias(
    writer: _Writer, node: onnx.NodeProto, layer: QuantizedLayer, grid: str, scales: Mapping[str, float]
) -> None:
    """Append the layer's node with its bias as int32 codes; MatMul has no bias input and gets an Add."""
    bias = layer.biases.get(node.name)
    if bias is None:
        writer.nodes.append(node)
        return
    if node.op_type == "MatMul":
        output = node.output[0]
        node.output[0] = f"{output}_unbiased"
        writer.initializers.append(numpy_helper.from_array(bias, f"{node.name}_bias"))
        writer.nodes += [node, helper.make_node("Add", [node.output[0], f"{node.name}_bias"], [output])]
        return
    name = f"{node.name}_bias"
    del node.input[2:]
    node.input.append(f"{name}_dequantized")
    writer.initializers.append(numpy_helper.from_array(layer.bias_codes(node.name, scales[grid]), name))
    product = helper.make_node("Mul", [f"{grid}_scale", f"{layer.layer.weight}_scale"], [f"{name}_scale"])
    if node.op_type == "ConvTranspose" and layer.layer.groups > 1:
        writer.initializers.append(numpy_helper.from_array(layer.bias_scale(scales[grid]), f"{name}_scale"))
    else:
        writer.nodes.append(product)
    dequantize = helper.make_node("DequantizeLinear", [name, f"{name}_scale"], [f"{name}_dequantized"], axis=0)
    writer.nodes += [dequantize, node]
