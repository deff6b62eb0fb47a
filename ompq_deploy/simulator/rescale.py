"""Requantization as the specification states it.

dyadic      q = clip((sum_k x_k M_k + 2^(shift-1)) >> shift, low, high)     int64, `>>` rounds towards minus infinity
tensorrt    q = clip(rint(float32(acc + added) scale), low, high)           float32, ties to even
            added = (code_skip M) >> shift
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ompq_deploy.export.integer.rules import FloatRescale, Int64, Requantize, ShiftClamp, Skip, Values
from ompq_deploy.numerics import along_axis


def requantize(total: Int64, rule: Requantize | FloatRescale, read: Mapping[str, Values]) -> Values:
    """An accumulator, plus the skip tensor where there is one, on the output's grid."""
    if isinstance(rule, FloatRescale):
        return scale_and_round(total if rule.skip is None else total + in_steps(rule.skip, read), rule)
    scaled = total * rule.multiplier
    if rule.skip_multiplier is not None:
        scaled = scaled + read[rule.skip].astype(np.int64) * rule.skip_multiplier
    return shift_and_clamp(scaled, rule.clamp)


def shift_and_clamp(scaled: Int64, clamp: ShiftClamp) -> Values:
    """Divide by 2^shift, round half up, clamp."""
    half = np.int64(1) << (clamp.shift - 1)
    return np.clip((scaled + half) >> clamp.shift, clamp.low, clamp.high).astype(np.int32)


def in_steps(skip: Skip, read: Mapping[str, Values]) -> Int64:
    """The tensor added to a convolution, in steps of its accumulator."""
    q = read[skip.tensor].astype(np.int64)
    return (q + skip.zero_point) * along_axis(skip.multiplier, q.ndim, 1) >> along_axis(skip.shift, q.ndim, 1)


def scale_and_round(total: Int64, rule: FloatRescale) -> Values:
    """One float32 product per channel of a convolution, rounded half to even, clamped."""
    scaled = total.astype(np.float32) * along_axis(rule.scale, total.ndim, 1)
    return np.clip(np.rint(scaled), rule.low, rule.high).astype(np.int32)
