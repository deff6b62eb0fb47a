"""Turn a float32 graph into one that computes in float16 between its inputs and outputs, which stay float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HALF_MAX = 65504.0
SMALLEST_HALF = 2.0**-24
FLOAT32_INPUTS = {"Resize": (1, 2), "Range": (0, 1, 2)}
"""Inputs that stay float32, by operator: the standard wants that type, or half would lose their meaning."""


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A new model: float initializers, casts and constant attributes in float16, a Cast at each input and output.

    Values beyond float16's range (masks such as -1e9) become its largest values; a scale below it, its smallest,
    since TensorRT refuses a scale of zero.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    kept = {node.input[i] for node in graph.node for i in FLOAT32_INPUTS.get(node.op_type, ()) if i < len(node.input)}
    scales = {node.input[1] for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept:
            tensor.CopyFrom(_half_tensor(tensor, SMALLEST_HALF if tensor.name in scales else -HALF_MAX))
    for node in graph.node:
        _convert_attributes(node)
    inputs = {v.name: f"{v.name}/half" for v in graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    outputs = {v.name: f"{v.name}/half" for v in graph.output if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    renamed = {**inputs, **outputs}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [outputs.get(name, name) for name in node.output]
    nodes = [
        *(_cast(name, new, TensorProto.FLOAT16) for name, new in inputs.items()),
        *graph.node,
        *(_cast(new, name, TensorProto.FLOAT) for name, new in outputs.items()),
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    onnx.checker.check_model(half, full_check=True)
    return half


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{source}/cast", to=to)


def _convert_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half_tensor(attribute.t))


def _half_tensor(tensor: TensorProto, least: float = -HALF_MAX) -> TensorProto:
    values = np.clip(numpy_helper.to_array(tensor), least, HALF_MAX)
    return numpy_helper.from_array(values.astype(np.float16), tensor.name)
