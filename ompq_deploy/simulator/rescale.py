"""Requantization as the specification states it.

q = clip((sum_k x_k M_k + 2^(shift-1)) >> shift, low, high)     in int64, `>>` rounding towards minus infinity
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ompq_deploy.export.integer.program import Int64, Requantize, ShiftClamp, Values


def requantize(total: Int64, rule: Requantize, read: Mapping[str, Values]) -> Values:
    """An accumulator, plus the skip tensor where there is one, on the output's grid."""
    scaled = total * rule.multiplier
    if rule.skip_multiplier is not None:
        scaled = scaled + read[rule.skip].astype(np.int64) * rule.skip_multiplier
    return shift_and_clamp(scaled, rule.clamp)


def shift_and_clamp(scaled: Int64, clamp: ShiftClamp) -> Values:
    """Divide by 2^shift, round half up, clamp."""
    half = np.int64(1) << (clamp.shift - 1)
    return np.clip((scaled + half) >> clamp.shift, clamp.low, clamp.high).astype(np.int32)
