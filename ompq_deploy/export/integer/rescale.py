"""Multipliers, shifts, clamps, and the proof that nothing overflows.

q = clip((sum_k x_k M_k + constant + 2^(shift-1)) >> shift, low, high),   M_k = round(ratio_k 2^shift)

Terms of one sum share the smallest of their dyadic shifts, so that every M_k stays below 2^31. With |x_k| <= bound_k,

    |q| <= reach = ((sum_k bound_k M_k + |constant| + 2^(shift-1)) >> shift) + 1        before the clamp

and the ONNX model adds reach << shift, so that what it shifts is never negative; it reads q + 128 in place of q.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ompq_deploy.errors import BadInput
from ompq_deploy.export.integer.program import Int64, Requantize, ShiftClamp
from ompq_deploy.numerics import dyadic, dyadic_shift, quantize, signed_range

LOWEST, HIGHEST = signed_range(8)
LARGEST = -LOWEST
"""The largest magnitude of an int8 value."""

ACCUMULATOR_LIMIT = 2**31 - 2**25
"""Inside int32 by so much that twice the product with a 31-bit multiplier, plus 2^55, is inside int64."""


def share_shift(ratios: Sequence[np.ndarray | float]) -> tuple[tuple[Int64, ...], Int64]:
    """Multipliers of one sum's terms, and their common shift; all int64, broadcast to one shape."""
    broadcast = np.broadcast_arrays(*(np.asarray(ratio, np.float64) for ratio in ratios))
    shift = np.min([dyadic_shift(ratio) for ratio in broadcast], axis=0)
    return tuple(dyadic(ratio, shift)[0] for ratio in broadcast), np.asarray(shift, np.int64)


def clamp_codes(low: float, high: float, scale: float) -> tuple[int, int]:
    """The int8 clamp that a real clamp becomes on a grid: (0, 127) for Relu."""
    codes = quantize(np.array([low, high]), scale, 8)
    return int(codes[0]), int(codes[1])


def requantize(
    name: str,
    ratio: np.ndarray | float,
    bound: np.ndarray | int,
    clamp: tuple[int, int],
    *,
    skip: str = "",
    skip_ratio: float = 1.0,
) -> Requantize:
    """The requantization of an accumulator of magnitude at most `bound` (same shape as `ratio`, or scalar)."""
    ratios = (ratio, skip_ratio) if skip else (ratio,)
    multipliers, shift = share_shift(ratios)
    bounds = (bound, LARGEST) if skip else (bound,)
    return Requantize(
        multiplier=multipliers[0],
        clamp=shift_clamp(name, zip(multipliers, bounds, strict=True), shift, clamp),
        skip=skip,
        skip_multiplier=multipliers[1] if skip else None,
    )


def shift_clamp(
    name: str,
    terms: Iterable[tuple[Int64, np.ndarray | int]],
    shift: Int64,
    clamp: tuple[int, int],
    constant: Int64 | int = 0,
) -> ShiftClamp:
    """The shift and clamp of a sum of (multiplier, bound) terms. Raises BadInput where the sum may leave 64 bits.

    Computed in Python integers, so the proof itself cannot overflow.
    """
    exact = np.asarray(shift, object)
    total = np.abs(np.asarray(constant, object)) + 2 ** (exact - 1)
    storage = np.asarray(0, object)
    for multiplier, bound in terms:
        total = total + np.asarray(multiplier, object) * np.asarray(bound, object)
        storage = storage + np.asarray(multiplier, object) * LARGEST
    reach = total // 2**exact + 1
    if np.max(total + storage + reach * 2**exact) >= 2**63 or np.max(reach) >= 2**30:
        raise BadInput(
            f"rescaling {name!r} can leave 64 bits: its scales differ too much",
            where=name,
            fix="check the activation ranges of this tensor; a scale is near zero or infinite",
        )
    return ShiftClamp(shift=shift, reach=np.asarray(reach, np.int64), low=clamp[0], high=clamp[1])


def check_accumulator(name: str, bound: int) -> None:
    """Raise BadInput where an accumulator of magnitude up to `bound` may pass ACCUMULATOR_LIMIT."""
    if bound > ACCUMULATOR_LIMIT:
        raise BadInput(
            f"the accumulator of {name!r} can reach {bound}, beyond 32 bits",
            where=name,
            fix="quantize this model with --target onnx, or split the layer: too many inputs are summed",
        )
