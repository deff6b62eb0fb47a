"""Which nodes one integer operation computes, read back from the tensor it leaves on a grid.

layer [+ constant Add] [+ Add of another integer tensor] [+ Relu or Clip]
Add of integer tensors or a constant [+ Relu or Clip]
a function of one integer tensor: element-wise nodes whose other operands are scalar constants
any other node by itself
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass

import onnx

from ompq_deploy.graph.index import GraphIndex, constant_bound
from ompq_deploy.graph.placement import CLAMPS, residual_operand
from ompq_deploy.graph.real_functions import ELEMENTWISE

ARITHMETIC = frozenset(("Add", "Div", "Mul", "Sub"))
"""All inputs are values; a constant one is folded into multipliers and offsets."""
JOINING = frozenset(("Concat", "MatMul", "Max", "Min"))
"""All inputs are values, constants included; elsewhere the inputs after the first are settings."""
FUSED_HEADS = frozenset(("Add", *CLAMPS))


@dataclass(frozen=True, kw_only=True)
class Group:
    """One integer operation in the making; it computes `output`.

    `head` is the layer, the Add, or the single node. `inputs` are the integer tensors it reads, `skip` the one a
    layer adds ("" for none), `constant` the initializer it adds ("" for none), [`low`, `high`] the real clamp.
    `function` are the nodes, in order, of a function of one integer tensor, else empty.
    """

    head: onnx.NodeProto
    inputs: tuple[str, ...]
    skip: str
    constant: str
    low: float
    high: float
    output: str
    function: tuple[onnx.NodeProto, ...] = ()

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.inputs, self.skip) if self.skip else self.inputs


def trace_group(index: GraphIndex, output: str, layer_nodes: set[str], grids: Container[str]) -> Group:
    """The group that ends in `output`; `grids` are the tensors that have an integer grid of their own."""
    fused = _trace_fused(index, output, layer_nodes, grids)
    if fused.head.name in layer_nodes:
        return fused
    function, source = trace_function(index, output, grids)
    if _covers(index, fused, function):
        return fused
    return Group(
        head=function[-1],
        inputs=(source,),
        skip="",
        constant="",
        low=-math.inf,
        high=math.inf,
        output=output,
        function=function,
    )


def trace_function(index: GraphIndex, output: str, grids: Container[str]) -> tuple[tuple[onnx.NodeProto, ...], str]:
    """The longest function of one tensor that ends in `output`: its nodes in order, and the tensor it reads.

    Nothing outside reads what is computed on the way. ((), "") where there is none.
    """
    taken: dict[str, onnx.NodeProto] = {}
    ends = {output}
    found: tuple[tuple[onnx.NodeProto, ...], str] = (), ""
    while True:
        latest = max(ends, key=lambda name: index.positions.get(name, -1))
        node = index.producer.get(latest)
        if node is None or not _is_function(index, node):
            return found
        if latest != output and (latest in grids or not _read_only_by(index, latest, taken)):
            return found
        taken[node.name] = node
        ends = (ends - {latest}) | set(index.activation_inputs(node))
        if len(ends) == 1:
            found = tuple(reversed(taken.values())), next(iter(ends))


def _covers(index: GraphIndex, fused: Group, function: tuple[onnx.NodeProto, ...]) -> bool:
    """Whether a function is no more than what a sum, a clamp or an affine operator computes anyway."""
    if len(function) == 1 and function[0].op_type in ("Mul", "Div", "Sub"):
        divided = function[0].op_type == "Div" and index.is_constant(function[0].input[0])
        return len(index.activation_inputs(function[0])) == 1 and not divided
    names = {node.name for node in function}
    return names <= (
        {fused.head.name, index.producer[fused.output].name} if fused.head.op_type in FUSED_HEADS else set()
    )


def _is_function(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a node is element-wise, reads a tensor, and all its constants are scalars."""
    constants = [name for name in node.input if name and index.is_constant(name)]
    return (
        node.op_type in ELEMENTWISE
        and not node.domain
        and bool(index.activation_inputs(node))
        and all(math.prod(index.initializers[name].dims) == 1 for name in constants)
    )


def _read_only_by(index: GraphIndex, tensor: str, readers: Container[str]) -> bool:
    return tensor not in index.outputs and all(node.name in readers for node in index.consumers(tensor))


def _trace_fused(index: GraphIndex, output: str, layer_nodes: set[str], grids: Container[str]) -> Group:
    """The group of a layer, a sum or a clamp, else the node by itself."""
    low, high, skip, constant = -math.inf, math.inf, "", ""
    node = index.producer[output]
    if is_clamp(index, node):
        low, high = _clamp(index, node)
        source = index.producer.get(node.input[0])
        fuses = source is not None and (source.op_type == "Add" or source.name in layer_nodes)
        if source is not None and fuses and node.input[0] not in grids:
            node = source
    if node.op_type == "Add":
        residual = residual_operand(index, node, layer_nodes)
        operands = index.activation_inputs(node)
        if residual and residual[0] not in grids:
            skip = residual[1]
            node = index.producer[residual[0]]
            operands = index.activation_inputs(node)
        if node.op_type == "Add" and len(operands) == 1:
            constant = next(name for name in node.input if name != operands[0])
            source = index.producer.get(operands[0])
            if source is not None and source.name in layer_nodes and operands[0] not in grids:
                node = source
    inputs = (node.input[0],) if node.name in layer_nodes else _operands(index, node)
    return Group(
        head=node,
        inputs=inputs,
        skip=skip,
        constant=constant,
        low=low,
        high=high,
        output=output,
    )


def _operands(index: GraphIndex, node: onnx.NodeProto) -> tuple[str, ...]:
    """The integer inputs of a node that is no layer: both of x + x, only the first where the rest are settings."""
    if node.op_type in ARITHMETIC:
        return tuple(index.activation_inputs(node))
    return tuple(node.input) if node.op_type in JOINING else tuple(node.input[:1])


def is_clamp(index: GraphIndex, node: onnx.NodeProto) -> bool:
    """Whether a node is a Relu, or a Clip between constants."""
    return node.op_type in CLAMPS and all(index.is_constant(name) for name in node.input[1:] if name)


def _clamp(index: GraphIndex, node: onnx.NodeProto) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, math.inf
    return constant_bound(index, node, 1, -math.inf), constant_bound(index, node, 2, math.inf)
