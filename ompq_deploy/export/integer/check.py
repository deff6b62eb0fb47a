"""Prove, from the types alone, that no floating-point tensor lies inside the integer part of a model.

Inside is everything a DequantizeLinear's data descends from. The only floats allowed there are the graph inputs, read
by QuantizeLinear, the scales of those QuantizeLinear nodes, and the constant scales of QLinearConv and QGemm, by which
the arithmetic `tensorrt` multiplies accumulators. After the last DequantizeLinear floats are free. A float that never
passed through integers, or a tensor whose type cannot be inferred, is an offender too.
"""

from __future__ import annotations

from collections.abc import Container, Mapping

import onnx
from onnx import TensorProto

from ompq_deploy.graph.index import GraphIndex

FLOATING = frozenset(
    number
    for name, number in TensorProto.DataType.items()
    if name.startswith(("FLOAT", "DOUBLE", "BFLOAT", "COMPLEX")) or name == "UNDEFINED"
)

SCALES = {"QLinearConv": (1, 4, 6), "QGemm": (1, 4, 7)}
"""The places of an operator's inputs that are scales: of x, of the weights and of y."""


def float_tensors_inside(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the offending tensors in graph order; empty where the model is integer-only."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    index = GraphIndex(inferred)
    types = {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    types |= {node.output[0]: _qgemm_type(node, types) for node in inferred.graph.node if node.op_type == "QGemm"}
    inside = _inside(index)
    unquantized = _unquantized(index, types)
    inputs = {value.name for value in inferred.graph.input}
    offenders: dict[str, None] = {}
    for node in inferred.graph.node:
        results = [name for name in node.output if name]
        if not inside.isdisjoint(results):
            operands = _operands(node, inputs, index)
            offenders |= dict.fromkeys(name for name in (*operands, *results) if _is_float(types, name))
        offenders |= dict.fromkeys(name for name in results if name in unquantized)
    return tuple(offenders)


def _operands(node: onnx.NodeProto, inputs: Container[str], index: GraphIndex) -> list[str]:
    """The inputs of a node that must not be floats."""
    if node.op_type == "QuantizeLinear" and node.input[0] in inputs:
        return list(node.input[2:])
    scales = SCALES.get(node.op_type, ())
    return [
        name
        for position, name in enumerate(node.input)
        if name and not (position in scales and index.is_constant(name))
    ]


def _qgemm_type(node: onnx.NodeProto, types: Mapping[str, int]) -> int:
    """What onnxruntime computes, whatever the model declares: floats, unless there is a zero-point of the output."""
    return types.get(node.input[8], TensorProto.UNDEFINED) if len(node.input) > 8 else TensorProto.FLOAT


def _is_float(types: dict[str, int], name: str) -> bool:
    return types.get(name, TensorProto.UNDEFINED) in FLOATING


def _inside(index: GraphIndex) -> set[str]:
    """Everything that the data of a DequantizeLinear descends from."""
    inside: set[str] = set()
    wanted = [node.input[0] for node in index.graph.node if node.op_type == "DequantizeLinear"]
    while wanted:
        name = wanted.pop()
        if name not in inside:
            inside.add(name)
            producer = index.producer.get(name)
            wanted += [] if producer is None else [source for source in producer.input if source]
    return inside


def _unquantized(index: GraphIndex, types: dict[str, int]) -> set[str]:
    """Float tensors computed from a float graph input along floats alone."""
    found: set[str] = set()
    raw = {value.name for value in index.graph.input if _is_float(types, value.name)}
    for node in index.graph.node:
        if any(name in raw for name in node.input):
            results = {name for name in node.output if name and _is_float(types, name)}
            raw |= results
            found |= results
    return found
