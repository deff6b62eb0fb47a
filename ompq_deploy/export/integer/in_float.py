"""Rescale the accumulator of a layer in float32, as the arithmetic `tensorrt` does.

    scale[c] = float32(float32(s_in s_w[c]) / s_out)

A tensor that is added and the accumulator are multiplied before, so that their sum fills int32:

    total[c] = acc[c] 2^t + q_skip M[c],     M = rint(r 2^t),     r = s_skip / (s_in s_w[c])
    t[c]     = floor(log2(limit / (max |acc[c]| + 255 (r[c] + 1))))

and the scale is divided by 2^t. The sum is then off by at most max |q_skip| / 2 scale / 2^t steps of the output. Where
that is more than `MOST_OFF`, or where t would be negative, the layer is rescaled as under `dyadic`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ompq_deploy.artifacts import Float32
from ompq_deploy.export.integer.program import IntegerConv, IntegerMatMul
from ompq_deploy.export.integer.rescale import ACCUMULATOR_LIMIT, LARGEST
from ompq_deploy.export.integer.rules import FloatRescale, Int64
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph.groups import Group

Layer = IntegerConv | IntegerMatMul
MOST_OFF = 2.0**-8


def rescaled_in_float(
    scope: Scope, group: Group, layer: Layer, grid: Float32, bound: Int64, clamp: tuple[int, int]
) -> Layer:
    """The layer of a group, rescaled in float32 if its tensors lie on 8-bit grids and int32 holds the sum with the one
    that is added; else as it is.

    `grid`, the accumulator's scale s_in s_w, and `bound`, its largest magnitude, broadcast against it.
    """
    grid_out = scope.grids[group.output]
    if scope.grid(group.head.input[0]).wide or grid_out.wide:
        return layer
    rule = FloatRescale(scale=grid / np.float32(grid_out.scale), low=clamp[0], high=clamp[1])
    if not group.skip:
        return replace(layer, requantize=rule)
    sum_rule = _with_skip(scope, group, grid, bound, rule)
    return layer if sum_rule is None else replace(layer, requantize=sum_rule)


def _with_skip(scope: Scope, group: Group, grid: Float32, bound: Int64, rule: FloatRescale) -> FloatRescale | None:
    """The rule that adds the group's other tensor; None where that is not exact enough, or where it may have more
    channels than the layer, or fewer axes."""
    skip = scope.grid(group.skip)
    added, output = (scope.index.shapes.get(name, ()) for name in (group.skip, group.output))
    if skip.wide or not output or len(added) != len(output) or output[-bound.ndim] != bound.size:
        return None
    ratio = skip.scale / grid.astype(np.float64)
    room = ACCUMULATOR_LIMIT / (bound + LARGEST * (ratio + 1))
    power = np.frexp(room)[1] - 1
    scale = np.ldexp(rule.scale, -power)
    if power.min() < 0 or np.max(skip.largest * scale / 2) > MOST_OFF:
        return None
    return replace(
        rule,
        scale=scale,
        skip=group.skip,
        multiplier=np.int64(1) << power.astype(np.int64),
        skip_multiplier=np.rint(np.ldexp(ratio, power)).astype(np.int64),
    )
