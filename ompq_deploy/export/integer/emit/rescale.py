"""Emit multipliers, shifts and clamps.

With acc the int32 tensor `T_accumulator`, z the stored zero of T and z_skip that of the tensor added,

    T_quantized = clip(((acc M + skip_quantized M_skip + offset) >> shift) - (reach - z), low + z, high + z)
    offset      = 2^(shift-1) + (reach << shift) - z_skip M_skip

The number shifted is never negative, so `>>` may act on uint64, the type onnxruntime shifts. The clamp is in int32:
onnxruntime 1.31 compares int64 wrongly in Clip, Max and Min (2^31 <= x < 2^32 counts as negative on x86; its PR 32475).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ompq_deploy.artifacts import Grid
from ompq_deploy.export.integer.emit.writer import Writer, storage_type, storage_zero, stored
from ompq_deploy.export.integer.program import Requantize, ShiftClamp


def requantize(writer: Writer, source: str, rule: Requantize, output: str) -> None:
    """From the int32 or int64 tensor `source`, centred on 0, to the stored tensor of `output`."""
    terms = [term(writer, source, rule.multiplier, f"{output}_scaled")]
    offset = np.zeros((), np.int64)
    if rule.skip_multiplier is not None:
        terms.append(term(writer, stored(rule.skip), rule.skip_multiplier, f"{output}_skip"))
        offset = -writer.zero(rule.skip) * rule.skip_multiplier
    shift(writer, terms, offset, rule.clamp, output, writer.grids[output])


def term(writer: Writer, source: str, multiplier: NDArray[np.int64], name: str) -> str:
    """source * multiplier in int64."""
    wide = writer.node("Cast", [source], f"{name}_int64", to=TensorProto.INT64)
    return writer.node("Mul", [wide, writer.constant(f"{name}_multiplier", multiplier)], name)


def shift(
    writer: Writer, terms: Sequence[str], offset: NDArray[np.int64], clamp: ShiftClamp, output: str, grid: Grid
) -> None:
    """Add up int64 terms and `offset`, shift right rounding half up, clamp, and store as `grid` is stored."""
    zero = storage_zero(grid)
    total = terms[0]
    for position, added in enumerate(terms[1:]):
        total = writer.node("Add", [total, added], f"{output}_sum{position}")
    rounding = offset + (np.int64(1) << (clamp.shift - 1)) + (clamp.reach << clamp.shift)
    total = writer.node("Add", [total, writer.constant(f"{output}_offset", rounding)], f"{output}_positive")
    total = writer.node("Cast", [total], f"{output}_unsigned", to=TensorProto.UINT64)
    amount = writer.constant(f"{output}_shift", clamp.shift.astype(np.uint64))
    total = writer.node("BitShift", [total, amount], f"{output}_shifted", direction="RIGHT")
    total = writer.node("Cast", [total], f"{output}_narrow", to=TensorProto.INT32)
    excess = writer.constant(f"{output}_excess", (clamp.reach - zero).astype(np.int32))
    total = writer.node("Sub", [total, excess], f"{output}_unclamped")
    low = writer.constant(f"{output}_low", np.int32(clamp.low + zero))
    high = writer.constant(f"{output}_high", np.int32(clamp.high + zero))
    total = writer.node("Clip", [total, low, high], f"{output}_clamped")
    writer.node("Cast", [total], stored(output), to=storage_type(grid))
