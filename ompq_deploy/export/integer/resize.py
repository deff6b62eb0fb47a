"""Lower Resize and Upsample to integers axis by axis, with the elements and weights of `graph/resampling.py`.

    nearest          y[i] = x[index[i]]
    linear, cubic    y[i] = sum_t w[t, i] x[index[t, i]] / 2^k,     w = round(weight 2^k),  sum_t w[t, i] = 2^k

Sizes must be known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from ompq_deploy.graph.groups import Group
from ompq_deploy.graph.index import attributes
from ompq_deploy.graph.resampling import Taps, resized, scaled_length

BATCH = 0
WEIGHT_BITS = 12
WEIGHT_BITS_IN_ALL = 30
"""Of all axes together: with the 17 bits of a wide value they leave room for a multiplier."""


def lower_resize(scope: Scope, group: Group) -> tuple[Operation, ...]:
    """One pick per axis that changes and a rescaling, or one interpolation."""
    node = group.head
    settings = attributes(node)
    axes = _taps(scope, node)
    if settings.get("mode", "nearest") != "nearest":
        return (_interpolation(scope, group, axes),)
    operations: list[Operation] = []
    tensor = group.inputs[0]
    for axis, taps in axes.items():
        picked = f"{group.output}_axis{axis}"
        operations.append(pick(node.name, tensor, picked, axis, taps.index[0]))
        tensor = picked
    return (*operations, rescaled(scope, node.name, tensor, scope.grid(group.inputs[0]), group.output))


def pick(name: str, tensor: str, output: str, axis: int, index: NDArray[np.int64]) -> IntegerMove:
    """The elements `index` along one axis."""
    return IntegerMove(
        name=name, op="Gather", input=tensor, output=output, attributes={"axis": axis}, constants=(index,)
    )


def _interpolation(scope: Scope, group: Group, axes: Mapping[int, Taps]) -> IntegerInterpolation:
    grid, out = scope.grid(group.inputs[0]), scope.grids[group.output]
    bits = min(WEIGHT_BITS, WEIGHT_BITS_IN_ALL // max(len(axes), 1))
    rank = len(scope.shape(group.head))
    weights = [whole_weights(taps.weight, bits) for taps in axes.values()]
    bound = math.prod(int(np.abs(w).sum(axis=0).max()) for w in weights)
    return IntegerInterpolation(
        name=group.head.name,
        input=group.inputs[0],
        output=group.output,
        axes=tuple(axes),
        indices=tuple(taps.index for taps in axes.values()),
        weights=tuple(w.reshape(*w.shape, *[1] * (rank - axis - 1)) for w, axis in zip(weights, axes, strict=True)),
        requantize=requantize(
            group.head.name,
            math.ldexp(grid.scale / out.scale, -bits * len(axes)),
            grid.largest * bound,
            (out.low, out.high),
        ),
    )


def whole_weights(weight: Float64, bits: int) -> NDArray[np.int64]:
    """Weights (T, length) times 2^bits as integers that sum to it; the largest takes what rounding leaves."""
    whole = np.rint(np.ldexp(weight, bits)).astype(np.int64)
    largest = np.abs(weight).argmax(axis=0)
    whole[largest, np.arange(whole.shape[1])] += (1 << bits) - whole.sum(axis=0)
    return whole


def _taps(scope: Scope, node: onnx.NodeProto) -> dict[int, Taps]:
    """What is read along each axis that changes."""
    settings = attributes(node)
    if settings.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotCovered(node, "its aspect ratio is kept")
    shape, result = scope.index.shapes.get(node.input[0]), scope.index.shapes.get(node.output[0])
    if shape is None or result is None:
        raise NotCovered(node, "its sizes are not known")
    scales = _scales(scope, node, len(shape))
    found: dict[int, Taps] = {}
    if shape == result and None not in shape[1:]:
        return found  # onnxruntime copies, whatever the scales
    for axis, (size, length) in enumerate(zip(shape, result, strict=True)):
        if size == length and scales.get(axis, 1.0) == 1.0 and (size or axis in scales or axis == BATCH):
            continue
        if size is None or length is None:
            raise NotCovered(node, "it needs fixed sizes")
        if axis in scales and scaled_length(size, scales[axis]) != length:
            raise NotCovered(node, "onnx infers another size than onnxruntime makes")
        taps = resized(settings, size, length, scales.get(axis, length / size))
        if taps is None:
            raise NotCovered(node, "its coordinates are not covered")
        found[axis] = taps
    return found


def _scales(scope: Scope, node: onnx.NodeProto, rank: int) -> dict[int, float]:
    """The scales the node gives, by axis; empty where it gives sizes."""
    name = node.input[2] if len(node.input) > 2 else ""
    if not name or not scope.index.is_constant(name):
        return {}
    values: Any = scope.index.constant(name).reshape(-1)
    axes = attributes(node).get("axes", range(rank))
    return {axis % rank: float(value) for axis, value in zip(axes, values, strict=False)}
