"""Lower a quantized graph to an integer program.

Three walks: every tensor on a grid becomes one integer operation with the group that computes it; the value-moving
nodes those operations read become moves; from the graph outputs back, float nodes up to the integers form the tail.
A float node anywhere else, or a node without an integer form, is collected, and all are refused together.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from ompq_deploy.artifacts import QuantizedGraph
from ompq_deploy.export.integer.coverage import NotCovered, Uncoveredness, refuse
from ompq_deploy.export.integer.elementwise import lower_concat, lower_sum
from ompq_deploy.export.integer.ending import end_integers
from ompq_deploy.export.integer.groups import Group, trace_group
from ompq_deploy.export.integer.linear import lower_layer
from ompq_deploy.export.integer.moves import lower_move
from ompq_deploy.export.integer.pools import lower_average_pool, lower_mean
from ompq_deploy.export.integer.program import IntegerProgram, Operation
from ompq_deploy.export.integer.scope import Scope

NO_FORM = "no integer form"
FLOAT_BETWEEN = "floating point between integer layers"
LOWERERS: dict[str, Callable[[Scope, Group], Operation]] = {
    "Conv": lower_layer,
    "Gemm": lower_layer,
    "MatMul": lower_layer,
    "Add": lower_sum,
    "Relu": lower_sum,
    "Clip": lower_sum,
    "Concat": lower_concat,
    "AveragePool": lower_average_pool,
    "GlobalAveragePool": lower_mean,
    "ReduceMean": lower_mean,
}


def lower(quantized: QuantizedGraph) -> IntegerProgram:
    """The integer program of a quantized graph. Raises BackendMissing with the complete list of uncovered nodes."""
    scope = Scope.of(quantized)
    uncovered: Uncoveredness = {}
    groups = _groups(scope, uncovered)
    moves = _needed_moves(scope, groups, uncovered)
    operations = _lower_groups_and_moves(scope, groups, moves, uncovered)
    ending = end_integers(scope, moves, uncovered)
    if uncovered:
        raise refuse(uncovered.values())
    return IntegerProgram(
        graph=quantized.graph,
        inputs=tuple(name for name in quantized.graph.input_names if name in scope.grids),
        operations=(*operations, *ending.operations),
        scales={name: scope.scale(name) for name in (*scope.grids, *moves)},
        dequantized=ending.dequantized,
        tail=ending.tail,
    )


def _groups(scope: Scope, uncovered: Uncoveredness) -> dict[str, Group]:
    """The group of every grid tensor that is computed, by the tensor's name."""
    groups: dict[str, Group] = {}
    for name in scope.grids:
        if name not in scope.index.producer:
            continue
        try:
            group = trace_group(scope.index, name, scope.layer_nodes, scope.grids)
            _check_form(scope, group.head)
            groups[name] = group
        except NotCovered as refusal:
            uncovered[refusal.uncovered.name] = refusal.uncovered
    for node in scope.index.graph.node:
        if node.name in scope.layers and node.op_type not in LOWERERS:
            uncovered[node.name] = NotCovered(node, NO_FORM).uncovered
    return groups


def _check_form(scope: Scope, head: onnx.NodeProto) -> None:
    lowerer = LOWERERS.get(head.op_type)
    if lowerer is None or head.domain or (lowerer is lower_layer and head.name not in scope.layers):
        raise NotCovered(head, NO_FORM)


def _needed_moves(scope: Scope, groups: dict[str, Group], uncovered: Uncoveredness) -> list[str]:
    """The tensors between integer operations that only move values.

    On the way back from what integer operations read, every float node is uncovered.
    """
    moves: list[str] = []
    visited: set[str] = set()
    wanted = [name for group in groups.values() for name in (*group.inputs, group.skip)]
    wanted += [name for layer in scope.quantized.graph.layers for name in layer.inputs]
    wanted += [name for name in scope.grids if name not in groups]
    while wanted:
        name = wanted.pop()
        node = scope.index.producer.get(name)
        if node is None or name in visited or name in groups or node.name in scope.layers:
            continue
        visited.add(name)
        if scope.on_grid(name) and name not in scope.grids:
            moves.append(name)
            wanted.append(node.input[0])
        else:
            uncovered.setdefault(node.name, NotCovered(node, FLOAT_BETWEEN).uncovered)
            wanted += scope.index.activation_inputs(node)
    return moves


def _lower_groups_and_moves(
    scope: Scope, groups: dict[str, Group], moves: list[str], uncovered: Uncoveredness
) -> list[Operation]:
    """Integer operations in execution order; what reads an uncovered float tensor is left out."""
    operations: list[Operation] = []
    for node in scope.index.graph.node:
        for output in node.output:
            try:
                if output in moves:
                    operations.append(lower_move(scope, node))
                elif output in groups and all(scope.on_grid(name) for name in groups[output].reads):
                    group = groups[output]
                    operations.append(LOWERERS[group.head.op_type](scope, group))
            except NotCovered as refusal:
                uncovered[refusal.uncovered.name] = refusal.uncovered
    return operations
