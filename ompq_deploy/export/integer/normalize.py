"""Lower normalizations and Softmax.

With q on the grid of scale s, over n elements, in the notation of `IntegerNormalization`:

    (x - mean) / sqrt(var + eps) = (n d - r) / sqrt(n (V + n eps / s^2)) ~ z 2^-u / sqrt(n)
    R = floor(sqrt((V + epsilon) 4^t)),   epsilon = max(1, round(n eps / s^2)),   quotient_shift = t + u

t fills 62 bits, u makes 2^18 steps of a standard deviation. |n d - r| <= n sqrt(V), so |z| <= 2 n 2^u: all of it stays
below 2^62 for n up to 2^20. The integer square root is that of I-BERT (Kim et al. 2021, section 3.6); the division is
exact.
"""

from __future__ import annotations

import math

import numpy as np

from ompq_deploy.artifacts import Float64
from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.export.integer.pools import reduced_axes
from ompq_deploy.export.integer.program import (
    PROBABILITY_BITS,
    IntegerNorm,
    IntegerNormalization,
    IntegerSoftmax,
)
from ompq_deploy.export.integer.rescale import requantize, share_shift, shift_clamp
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph.groups import Group
from ompq_deploy.graph.index import attributes
from ompq_deploy.numerics import along_axis

LARGEST_COUNT = 1 << 20
LARGEST_EPSILON = 1 << 60
SUM_BITS = 62
DEVIATION_BITS = 18


def lower_layer_norm(scope: Scope, group: Group) -> IntegerNormalization:
    """LayerNormalization over the last axes."""
    node = group.head
    if len(node.output) > 1 and any(node.output[1:]):
        raise NotCovered(node, "its mean or deviation is used")
    rank = len(scope.shape(group.head))
    axes = tuple(range(attributes(node).get("axis", -1) % rank, rank))
    gamma, beta = (_parameter(scope, group, position, default) for position, default in ((1, 1.0), (2, 0.0)))
    return _normalization(scope, group, axes, gamma, beta)


def lower_instance_norm(scope: Scope, group: Group) -> IntegerNormalization:
    """InstanceNormalization over the spatial axes."""
    rank = len(scope.shape(group.head))
    gamma, beta = (along_axis(_parameter(scope, group, position, 0.0), rank - 1, 0) for position in (1, 2))
    return _normalization(scope, group, tuple(range(2, rank)), gamma, beta)


def lower_softmax(scope: Scope, group: Group) -> IntegerSoftmax:
    """Softmax along one axis."""
    grid, out = scope.grid(group.inputs[0]), scope.grids[group.output]
    distances = np.arange(grid.high - grid.low + 1, dtype=np.float64)
    exponentials = np.rint(np.ldexp(np.exp(-grid.scale * distances), PROBABILITY_BITS)).astype(np.int32)
    kept = min(int(np.count_nonzero(exponentials)) + 1, exponentials.size)
    ratio = math.ldexp(1 / out.scale, -PROBABILITY_BITS)
    return IntegerSoftmax(
        name=group.head.name,
        input=group.inputs[0],
        output=group.output,
        axis=attributes(group.head).get("axis", -1) % len(scope.shape(group.head)),
        exponentials=exponentials[:kept],
        requantize=requantize(group.head.name, ratio, 1 << PROBABILITY_BITS, (out.low, out.high)),
    )


def lower_norm(scope: Scope, group: Group) -> IntegerNorm:
    """ReduceL2 over axes of fixed size."""
    node, grid, out = group.head, scope.grid(group.inputs[0]), scope.grids[group.output]
    axes = reduced_axes(scope, group, len(scope.shape(node)))
    largest = _count(scope, group, axes) * grid.largest**2
    root_shift = (SUM_BITS - (largest + 1).bit_length()) // 2
    return IntegerNorm(
        name=node.name,
        input=group.inputs[0],
        output=group.output,
        axes=axes,
        keep_axes=bool(attributes(node).get("keepdims", 1)),
        root_shift=root_shift,
        requantize=requantize(
            node.name, math.ldexp(grid.scale / out.scale, -root_shift), 1 << (SUM_BITS // 2), (out.low, out.high)
        ),
    )


def _normalization(
    scope: Scope, group: Group, axes: tuple[int, ...], gamma: Float64, beta: Float64
) -> IntegerNormalization:
    node, grid, out = group.head, scope.grid(group.inputs[0]), scope.grids[group.output]
    count = _count(scope, group, axes)
    epsilon = attributes(node).get("epsilon", 1e-5) * count / grid.scale**2
    epsilon = min(epsilon, LARGEST_EPSILON)
    largest = count * (grid.high - grid.low + 1) ** 2 // 4 + math.ceil(epsilon)
    root_shift = (SUM_BITS - largest.bit_length()) // 2
    finer = max(0, DEVIATION_BITS - count.bit_length() // 2)
    reach = 2 * count << finer
    ratio = np.ldexp(gamma / (math.sqrt(count) * out.scale), -finer)
    constant = beta / out.scale
    (multiplier,), shift = share_shift((ratio,), np.abs(ratio) * reach + np.abs(constant))
    offset = np.rint(np.ldexp(constant, np.asarray(shift, np.int32))).astype(np.int64)
    return IntegerNormalization(
        name=node.name,
        input=group.inputs[0],
        output=group.output,
        axes=axes,
        count=count,
        epsilon=max(1, round(math.ldexp(epsilon, 2 * root_shift))),
        root_shift=root_shift,
        quotient_shift=root_shift + finer,
        reach=reach,
        multiplier=multiplier,
        constant=offset,
        clamp=shift_clamp(node.name, [(multiplier, reach)], shift, (out.low, out.high), offset),
    )


def _count(scope: Scope, group: Group, axes: tuple[int, ...]) -> int:
    count = math.prod(scope.sizes(group.head, axes))
    if count > LARGEST_COUNT:
        raise NotCovered(group.head, f"it normalizes over {count} elements, more than {LARGEST_COUNT}")
    return count


def _parameter(scope: Scope, group: Group, position: int, default: float) -> Float64:
    """A constant input of the node, float64."""
    inputs = group.head.input
    if len(inputs) <= position or not inputs[position]:
        return np.asarray(default)
    if not scope.index.is_constant(inputs[position]):
        raise NotCovered(group.head, "its scale or shift is computed")
    return scope.index.constant(inputs[position]).astype(np.float64)
