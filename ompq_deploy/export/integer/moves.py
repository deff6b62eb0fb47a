"""Lower the operators that only rearrange values; input and output share one grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.export.integer.geometry import window_of
from ompq_deploy.export.integer.program import IntegerMaxPool, IntegerMove
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph_index import attributes

MOVE_OPS = frozenset(("Flatten", "Reshape", "Transpose", "Pad", "Slice", "Squeeze", "Unsqueeze", "MaxPool"))
PAD_VALUE_POSITION = 2


def lower_move(scope: Scope, node: onnx.NodeProto) -> IntegerMove | IntegerMaxPool:
    """The integer form of a value-moving node; its settings must be constants."""
    if node.op_type not in MOVE_OPS:
        raise NotCovered(node, "no integer form")
    if node.op_type == "MaxPool":
        return _max_pool(scope, node)
    return IntegerMove(
        name=node.name,
        op=node.op_type,
        input=node.input[0],
        output=node.output[0],
        attributes=attributes(node),
        constants=tuple(_constant(scope, node, position) for position in range(1, len(node.input))),
    )


def _constant(scope: Scope, node: onnx.NodeProto, position: int) -> NDArray[Any] | None:
    name = node.input[position]
    if not name or (node.op_type == "Pad" and position == PAD_VALUE_POSITION):
        return None
    if scope.index.is_constant(name):
        value = scope.index.constant(name)
        if node.op_type == "Pad" and position == 1 and (value < 0).any():
            raise NotCovered(node, "it crops with negative pads")
        return value
    if node.op_type == "Reshape":
        return _inferred_shape(scope, node)
    raise NotCovered(node, f"its setting {name!r} is computed at run time")


def _inferred_shape(scope: Scope, node: onnx.NodeProto) -> NDArray[np.int64]:
    """The target of a Reshape that is computed, where all its sizes but one are known all the same."""
    shape = scope.index.shapes.get(node.output[0], (None, None))
    if sum(size is None for size in shape) > 1:
        raise NotCovered(node, "its shape is computed at run time")
    return np.array([-1 if size is None else size for size in shape], np.int64)


def _max_pool(scope: Scope, node: onnx.NodeProto) -> IntegerMaxPool:
    if len(node.output) > 1 and node.output[1]:
        raise NotCovered(node, "its indices are used")
    return IntegerMaxPool(
        name=node.name,
        input=node.input[0],
        output=node.output[0],
        window=window_of(scope.index, node, attributes(node)["kernel_shape"]),
    )
