"""Which nodes one integer operation computes: the placement's groups, read back from their last tensor.

layer [+ constant Add] [+ Add of another integer tensor] [+ Relu or Clip]
Add of integer tensors or a constant [+ Relu or Clip]
any other node by itself
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass

import onnx

from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.graph_index import GraphIndex, constant_bound
from ompq_deploy.placement import CLAMPS, residual_operand


@dataclass(frozen=True, kw_only=True)
class Group:
    """One integer operation in the making; it computes `output`.

    `head` is the layer, the Add, or the single node. `inputs` are the integer tensors it reads, `skip` the one a
    layer adds ("" for none), `constant` the initializer it adds ("" for none), [`low`, `high`] the real clamp.
    """

    head: onnx.NodeProto
    inputs: tuple[str, ...]
    skip: str
    constant: str
    low: float
    high: float
    output: str

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.inputs, self.skip) if self.skip else self.inputs


def trace_group(index: GraphIndex, output: str, layer_nodes: set[str], grids: Container[str]) -> Group:
    """The group that ends in `output`; `grids` are the tensors that have an integer grid of their own."""
    low, high, skip, constant = -math.inf, math.inf, "", ""
    node = index.producer[output]
    if node.op_type in CLAMPS:
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
    if node.op_type in ("Add", "Concat"):
        return tuple(name for name in node.input if not index.is_constant(name))
    return tuple(node.input[:1])


def _clamp(index: GraphIndex, node: onnx.NodeProto) -> tuple[float, float]:
    if node.op_type == "Relu":
        return 0.0, math.inf
    if not all(index.is_constant(name) for name in node.input[1:] if name):
        raise NotCovered(node, "its bounds are not constants")
    return constant_bound(index, node, 1, -math.inf), constant_bound(index, node, 2, math.inf)
