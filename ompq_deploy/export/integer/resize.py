"""Lower Resize and Upsample to integers: nearest picks elements, linear weights two of them along each axis.

    x(i) = the input coordinate of output element i        (ONNX Resize, coordinate_transformation_mode)
    nearest     y[i] = x[round(x(i))]
    linear      y[i] = (x[f] (2^k - w) + x[f + 1] w) / 2^k,     f = floor(x(i)),  w = round((x(i) - f) 2^k)

Indices are held inside the input. Sizes must be known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float64
from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.export.integer.elementwise import rescaled
from ompq_deploy.export.integer.program import IntegerInterpolation, IntegerMove, Operation
from ompq_deploy.export.integer.rescale import requantize
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph_index import attributes
from ompq_deploy.groups import Group
from ompq_deploy.numerics import along_axis

Coordinates = Callable[[Float64, float, int, int], Float64]
"""From output elements, the scale and the two lengths to input coordinates."""
WEIGHT_BITS = 12
WEIGHT_BITS_IN_ALL = 30
"""Of all axes together: with the 17 bits of a wide value they leave room for a multiplier."""

TRANSFORMS: dict[str, Coordinates] = {
    "asymmetric": lambda i, scale, size, length: i / scale,
    "half_pixel": lambda i, scale, size, length: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, size, length: (i + 0.5) / scale - 0.5 if length > 1 else 0 * i,
    "align_corners": lambda i, scale, size, length: i * (size - 1) / (length - 1) if length > 1 else 0 * i,
    "half_pixel_symmetric": lambda i, scale, size, length: (
        size / 2 * (1 - length / (scale * size)) + (i + 0.5) / scale - 0.5
    ),
}
ROUNDINGS: dict[str, Callable[[Float64], Float64]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def lower_resize(scope: Scope, group: Group) -> tuple[Operation, ...]:
    """One pick per axis that changes and a rescaling, or one interpolation."""
    node = group.head
    settings = attributes(node)
    axes = _resized_axes(scope, node)
    if settings.get("mode", "nearest") == "linear":
        return (_interpolation(scope, group, axes),)
    if settings.get("mode", "nearest") != "nearest":
        raise NotCovered(node, "its mode is cubic")
    rounding = ROUNDINGS[settings.get("nearest_mode", "round_prefer_floor")]
    operations: list[Operation] = []
    tensor = group.inputs[0]
    for axis, (size, coordinates) in axes.items():
        picked = f"{group.output}_axis{axis}"
        index = np.clip(rounding(coordinates), 0, size - 1).astype(np.int64)
        operations.append(pick(node.name, tensor, picked, axis, index))
        tensor = picked
    return (*operations, rescaled(scope, node.name, tensor, scope.grid(group.inputs[0]), group.output))


def pick(name: str, tensor: str, output: str, axis: int, index: NDArray[np.int64]) -> IntegerMove:
    """The elements `index` along one axis."""
    return IntegerMove(
        name=name, op="Gather", input=tensor, output=output, attributes={"axis": axis}, constants=(index,)
    )


def _interpolation(scope: Scope, group: Group, axes: dict[int, tuple[int, Float64]]) -> IntegerInterpolation:
    grid, out = scope.grid(group.inputs[0]), scope.grids[group.output]
    bits = min(WEIGHT_BITS, WEIGHT_BITS_IN_ALL // max(len(axes), 1))
    rank = len(scope.shape(group.head))
    below, above, weights = [], [], []
    for axis, (size, coordinates) in axes.items():
        held = np.clip(coordinates, 0, size - 1)
        floor = np.floor(held).astype(np.int64)
        below.append(floor)
        above.append(np.minimum(floor + 1, size - 1))
        weights.append(along_axis(np.rint(np.ldexp(held - floor, bits)).astype(np.int64), rank - axis, 0))
    total = bits * len(axes)
    ratio = math.ldexp(grid.scale / out.scale, -total)
    return IntegerInterpolation(
        name=group.head.name,
        input=group.inputs[0],
        output=group.output,
        axes=tuple(axes),
        below=tuple(below),
        above=tuple(above),
        weights=tuple(weights),
        bits=bits,
        requantize=requantize(group.head.name, ratio, grid.largest << total, (out.low, out.high)),
    )


def _resized_axes(scope: Scope, node: onnx.NodeProto) -> dict[int, tuple[int, Float64]]:
    """Input length and input coordinates of every output element, for each axis that changes."""
    settings = attributes(node)
    mode = settings.get("coordinate_transformation_mode", "half_pixel")
    if mode not in TRANSFORMS or settings.get("antialias", 0) or settings.get("exclude_outside", 0):
        raise NotCovered(node, "its coordinates are not covered")
    shape, result = scope.index.shapes.get(node.input[0]), scope.index.shapes.get(node.output[0])
    if shape is None or result is None:
        raise NotCovered(node, "its sizes are not known")
    scales = _scales(scope, node, len(shape))
    found = {}
    for axis, (size, length) in enumerate(zip(shape, result, strict=True)):
        if size == length and scales.get(axis, 1.0) == 1.0:
            continue
        if size is None or length is None:
            raise NotCovered(node, "it needs fixed sizes")
        elements = np.arange(length, dtype=np.float64)
        found[axis] = size, TRANSFORMS[mode](elements, scales.get(axis, length / size), size, length)
    return found


def _scales(scope: Scope, node: onnx.NodeProto, rank: int) -> dict[int, float]:
    """The scales the node gives, by axis; empty where it gives sizes."""
    name = node.input[2] if len(node.input) > 2 else ""
    if not name or not scope.index.is_constant(name):
        return {}
    values: Any = scope.index.constant(name).reshape(-1)
    axes = attributes(node).get("axes", range(rank))
    return {axis % rank: float(value) for axis, value in zip(axes, values, strict=False)}
