"""Where the integers end: from the graph outputs back to the integer tensors and accumulators they come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from ompq_deploy.export.integer.coverage import NotCovered, Uncoveredness
from ompq_deploy.export.integer.linear import (
    CONVOLUTIONS,
    Linear,
    accumulator_scale,
    is_per_channel,
    lower_accumulator,
)
from ompq_deploy.export.integer.program import Dequantize
from ompq_deploy.export.integer.scope import Scope


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The layers whose accumulators are dequantized, all dequantized tensors, and the float nodes after them."""

    operations: tuple[Linear, ...]
    dequantized: tuple[Dequantize, ...]
    tail: tuple[onnx.NodeProto, ...]


def end_integers(scope: Scope, moves: list[str], uncovered: Uncoveredness) -> Ending:
    """The ending of a program; nodes that cannot be in a tail are added to `uncovered`."""
    operations: list[Linear] = []
    dequantized: list[Dequantize] = []
    tail: set[str] = set()
    reached: set[str] = set()
    wanted = list(scope.quantized.graph.output_names)
    while wanted:
        name = wanted.pop()
        if name in reached or scope.index.is_constant(name):
            continue
        reached.add(name)
        node = scope.index.producer.get(name)
        if name in scope.grids or name in moves:
            scale = np.asarray(scope.grid(name).scale, np.float32)
            dequantized.append(Dequantize(tensor=name, from_accumulator=False, scale=scale, axis=0))
            continue
        if node is None:
            continue
        layer, constant = _final_layer(scope, node)
        if layer is None:
            tail.add(node.name)
            _check_tail(scope, node, uncovered)
            wanted += scope.index.activation_inputs(node)
        elif scope.on_grid(layer.input[0]):
            try:
                operations += lower_accumulator(scope, layer, constant, name)
            except NotCovered as refusal:
                uncovered[refusal.uncovered.name] = refusal.uncovered
            except OverflowError as e:
                uncovered[layer.name] = NotCovered(layer, str(e)).uncovered
            axis = 1 if layer.op_type in CONVOLUTIONS else -1
            scales = accumulator_scale(scope, layer)
            dequantized.append(Dequantize(tensor=name, from_accumulator=True, scale=scales, axis=axis))
    return Ending(
        operations=tuple(operations),
        dequantized=tuple(dequantized),
        tail=tuple(node for node in scope.index.graph.node if node.name in tail),
    )


def _final_layer(scope: Scope, node: onnx.NodeProto) -> tuple[onnx.NodeProto | None, str]:
    """The layer that computes a node's output, and the constant added to it; (None, "") where there is none."""
    if node.name in scope.layers:
        return node, ""
    operands = scope.index.activation_inputs(node)
    if node.op_type == "Add" and len(operands) == 1 and operands[0] not in scope.grids:
        layer = scope.index.producer.get(operands[0])
        constant = next(name for name in node.input if name != operands[0])
        if layer is not None and layer.name in scope.layers and is_per_channel(scope, layer, constant):
            return layer, constant
    return None, ""


def _check_tail(scope: Scope, node: onnx.NodeProto, uncovered: Uncoveredness) -> None:
    raw = [name for name in node.input if name in scope.quantized.graph.input_names and name not in scope.grids]
    if raw:
        uncovered[node.name] = NotCovered(node, f"it reads the unquantized input {raw[0]!r}").uncovered
    elif any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        uncovered[node.name] = NotCovered(node, "it holds a subgraph").uncovered
