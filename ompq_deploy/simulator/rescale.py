"""Requantization as the specification states it.

dyadic      q = clip((sum_k x_k M_k + 2^(shift-1)) >> shift, low, high)     int64, `>>` rounds towards minus infinity
tensorrt    q = clip(rint(float32(acc M + skip M_skip) scale), low, high)   float32, ties to even
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ompq_deploy.export.integer.rules import FloatRescale, Int64, Requantize, ShiftClamp, Values


def requantize(total: Int64, rule: Requantize | FloatRescale, read: Mapping[str, Values]) -> Values:
    """An accumulator, plus the skip tensor where there is one, on the output's grid."""
    scaled = total if rule.multiplier is None else total * rule.multiplier
    if rule.skip_multiplier is not None:
        scaled = scaled + read[rule.skip].astype(np.int64) * rule.skip_multiplier
    return scale_and_round(scaled, rule) if isinstance(rule, FloatRescale) else shift_and_clamp(scaled, rule.clamp)


def shift_and_clamp(scaled: Int64, clamp: ShiftClamp) -> Values:
    """Divide by 2^shift, round half up, clamp."""
    half = np.int64(1) << (clamp.shift - 1)
    return np.clip((scaled + half) >> clamp.shift, clamp.low, clamp.high).astype(np.int32)


def scale_and_round(total: Int64, rule: FloatRescale) -> Values:
    """One product in float32, rounded half to even, clamped."""
    return np.clip(np.rint(total.astype(np.float32) * rule.scale), rule.low, rule.high).astype(np.int32)
