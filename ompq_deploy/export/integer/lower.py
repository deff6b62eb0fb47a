"""Lower a quantized graph to an integer program.

Three walks: every tensor on a grid becomes one integer operation with the group that computes it; the value-moving
nodes those operations read become moves; from the graph outputs back, float nodes up to the integers form the tail.
A float node anywhere else, or a node without an integer form, is collected, and all are refused together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ompq_deploy.artifacts import Grid, QuantizedGraph
from ompq_deploy.errors import BadInput
from ompq_deploy.export.integer.constants import constant_grids, lower_constant
from ompq_deploy.export.integer.coverage import FLOAT_BETWEEN, NotCovered, Uncoveredness, refuse
from ompq_deploy.export.integer.elementwise import (
    lower_arithmetic,
    lower_batch_norm,
    lower_concat,
    lower_extreme,
    lower_prelu,
    lower_sum,
)
from ompq_deploy.export.integer.ending import end_integers
from ompq_deploy.export.integer.linear import lower_layer, with_added_tensor
from ompq_deploy.export.integer.matmul import lower_matmul
from ompq_deploy.export.integer.moves import lower_move, lower_pad, run_time_settings
from ompq_deploy.export.integer.normalize import lower_instance_norm, lower_layer_norm, lower_norm, lower_softmax
from ompq_deploy.export.integer.pools import lower_average_pool, lower_mean, lower_reduced_extreme
from ompq_deploy.export.integer.program import (
    ARITHMETICS,
    DYADIC,
    IntegerProgram,
    Operation,
    first_input,
    leaves_integers,
)
from ompq_deploy.export.integer.resize import lower_resize
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.export.integer.settings import lower_setting, needed_settings
from ompq_deploy.export.integer.table import lower_function
from ompq_deploy.graph.groups import Group, trace_group

NO_FORM = "no integer form"
LOWERERS: dict[str, Callable[[Scope, Group], Operation | tuple[Operation, ...]]] = {
    "Conv": lower_layer,
    "ConvTranspose": lower_layer,
    "Gemm": lower_layer,
    "MatMul": lower_matmul,
    "Add": lower_sum,
    "Relu": lower_sum,
    "Clip": lower_sum,
    "Sub": lower_arithmetic,
    "Mul": lower_arithmetic,
    "Div": lower_arithmetic,
    "BatchNormalization": lower_batch_norm,
    "PRelu": lower_prelu,
    "Concat": lower_concat,
    "Resize": lower_resize,
    "Pad": lower_pad,
    "AveragePool": lower_average_pool,
    "GlobalAveragePool": lower_mean,
    "ReduceMean": lower_mean,
    "ReduceSum": lower_mean,
    "ReduceMax": lower_reduced_extreme,
    "ReduceMin": lower_reduced_extreme,
    "ReduceL2": lower_norm,
    "Max": lower_extreme,
    "Min": lower_extreme,
    "InstanceNormalization": lower_instance_norm,
    "LayerNormalization": lower_layer_norm,
    "Softmax": lower_softmax,
}


def lower(quantized: QuantizedGraph, arithmetic: str = DYADIC) -> IntegerProgram:
    """The integer program of a quantized graph in one of ARITHMETICS.

    Raises BackendMissing with the complete list of uncovered nodes, BadInput for another arithmetic.
    """
    if arithmetic not in ARITHMETICS:
        raise BadInput(
            f"there is no arithmetic {arithmetic!r}", where="--arithmetic", fix=f"choose of {', '.join(ARITHMETICS)}"
        )
    scope = Scope.of(quantized, arithmetic)
    uncovered: Uncoveredness = {}
    groups = _groups(scope, uncovered)
    constants = constant_grids(scope, groups.values())
    scope = scope.with_grids(constants)
    moves = _needed_moves(scope, groups, uncovered)
    operations: list[Operation] = [lower_constant(scope, name) for name in constants]
    operations += _lower_groups_and_moves(scope, groups, moves, uncovered)
    ending = end_integers(scope, moves, uncovered)
    if uncovered:
        raise refuse(uncovered.values(), quantized.graph.model)
    return IntegerProgram(
        graph=quantized.graph,
        arithmetic=arithmetic,
        inputs=tuple(name for name in quantized.graph.input_names if name in scope.grids),
        operations=(*operations, *ending.operations),
        grids=_all_grids(scope, moves, (*operations, *ending.operations)),
        dequantized=ending.dequantized,
        tail=ending.tail,
    )


def _all_grids(scope: Scope, moves: list[str], operations: Iterable[Operation]) -> dict[str, Grid]:
    """The grid of every integer tensor; what operations leave for others of their group lies on their input's."""
    grids = {name: scope.grid(name) for name in (*scope.grids, *moves)}
    for operation in operations:
        if operation.output not in grids and leaves_integers(operation):
            grids[operation.output] = grids[first_input(operation)]
    return grids


