"""List the quantizable layers of a canonical graph: Conv, ConvTranspose, Gemm and MatMul with constant weights."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx

from ompq_deploy.artifacts import Layer
from ompq_deploy.graph.index import GraphIndex, attributes

LAYER_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ACTIVATION_OPS = frozenset(
    ("Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu", "Softplus",
     "Gelu", "Mish", "Swish", "ThresholdedRelu", "Celu")
)  # fmt: skip


def find_layers(index: GraphIndex) -> tuple[Layer, ...]:
    """Layers in topological order of their first node; nodes that share a weight, which all read it in the same way
    (`passes/own_weights.py`), form one layer."""
    by_weight: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in index.graph.node:
        if is_layer(index, node):
            by_weight[node.input[1]].append(node)
    return tuple(_layer(index, nodes) for nodes in by_weight.values())


def is_layer(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a node is a layer: a known operator, activation on input 0, constant float weight on input 1."""
    if node.op_type not in LAYER_OPS or node.domain or index.is_constant(node.input[0]):
        return False
    weight = index.initializers.get(node.input[1])
    if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
        return False
    if node.op_type == "MatMul":
        return len(weight.dims) == 2
    if node.op_type == "Gemm":
        settings = attributes(node)
        plain = settings.get("alpha", 1.0) == 1.0 and settings.get("beta", 1.0) == 1.0 and not settings.get("transA", 0)
        return plain and all(index.is_constant(name) for name in node.input[2:])
    return all(index.is_constant(name) for name in node.input[2:] if name)


def weight_use(node: onnx.NodeProto) -> tuple[str, int, int]:
    """How a layer's node reads its weight: operator, axis of the output channels, groups."""
    settings = attributes(node)
    axes = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 0 if settings.get("transB", 0) else 1}
    return node.op_type, axes[node.op_type], settings.get("group", 1)


def layer_output(index: GraphIndex, node: onnx.NodeProto) -> str:
    """The tensor the paper calls the layer's output: after the bias and the activation that follow alone."""
    tensor = node.output[0]
    reader = index.only_consumer(tensor)
    if reader is not None and reader.op_type == "Add" and len(index.activation_inputs(reader)) == 1:
        tensor = reader.output[0]
    reader = index.only_consumer(tensor)
    if reader is not None and reader.op_type in ACTIVATION_OPS and index.activation_inputs(reader) == [tensor]:
        return reader.output[0]
    return _swish_output(index, tensor) or tensor


def _swish_output(index: GraphIndex, tensor: str) -> str:
    """The product of x * gate(x), as exporters write SiLU and HardSwish, or "" where that is not the pattern."""
    readers = index.consumers(tensor)
    gates = [node for node in readers if node.op_type in ("Sigmoid", "HardSigmoid")]
    products = [node for node in readers if node.op_type == "Mul"]
    if len(readers) != 2 or len(gates) != 1 or len(products) != 1 or tensor in index.outputs:
        return ""
    return products[0].output[0] if set(products[0].input) == {tensor, gates[0].output[0]} else ""


def _layer(index: GraphIndex, nodes: list[onnx.NodeProto]) -> Layer:
    first = nodes[0]
    op, channel_axis, groups = weight_use(first)
    shape = tuple(index.initializers[first.input[1]].dims)
    return Layer(
        name=first.name,
        op=op,
        nodes=tuple(node.name for node in nodes),
        weight=first.input[1],
        shape=shape,
        channel_axis=channel_axis,
        groups=groups,
        inputs=tuple(node.input[0] for node in nodes),
        output=layer_output(index, first),
        macs=sum(_macs(index, node, shape) for node in nodes),
    )


def _macs(index: GraphIndex, node: onnx.NodeProto, weight_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates per sample; 0 where shape inference could not tell the sizes."""
    carrier = node.input[0] if node.op_type == "ConvTranspose" else node.output[0]
    positions = index.shapes.get(carrier, (None, None))[1:]
    if any(size is None for size in positions):
        return 0
    known = [size for size in positions if size is not None]
    if node.op_type in ("Conv", "ConvTranspose"):
        return int(np.prod(known)) * int(np.prod(weight_shape[1:]))
    return int(np.prod(known[:-1], dtype=np.int64)) * int(np.prod(weight_shape))
