"""Integer arithmetic shared by every stage, in pure NumPy.

Dyadic multiplier          r ~ M / 2^shift,  M < 2^31          (HAWQ-V3, Yao et al. 2021, section 3.2)
Requantization             q = clip((acc * M + 2^(shift-1)) >> shift, qmin, qmax)   in int64
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS = 31
MAX_SHIFT = 53
"""Keeps |acc * M| + (256 << shift) inside int64 for every accumulator below 2^31."""
PACKED_AT_ONCE = 1 << 20
"""Codes whose bits lie in memory one per byte; whole bytes at every width."""

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.integer]


def signed_range(bits: int) -> tuple[int, int]:
    """Smallest and largest code of a two's-complement integer of `bits` bits: (-8, 7) for 4."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def along_axis(vector: NDArray, rank: int, axis: int) -> NDArray:
    """A vector of length C shaped to broadcast along `axis` of a rank-`rank` tensor."""
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)


def dyadic(ratio: FloatArray, shift: IntArray | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Multipliers M and shifts such that M / 2^shift approximates each ratio (any shape; not 0 without `shift`).

    Without `shift`, M gets all 31 bits of mantissa: ratio = m * 2^e with m in [0.5, 1), M = round(m * 2^31),
    shift = 31 - e, limited to [1, MAX_SHIFT]. With `shift` (int64, same shape) only M is chosen, so that terms of
    one sum can share a shift.
    """
    ratio = np.asarray(ratio, np.float64)
    if shift is None:
        shift = dyadic_shift(ratio)
    multiplier = np.rint(np.ldexp(ratio, np.asarray(shift, np.int32))).astype(np.int64)
    return multiplier, np.asarray(shift, np.int64)


def dyadic_shift(ratio: FloatArray) -> NDArray[np.int64]:
    """The shift that gives each ratio a 31-bit mantissa."""
    _, exponent = np.frexp(np.asarray(ratio, np.float64))
    return np.clip(MANTISSA_BITS - exponent, 1, MAX_SHIFT).astype(np.int64)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take when packed without gaps."""
    return (count * bits + 7) // 8


def pack_bits(codes: IntArray, bits: int) -> NDArray[np.uint8]:
    """Codes as consecutive two's-complement bit fields, least significant bit first, one flat byte array.

    At 4 bits this is ONNX's INT4 layout: two per byte, the first code in the low nibble.
    """
    flat = np.ascontiguousarray(codes, np.int8).reshape(-1, 1).view(np.uint8)
    parts = []
    for start in range(0, len(flat), PACKED_AT_ONCE):
        fields = np.unpackbits(flat[start : start + PACKED_AT_ONCE], axis=1, bitorder="little")[:, :bits]
        parts.append(np.packbits(fields.reshape(-1), bitorder="little"))
    return np.concatenate([np.zeros(0, np.uint8), *parts])


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int8]:
    """The inverse of `pack_bits`: `count` signed codes, flat int8."""
    codes = np.empty(count, np.int8)
    for start in range(0, count, PACKED_AT_ONCE):
        part = codes[start : start + PACKED_AT_ONCE]
        first = start * bits // 8
        some = packed[first : first + packed_bytes(part.size, bits)]
        fields = np.unpackbits(some, count=part.size * bits, bitorder="little").reshape(-1, bits)
        extended = np.concatenate([fields, np.repeat(fields[:, -1:], 8 - bits, axis=1)], axis=1)
        part[:] = np.packbits(extended, axis=1, bitorder="little").view(np.int8)[:, 0]
    return codes
