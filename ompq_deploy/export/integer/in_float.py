"""Rescale a convolution's accumulator in float32, as the arithmetic `tensorrt` does.

    scale[c] = float32(float32(s_in s_w[c]) / s_out)

A tensor added to the convolution is brought to steps of the accumulator, which are as fine as int8 weights allow:
weights and bias are multiplied by 2^t, and the scale is divided by it.

    added[c] = (code_skip M[c]) >> k[c],     M / 2^k ~ s_skip 2^t / (s_in s_w[c]),   M <= 2^23
    bias[c]  = bias[c] 2^t + rint(1/2 - z_skip M / 2^k)

1/2 makes good for rounding down. The sum is then off by at most (1/2 + 255 / 2^(k+1)) scale steps of the output. Where
that is more than `MOST_OFF`, or int32 might not hold the sum, the layer is rescaled as under `dyadic`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ompq_deploy.artifacts import Float32, Float64
from ompq_deploy.export.integer.program import IntegerConv
from ompq_deploy.export.integer.rescale import ACCUMULATOR_LIMIT, LARGEST
from ompq_deploy.export.integer.rules import FloatRescale, Int8, Int64, Skip
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph.groups import Group
from ompq_deploy.numerics import along_axis

MULTIPLIER_BITS = 23
"""So that its product with a code is inside int32."""
LARGEST_SHIFT = 30
MOST_OFF = 2.0**-7


def rescaled_in_float(
    scope: Scope, group: Group, conv: IntegerConv, grid: Float32, clamp: tuple[int, int]
) -> IntegerConv:
    """The convolution of a group, rescaled in float32 if its tensors lie on 8-bit grids and the added one can be
    brought to steps of the accumulator; else as it is. `grid` is the accumulator's scale s_in s_w, float32 (C,)."""
    grid_out = scope.grids[group.output]
    if scope.grid(group.head.input[0]).wide or grid_out.wide:
        return conv
    rule = FloatRescale(scale=grid / np.float32(grid_out.scale), low=clamp[0], high=clamp[1])
    if not group.skip:
        return replace(conv, requantize=rule)
    return _adding(scope, group, conv, grid, rule) or conv


def _adding(scope: Scope, group: Group, conv: IntegerConv, grid: Float32, rule: FloatRescale) -> IntegerConv | None:
    skip, rank = scope.grid(group.skip), conv.weights.ndim
    if skip.wide or len(scope.index.shapes.get(group.skip, ())) != rank:
        return None
    finer = _spare_bits(conv.weights)
    weights = conv.weights << along_axis(finer, rank, 0)
    scale = np.ldexp(rule.scale, -finer)
    ratio = skip.scale / np.ldexp(grid.astype(np.float64), -finer)
    shift = _shifts(ratio, scale)
    multiplier = np.rint(np.ldexp(ratio, shift))
    zero = np.rint(0.5 - skip.zero_point * np.ldexp(multiplier, -shift))
    bias = np.ldexp(conv.bias.astype(np.float64), finer) + zero
    sums = scope.grid(group.head.input[0]).largest * np.abs(weights.astype(np.float64)).reshape(len(weights), -1).sum(1)
    reach = sums + np.abs(bias) + LARGEST * ratio + 1
    if np.max(_off(shift, scale)) > MOST_OFF or np.max(reach) > ACCUMULATOR_LIMIT:
        return None
    added = Skip(
        tensor=group.skip,
        zero_point=skip.zero_point,
        multiplier=multiplier.astype(np.int64),
        shift=shift.astype(np.int64),
    )
    rule = replace(rule, scale=scale, skip=added)
    return replace(conv, weights=weights, bias=bias.astype(np.int64), requantize=rule)


def _spare_bits(weights: Int8) -> Int8:
    """The most that each channel's weights can be shifted to the left within int8, (C,)."""
    rows = weights.reshape(len(weights), -1)
    largest = np.maximum(rows, ~rows).max(axis=1)  # ~w = -w - 1: -128 fits, 128 does not
    return (7 - np.frexp(largest.astype(np.float32))[1]).astype(np.int8)


def _shifts(ratio: Float64, scale: Float32) -> Int64:
    """One shift for all channels, which is faster, if that is exact enough."""
    _, exponent = np.frexp(ratio)
    shift = np.clip(MULTIPLIER_BITS - exponent.astype(np.int64), 0, LARGEST_SHIFT)
    common = np.full_like(shift, shift.min())
    return common if np.max(_off(common, scale)) <= MOST_OFF else shift


def _off(shift: Int64, scale: Float32) -> Float64:
    """The most that the sum is off, in steps of the output."""
    return (0.5 + LARGEST * np.ldexp(0.5, -shift)) * scale