def _groups(scope: Scope, uncovered: Uncoveredness) -> dict[str, Group]:
    """The group of every grid tensor that is computed, by the tensor's name."""
    groups: dict[str, Group] = {}
    for name in scope.grids:
        if name not in scope.index.producer:
            continue
        try:
            group = trace_group(scope.index, name, scope.layer_nodes, scope.grids)
            _check_form(scope, group)
            groups[name] = with_added_tensor(scope, group)
        except NotCovered as refusal:
            uncovered[refusal.uncovered.name] = refusal.uncovered
    return groups


def _check_form(scope: Scope, group: Group) -> None:
    head, lowerer = group.head, LOWERERS.get(group.head.op_type)
    if group.function:
        return
    if lowerer is None or head.domain or (lowerer is lower_layer and head.name not in scope.layers):
        raise NotCovered(head, NO_FORM)


def _needed_moves(scope: Scope, groups: dict[str, Group], uncovered: Uncoveredness) -> list[str]:
    """The tensors between integer operations that only move values, with all that a Split among them makes.

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
            moves += [output for output in node.output if output not in scope.grids and _is_read(scope, output)]
            visited.update(node.output)
            wanted.append(node.input[0])
        else:
            uncovered.setdefault(node.name, NotCovered(node, FLOAT_BETWEEN).uncovered)
            wanted += scope.index.activation_inputs(node)
    return moves


def _is_read(scope: Scope, tensor: str) -> bool:
    return bool(scope.index.consumers(tensor)) or tensor in scope.index.outputs


def _lower_groups_and_moves(
    scope: Scope, groups: dict[str, Group], moves: list[str], uncovered: Uncoveredness
) -> list[Operation]:
    """Integer operations in execution order; what reads an uncovered float tensor is left out."""
    operations: list[Operation] = []
    settings = _settings(scope, moves, uncovered)
    for node in scope.index.graph.node:
        for output in node.output:
            try:
                if output in settings:
                    operations.append(lower_setting(scope, node, {*scope.grids, *moves}))
                elif output in moves:
                    operations += lower_move(scope, node, output)
                elif output in groups and all(scope.on_grid(name) for name in groups[output].reads):
                    operations += _lower_group(scope, groups[output])
            except NotCovered as refusal:
                uncovered[refusal.uncovered.name] = refusal.uncovered
    return operations


def _settings(scope: Scope, moves: list[str], uncovered: Uncoveredness) -> set[str]:
    """The whole numbers computed at run time that moves read."""
    names: list[str] = []
    for output in moves:
        try:
            names += run_time_settings(scope, scope.index.producer[output])
        except NotCovered as refusal:
            uncovered[refusal.uncovered.name] = refusal.uncovered
    return needed_settings(scope, names)


def _lower_group(scope: Scope, group: Group) -> tuple[Operation, ...]:
    try:
        lowered = lower_function(scope, group) if group.function else LOWERERS[group.head.op_type](scope, group)
    except OverflowError as e:
        raise NotCovered(group.head, str(e)) from e
    return lowered if isinstance(lowered, tuple) else (lowered,)
