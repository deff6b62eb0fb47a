"""Multipliers, shifts, clamps, and the proof that nothing overflows.

q = clip((sum_k x_k M_k + constant + 2^(shift-1)) >> shift, low, high),   M_k = round(ratio_k 2^shift)

Terms of one sum share the smallest of their dyadic shifts, so that every M_k stays below 2^31, or a smaller one where
64 bits demand it. With |x_k| <= bound_k,

    |q| <= reach = ((sum_k bound_k |M_k| + |constant| + 2^(shift-1)) >> shift) + 1        before the clamp

and the ONNX model adds reach << shift, so that what it shifts is never negative; it reads q + zero-point in place of q.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ompq_deploy.artifacts import Grid
from ompq_deploy.export.integer.rules import Int64, Requantize, ShiftClamp
from ompq_deploy.numerics import MAX_SHIFT, dyadic, dyadic_shift

LARGEST = 255
"""The largest magnitude on any 8-bit grid, and the largest zero-point stored."""

ACCUMULATOR_LIMIT = 2**31 - 2**25
"""Inside int32 by so much that twice the product with a 31-bit multiplier, plus 2^55, is inside int64."""
WIDE_ACCUMULATOR_LIMIT = 2**52
SUM_BITS = 62
SPARE_STEPS = 2.0
"""A sum of up to 2^e steps, rounding included, leaves a shift of 62 - e: with what is added to keep the number shifted
positive, it takes 63 bits."""


def share_shift(
    ratios: Sequence[np.ndarray | float], sums: np.ndarray | float = 0.0
) -> tuple[tuple[Int64, ...], Int64]:
    """Multipliers of one sum's terms, and their common shift; all int64, broadcast to one shape.

    A ratio may be negative or 0. `sums` is the largest magnitude of the sum in output steps: where it is large, the
    shift is smaller than 31 bits of mantissa would make it, so that 64 bits hold the sum before the shift.
    """
    *broadcast, largest = np.broadcast_arrays(*(np.asarray(ratio, np.float64) for ratio in ratios), sums)
    shift = np.min([np.where(ratio == 0, MAX_SHIFT, dyadic_shift(ratio)) for ratio in broadcast], axis=0)
    _, exponent = np.frexp(largest + SPARE_STEPS)
    shift = np.clip(np.minimum(shift, SUM_BITS - exponent), 1, MAX_SHIFT)
    return tuple(dyadic(ratio, shift)[0] for ratio in broadcast), np.asarray(shift, np.int64)


def clamp_codes(low: float, high: float, grid: Grid) -> tuple[int, int]:
    """The clamp that a real clamp becomes on a grid: (0, 127) for Relu on a symmetric one."""
    codes = grid.steps(np.array([low, high], np.float32))
    return int(codes[0]), int(codes[1])


def requantize(
    name: str,
    ratio: np.ndarray | float,
    bound: np.ndarray | int,
    clamp: tuple[int, int],
    *,
    skip: str = "",
    skip_ratio: float = 1.0,
    skip_bound: int = LARGEST,
) -> Requantize:
    """The requantization of an accumulator of magnitude at most `bound` (same shape as `ratio`, or scalar), to which
    the tensor `skip` of magnitude at most `skip_bound` is added."""
    ratios = (ratio, skip_ratio) if skip else (ratio,)
    bounds = (bound, skip_bound) if skip else (bound,)
    multipliers, shift = share_shift(ratios, sum_steps(ratios, bounds))
    return Requantize(
        multiplier=multipliers[0],
        clamp=shift_clamp(name, zip(multipliers, bounds, strict=True), shift, clamp),
        skip=skip,
        skip_multiplier=multipliers[1] if skip else None,
    )


def sum_steps(ratios: Iterable[np.ndarray | float], bounds: Iterable[np.ndarray | int]) -> np.ndarray | float:
    """The largest magnitude of sum_k x_k ratio_k in output steps, where |x_k| <= bound_k."""
    return sum(np.abs(ratio) * bound for ratio, bound in zip(ratios, bounds, strict=True))


def shift_clamp(
    name: str,
    terms: Iterable[tuple[Int64, np.ndarray | int]],
    shift: Int64,
    clamp: tuple[int, int],
    constant: Int64 | int = 0,
) -> ShiftClamp:
    """The shift and clamp of a sum of (multiplier, bound) terms. Raises OverflowError where it may leave 64 bits.

    Computed in Python integers, so the proof itself cannot overflow.
    """
    exact = np.asarray(shift, object)
    total = np.abs(np.asarray(constant, object)) + 2 ** (exact - 1)
    storage = np.asarray(0, object)
    for multiplier, bound in terms:
        total = total + np.abs(np.asarray(multiplier, object)) * np.asarray(bound, object)
        storage = storage + np.abs(np.asarray(multiplier, object)) * LARGEST
    reach = total // 2**exact + 1
    if np.max(total + storage + reach * 2**exact) >= 2**63 or np.max(reach) >= 2**30:
        raise OverflowError(f"rescaling {name!r} can leave 64 bits, its scales differ too much")
    return ShiftClamp(shift=shift, reach=np.asarray(reach, np.int64), low=clamp[0], high=clamp[1])


def accumulator_limit(grid: Grid) -> int:
    """What an accumulator may reach: inside int32 on 8-bit inputs, and exact in float64 on wide ones."""
    return WIDE_ACCUMULATOR_LIMIT if grid.wide else ACCUMULATOR_LIMIT


def check_accumulator(name: str, bound: int, grid: Grid) -> None:
    """Raise OverflowError where an accumulator of magnitude up to `bound`, of inputs on `grid`, may pass its limit."""
    if bound > accumulator_limit(grid):
        raise OverflowError(f"the accumulator of {name!r} can reach {bound}, beyond {53 if grid.wide else 32} bits")
