"""Lower the operators that only rearrange values; input and output share one grid. And Pad with another value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float64
from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.export.integer.elementwise import rescaled
from ompq_deploy.export.integer.geometry import window_of
from ompq_deploy.export.integer.program import PAD_VALUE_POSITION, IntegerMaxPool, IntegerMove, Operation
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph.groups import Group
from ompq_deploy.graph.index import attributes

Setting = NDArray[Any] | str | None
PLAIN_MOVES = frozenset(
    ("Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze")
)


def lower_move(scope: Scope, node: onnx.NodeProto, output: str) -> tuple[IntegerMove | IntegerMaxPool, ...]:
    """The integer form of a value-moving node, as far as `output` is concerned."""
    if node.op_type in LOWERERS:
        return LOWERERS[node.op_type](scope, node, output)
    if node.op_type not in PLAIN_MOVES:
        raise NotCovered(node, "no integer form")
    settings = tuple(_setting(scope, node, position) for position in range(1, len(node.input)))
    return (move(node, node.op_type, node.input[0], output, settings, **attributes(node)),)


def run_time_settings(scope: Scope, node: onnx.NodeProto) -> list[str]:
    """The settings of a move that are neither constant nor known from its result's shape."""
    if node.op_type not in PLAIN_MOVES:
        return []
    settings = [_setting(scope, node, position) for position in range(1, len(node.input))]
    return [setting for setting in settings if isinstance(setting, str)]


def move(
    node: onnx.NodeProto, op: str, source: str, output: str, settings: tuple[Setting, ...], **attributes: Any
) -> IntegerMove:
    """One ONNX operator on integers, on behalf of `node`."""
    return IntegerMove(name=node.name, op=op, input=source, output=output, attributes=attributes, constants=settings)


def _setting(scope: Scope, node: onnx.NodeProto, position: int) -> Setting:
    name = node.input[position]
    if not name or (node.op_type == "Pad" and position == PAD_VALUE_POSITION):
        return None
    if scope.index.is_constant(name):
        value = scope.index.constant(name)
        if node.op_type == "Pad" and position == 1 and (value < 0).any():
            raise NotCovered(node, "it crops with negative pads")
        return value
    shape = scope.index.shapes.get(node.output[0], (None, None))
    if node.op_type == "Reshape" and sum(size is None for size in shape) <= 1:
        return np.array([-1 if size is None else size for size in shape], np.int64)
    return name


def lower_pad(scope: Scope, group: Group) -> tuple[Operation, ...]:
    """Pad with a constant other than zero: with zeros, and the constant added there on the output's grid."""
    node = group.head
    if not all(scope.index.is_constant(name) for name in node.input[1:] if name):
        raise NotCovered(node, "its pads or its value are computed")
    settings = tuple(_setting(scope, node, position) for position in range(1, len(node.input)))
    padded = f"{group.output}_padded"
    return (
        move(node, "Pad", node.input[0], padded, settings, **attributes(node)),
        rescaled(scope, node.name, padded, scope.grid(node.input[0]), group.output, _frame(scope, node)),
    )


def _frame(scope: Scope, node: onnx.NodeProto) -> Float64:
    """What a Pad with a constant adds to a Pad with zeros; axes that it does not pad have length 1."""
    pads, value, *rest = (scope.index.constant(name) for name in node.input[1:] if name)
    rank = len(scope.shape(node))
    axes = rest[0] % rank if rest else range(rank)
    ends = zip(axes, *pads.reshape(2, -1).tolist(), strict=True)
    widths = {axis: (before, after) for axis, before, after in ends if before or after}
    lengths = dict(zip(widths, scope.sizes(node, list(widths)), strict=True))
    inside = np.zeros([lengths.get(axis, 1) for axis in range(rank)])
    return np.pad(inside, [widths.get(axis, (0, 0)) for axis in range(rank)], constant_values=float(value.item()))


def _split(scope: Scope, node: onnx.NodeProto, output: str) -> tuple[IntegerMove, ...]:
    """One output of Split is a Slice."""
    settings = attributes(node)
    rank = len(scope.shape(node))
    axis = settings.get("axis", 0) % rank
    if len(node.input) > 1 and node.input[1]:
        if not scope.index.is_constant(node.input[1]):
            raise NotCovered(node, "its parts are computed at run time")
        sizes = scope.index.constant(node.input[1])
    else:
        (length,) = scope.sizes(node, (axis,))
        part = -(-length // len(node.output))
        sizes = np.full(len(node.output), part)
    place = list(node.output).index(output)
    bounds = int(sizes[:place].sum()), int(sizes[: place + 1].sum()), axis
    return (move(node, "Slice", node.input[0], output, tuple(np.array([value], np.int64) for value in bounds)),)


def _depth_to_space(scope: Scope, node: onnx.NodeProto, output: str) -> tuple[IntegerMove, ...]:
    settings = attributes(node)
    block = settings["blocksize"]
    channels, height, width = scope.sizes(node, (1, 2, 3))
    depth = channels // block**2
    if settings.get("mode", "DCR") == "DCR":
        apart, order = (-1, block, block, depth, height, width), (0, 3, 4, 1, 5, 2)
    else:
        apart, order = (-1, depth, block, block, height, width), (0, 1, 4, 2, 5, 3)
    return _regroup(node, output, apart, order, (-1, depth, height * block, width * block))


def _space_to_depth(scope: Scope, node: onnx.NodeProto, output: str) -> tuple[IntegerMove, ...]:
    block = attributes(node)["blocksize"]
    channels, height, width = scope.sizes(node, (1, 2, 3))
    apart = (-1, channels, height // block, block, width // block, block)
    joined = (-1, channels * block**2, height // block, width // block)
    return _regroup(node, output, apart, (0, 3, 5, 1, 2, 4), joined)


def _regroup(
    node: onnx.NodeProto, output: str, apart: tuple[int, ...], order: tuple[int, ...], joined: tuple[int, ...]
) -> tuple[IntegerMove, ...]:
    """Reshape, Transpose, Reshape."""
    first, second = f"{output}_apart", f"{output}_ordered"
    return (
        move(node, "Reshape", node.input[0], first, (np.array(apart, np.int64),)),
        move(node, "Transpose", first, second, (), perm=list(order)),
        move(node, "Reshape", second, output, (np.array(joined, np.int64),)),
    )


def _global_max_pool(scope: Scope, node: onnx.NodeProto, output: str) -> tuple[IntegerMove, ...]:
    rank = len(scope.shape(node))
    axes = np.arange(2, rank, dtype=np.int64)
    return (move(node, "ReduceMax", node.input[0], output, (axes,), keepdims=1),)


def _max_pool(scope: Scope, node: onnx.NodeProto, output: str) -> tuple[IntegerMaxPool, ...]:
    if len(node.output) > 1 and node.output[1]:
        raise NotCovered(node, "its indices are used")
    window = window_of(scope.index, node, attributes(node)["kernel_shape"])
    return (IntegerMaxPool(name=node.name, input=node.input[0], output=output, window=window),)


LOWERERS: dict[str, Callable[[Scope, onnx.NodeProto, str], tuple[IntegerMove | IntegerMaxPool, ...]]] = {
    "DepthToSpace": _depth_to_space,
    "GlobalMaxPool": _global_max_pool,
    "MaxPool": _max_pool,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
}
