"""Decide which tensors carry an integer grid, once for every exporter.

A group is what an integer kernel computes in one go:

    layer [+ constant Add] [+ Add of another integer tensor] [+ Relu or Clip]

Only a group's last tensor is put on a grid, so that Conv + Add + Relu can fuse. Going from the outputs to the
inputs, a tensor must be integer when a layer reads it, or when an operator with integer semantics reads it
whose own result must be integer. Of a tensor that others read too a mean does not ask that: in a squeeze-and-excite
block the product would be rounded after one of its factors was. Nor does the sum with a constant. Operators that only
move values hand the request to their input and share its grid, but where a layer reads what they took from a constant,
rows of a table say. Everything else stays in floating point.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

import onnx

from ompq_deploy.artifacts import Layer
from ompq_deploy.graph.index import GraphIndex, attributes

MOVES_VALUES = frozenset(
    ("MaxPool", "GlobalMaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Pad", "Split",
     "Gather", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Identity")
)  # fmt: skip
MEANS = frozenset(("GlobalAveragePool", "ReduceMean"))
RESCALES = frozenset(("Concat", "AveragePool", *MEANS))
CLAMPS = frozenset(("Relu", "Clip"))


def place_activations(index: GraphIndex, layers: Iterable[Layer]) -> tuple[str, ...]:
    """Names of the tensors to quantize, graph inputs first, then in topological order."""
    layer_nodes = {name for layer in layers for name in layer.nodes}
    wanted: set[str] = set()
    placed: set[str] = set()
    looked_up: set[str] = set()
    for node in reversed(index.graph.node):
        if node.name in layer_nodes:
            wanted.add(node.input[0])
            if index.is_constant(_moved_from(index, node.input[0])):
                looked_up.add(node.input[0])
        if not any(name in wanted for name in node.output):
            continue
        if moves_values(index, node) and looked_up.isdisjoint(node.output):
            wanted.add(node.input[0])
            continue
        placed.update(name for name in node.output if name in wanted)
        wanted.update(_operands(index, node, layer_nodes))
    order = [value.name for value in index.graph.input if value.name in wanted]
    order += [name for node in index.graph.node for name in node.output if name in placed]
    return tuple(order)


def grid_tensor(index: GraphIndex, activations: Container[str], tensor: str) -> str | None:
    """The tensor of `activations` whose grid `tensor` lies on, seen through value-moving operators, or None."""
    tensor = _moved_from(index, tensor, activations)
    return tensor if tensor in activations else None


def layer_grid(index: GraphIndex, activations: Container[str], tensor: str) -> str:
    """The grid of a layer's input, which `place_activations` has seen to that it has."""
    grid = grid_tensor(index, activations, tensor)
    assert grid is not None, f"layer input {tensor} lies on no grid"
    return grid


def _moved_from(index: GraphIndex, tensor: str, until: Container[str] = ()) -> str:
    """Where a tensor's values come from, seen through value-moving operators, or the first of `until` on the way."""
    node = index.producer.get(tensor)
    while tensor not in until and node is not None and moves_values(index, node):
        tensor = node.input[0]
        node = index.producer.get(tensor)
    return tensor


def moves_values(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether every output element equals an input element or zero, so that both share one grid."""
    if node.op_type not in MOVES_VALUES or node.domain:
        return False
    if node.op_type != "Pad":
        return True
    mode = next((a.s.decode() for a in node.attribute if a.name == "mode"), "constant")
    if mode != "constant" or len(node.input) < 3 or not node.input[2]:
        return True
    return index.is_constant(node.input[2]) and not index.constant(node.input[2]).any()


def residual_operand(index: GraphIndex, add: onnx.NodeProto, layer_nodes: set[str]) -> tuple[str, str] | None:
    """(accumulator, other) of an Add that fuses with the layer before it, or None.

    The accumulator is the operand a layer has just computed and nobody else reads. Where both are, the one
    computed last fuses and the other is put on a grid, as TensorRT does.
    """
    operands = index.activation_inputs(add)
    if len(operands) != 2:
        return None
    fresh = [
        name for name in operands if index.only_consumer(name) is not None and _is_accumulator(index, name, layer_nodes)
    ]
    if not fresh:
        return None
    accumulator = max(fresh, key=index.positions.__getitem__)
    other = operands[1] if operands[0] == accumulator else operands[0]
    return accumulator, other


def _is_accumulator(index: GraphIndex, tensor: str, layer_nodes: set[str]) -> bool:
    """Whether a tensor is a layer's output, or that plus a constant."""
    node = index.producer.get(tensor)
    if node is not None and node.op_type == "Add" and len(index.activation_inputs(node)) == 1:
        node = index.producer.get(index.activation_inputs(node)[0])
    return node is not None and node.name in layer_nodes


def _operands(index: GraphIndex, node: onnx.NodeProto, layer_nodes: set[str]) -> list[str]:
    """The tensors that must be integer so that `node`'s output, already wanted, is computed in integers."""
    if node.op_type in CLAMPS:
        source = node.input[0]
        producer = index.producer.get(source)
        if producer is not None and index.only_consumer(source) is node:
            if producer.op_type == "Add":
                return _operands(index, producer, layer_nodes)
            if producer.name in layer_nodes:
                return []
        return [source]
    if node.op_type == "Add":
        operands = index.activation_inputs(node)
        if len(operands) == 1:
            return []
        fused = residual_operand(index, node, layer_nodes)
        return [fused[1]] if fused else operands
    if node.op_type in MEANS and index.only_consumer(node.input[0]) is None:
        return []
    if node.op_type in RESCALES and not _averages_in_float(node):
        return index.activation_inputs(node)
    return []


def _averages_in_float(node: onnx.NodeProto) -> bool:
    """Whether it is an AveragePool that onnxruntime has no right integer pool for, should its input be on a grid: one
    with dilations, or with pads that count beside what hangs over in ceil mode."""
    settings = attributes(node)
    counted = settings.get("count_include_pad", 0) and settings.get("ceil_mode", 0)
    return node.op_type == "AveragePool" and bool("dilations" in settings or counted)
