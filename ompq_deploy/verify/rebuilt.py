"""Check that a model file is what its integers make: written anew from them, it must come out the same.

An execution shows a wrong constant only where the samples reach it: not in a channel that they leave at zero, nor a
clamp that nothing meets. Here nodes and constants are compared as they stand, and the layer is named that the first
other one belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest

import onnx
from onnx import numpy_helper

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.export.integer.emit import accumulator, stored
from ompq_deploy.export.integer.program import IntegerProgram
from ompq_deploy.export.qdq_names import QdqNames
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.verify.verdict import Check

Owners = Mapping[str, str]
"""The layer, or other node of the float model, that makes each tensor of a file; an input by its own name."""


def check_rebuilt(file: str, found: onnx.ModelProto, expected: onnx.ModelProto, owners: Owners) -> Check:
    """Whether the model in `file`, which names the check, is the one expected."""
    node = _first_other(found, expected)
    if node is not None:
        layer = _owner(GraphIndex(expected), node, owners)
        detail = "first here its nodes or constants are not those that the integers of model.qdq.onnx make"
        return Check(name=file, passed=False, layer=layer, detail=detail)
    if _frame(found) != _frame(expected):
        return Check(name=file, passed=False, detail="it has other inputs, outputs, functions or operator sets")
    return Check(name=file, passed=True)


def qdq_owners(graph: PreparedGraph) -> Owners:
    """Of the tensors of a Q/DQ file."""
    names = QdqNames(graph)
    owners = {names.quantized(name): name for name in graph.input_names}
    for node in graph.model.graph.node:
        owners |= {form(name): node.name for name in node.output if name for form in (names.tensor, names.quantized)}
    return owners


def float_owners(graph: PreparedGraph) -> Owners:
    """Of the tensors of a file that keeps the names of the float model."""
    made = {name: node.name for node in graph.model.graph.node for name in node.output if name}
    return {name: name for name in graph.input_names} | made


def integer_owners(program: IntegerProgram) -> Owners:
    """Of the tensors of an integer-only file."""
    owners = {stored(name): name for name in program.inputs}
    for operation in program.operations:
        owners |= {form(operation.output): operation.name for form in (stored, accumulator)}
    tail = {name: node.name for node in program.tail for name in node.output if name}
    layers = {operation.output: operation.name for operation in program.operations}
    ends = {program.real_name(e.tensor): layers.get(e.tensor, e.tensor) for e in program.dequantized}
    return owners | ends | tail


def _first_other(found: onnx.ModelProto, expected: onnx.ModelProto) -> onnx.NodeProto | None:
    """The first node that differs, or reads a constant that does; of the expected model where it has one there."""
    ours, theirs = ({t.name: t for t in model.graph.initializer} for model in (found, expected))
    for left, right in zip_longest(found.graph.node, expected.graph.node):
        if left != right or any(not _equal(ours.get(name), theirs.get(name)) for name in right.input):
            return right if right is not None else left
    return None


def _equal(left: onnx.TensorProto | None, right: onnx.TensorProto | None) -> bool:
    """Whether two constants are the same bit for bit, or neither is there."""
    if left is None or right is None:
        return left is right
    if (left.data_type, left.dims) != (right.data_type, right.dims):
        return False
    return numpy_helper.to_array(left).tobytes() == numpy_helper.to_array(right).tobytes()


def _owner(index: GraphIndex, node: onnx.NodeProto, owners: Owners) -> str:
    """The layer whose tensor a node makes, or that reads first what it makes; "" where none does."""
    waiting = [node]
    while waiting:
        current = waiting.pop(0)
        for name in current.output:
            if name in owners:
                return owners[name]
            waiting += index.consumers(name)
    return ""


def _frame(model: onnx.ModelProto) -> tuple[bytes, ...]:
    """What surrounds nodes and constants."""
    parts = (*model.graph.input, *model.graph.output, *model.functions, *model.opset_import)
    return tuple(part.SerializeToString(deterministic=True) for part in parts)
