"""The rules that the operations of an integer program share: how an accumulator becomes integers, and windows.

Requantize      q = clip((acc M + skip M_skip + 2^(shift-1)) >> shift, low, high)     in int64
FloatRescale    q = clip(rint(float32(acc M + skip M_skip) scale), low, high)         in float32, ties to even
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32

Int8 = NDArray[np.int8]
Values = NDArray[np.int32]
"""Integers on a grid, centred on zero."""
Int64 = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ShiftClamp:
    """q = clip((v + 2^(shift-1)) >> shift, low, high): rounding half up, then the clamp.

    `shift` and `reach` broadcast against v, last axes aligned. `reach` is proved from the actual weights: before
    the clamp |q| <= reach for every input.
    """

    shift: Int64
    reach: Int64
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class Requantize:
    """From an accumulator to an integer tensor: multiply, add, shift, clamp.

    `multiplier` and `skip_multiplier` have the shape of the shift. `skip` names an integer tensor added before the
    shift, so that the sum is rounded once; "" for none.
    """

    multiplier: Int64
    clamp: ShiftClamp
    skip: str = ""
    skip_multiplier: Int64 | None = None


@dataclass(frozen=True, kw_only=True)
class FloatRescale:
    """q = clip(rint(float32(total) scale), low, high): both the conversion and the product round to nearest, ties to
    even, and so does rint. `scale` is float32 and broadcasts against the accumulator, last axes aligned; so do both
    multipliers.

    total = acc where `skip` is "", else acc multiplier + skip skip_multiplier, inside int32: `skip` names an integer
    tensor that is added.
    """

    scale: Float32
    low: int
    high: int
    skip: str = ""
    multiplier: Int64 | None = None
    skip_multiplier: Int64 | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """A sliding window over the spatial axes: one entry per axis; `pads` are all begins, then all ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
