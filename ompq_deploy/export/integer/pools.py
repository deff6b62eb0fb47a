"""Lower AveragePool, GlobalAveragePool, ReduceMean and ReduceSum: a sum, and 1 / count inside the multiplier.

ratio = s_in / (s_out count);  under padding that is not counted, `count` differs by position.
"""

from __future__ import annotations

import math

import numpy as np

from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.export.integer.elementwise import rescaled
from ompq_deploy.export.integer.geometry import element_counts, explicit_pads, spatial_sizes, window_of
from ompq_deploy.export.integer.program import IntegerAveragePool, IntegerMean, IntegerMove, Operation
from ompq_deploy.export.integer.rescale import check_accumulator, requantize
from ompq_deploy.export.integer.rules import Int64, Window
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph.groups import Group
from ompq_deploy.graph.index import attributes


def lower_average_pool(scope: Scope, group: Group) -> IntegerAveragePool:
    """AveragePool with any pads, ceil mode and automatic padding."""
    node = group.head
    kernel = attributes(node)["kernel_shape"]
    window = window_of(scope.index, node, kernel)
    channels = scope.index.shapes.get(node.input[0], (None, None))[1]
    if channels is None:
        raise NotCovered(node, "the number of channels is not fixed")
    grid, out = scope.grid(node.input[0]), scope.grids[group.output]
    bound = grid.largest * math.prod(kernel)
    check_accumulator(node.name, bound, grid)
    ratio = grid.scale / (out.scale * _counts(scope, group, window))
    return IntegerAveragePool(
        name=node.name,
        input=node.input[0],
        output=group.output,
        channels=channels,
        window=window,
        requantize=requantize(node.name, ratio, bound, (out.low, out.high)),
    )


def lower_mean(scope: Scope, group: Group) -> IntegerMean:
    """GlobalAveragePool, or ReduceMean or ReduceSum over axes of fixed size."""
    node = group.head
    rank, settings = len(scope.shape(node)), attributes(node)
    axes = tuple(range(2, rank))
    if node.op_type != "GlobalAveragePool":
        axes = reduced_axes(scope, group, rank)
    count = math.prod(scope.sizes(node, axes))
    grid, out = scope.grid(node.input[0]), scope.grids[group.output]
    bound = grid.largest * count
    check_accumulator(node.name, bound, grid)
    ratio = grid.scale / (out.scale * (1 if node.op_type == "ReduceSum" else count))
    return IntegerMean(
        name=node.name,
        input=node.input[0],
        output=group.output,
        axes=axes,
        keep_axes=node.op_type == "GlobalAveragePool" or bool(settings.get("keepdims", 1)),
        count=count,
        requantize=requantize(node.name, ratio, bound, (out.low, out.high)),
    )


def lower_reduced_extreme(scope: Scope, group: Group) -> tuple[Operation, ...]:
    """ReduceMax and ReduceMin: on the input's grid, then brought to the output's."""
    node = group.head
    axes = np.array(reduced_axes(scope, group, len(scope.shape(node))), np.int64)
    extreme = f"{group.output}_extreme"
    settings = {"keepdims": attributes(node).get("keepdims", 1)}
    return (
        IntegerMove(
            name=node.name, op=node.op_type, input=node.input[0], output=extreme, attributes=settings, constants=(axes,)
        ),
        rescaled(scope, node.name, extreme, scope.grid(node.input[0]), group.output),
    )


def reduced_axes(scope: Scope, group: Group, rank: int) -> tuple[int, ...]:
    """The axes that a reduction goes over, in order."""
    node = group.head
    name = node.input[1] if len(node.input) > 1 else ""
    if name and not scope.index.is_constant(name):
        raise NotCovered(node, "its axes are not constant")
    axes = scope.index.constant(name).reshape(-1).tolist() if name else []
    if not axes and attributes(node).get("noop_with_empty_axes", 0):
        raise NotCovered(node, "it reduces no axis")
    return tuple(sorted(axis % rank for axis in axes or range(rank)))


def _counts(scope: Scope, group: Group, window: Window) -> Int64:
    """Elements each average divides by: a scalar where all are equal, else one per position."""
    node = group.head
    kernel = window.kernel
    counted = explicit_pads(scope.index, node, kernel)
    if not attributes(node).get("count_include_pad", 0):
        counted = (0,) * len(counted)
    if counted == window.pads:
        return np.asarray(math.prod(kernel), np.int64)
    sizes = spatial_sizes(scope.index, node, "an average that leaves out its padding")
    counts = element_counts(window, sizes, counted)
    return np.asarray(counts.flat[0], np.int64) if (counts == counts.flat[0]).all() else counts
