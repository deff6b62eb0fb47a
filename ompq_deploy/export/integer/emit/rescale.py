"""Emit multipliers, shifts and clamps.

With acc the tensor `T_accumulator`, z the stored zero of T and z_skip that of the tensor added,

    T_quantized = clip(((acc M + skip_quantized M_skip + offset) >> shift) - lift, low + z, high + z)
    offset      = bias M + 2^(shift-1) + ((z + lift) << shift) - z_skip M_skip,     z + lift >= reach

The number shifted is never negative, so `>>` may act on uint64, the type onnxruntime shifts. A lift that is a multiple
of 256 is not subtracted: the clamp moves up by as much, and the Cast to uint8, which keeps the low 8 bits, drops it.
Any other is reach - z, the least there is. The clamp is in int32:
onnxruntime 1.31 compares int64 wrongly in Clip, Max and Min (2^31 <= x < 2^32 counts as negative on x86; its PR 32475).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from ompq_deploy.artifacts import Grid
from ompq_deploy.export.integer.emit.writer import Writer, storage_type, storage_zero, stored
from ompq_deploy.export.integer.rules import Int64, Requantize, ShiftClamp

BYTE = 256
LARGEST_LIFT = 2**29
"""So that int32 holds reach, lift and a code together."""
ROOM = 2**62
"""Half of what int64 holds; products with stored zero-points, below 2^42, come on top."""


def requantize(writer: Writer, source: str, rule: Requantize, output: str, bias: Int64 | None = None) -> None:
    """From the int32 or int64 tensor `source`, centred on 0, plus `bias`, to the stored tensor of `output`."""
    terms = [term(writer, source, rule.multiplier, f"{output}_scaled")]
    offset = np.zeros((), np.int64) if bias is None else bias * rule.multiplier
    if rule.skip_multiplier is not None:
        terms.append(term(writer, stored(rule.skip), rule.skip_multiplier, f"{output}_skip"))
        offset = offset - writer.zero(rule.skip) * rule.skip_multiplier
    shift(writer, terms, offset, rule.clamp, output, writer.grids[output])


def term(writer: Writer, source: str, multiplier: Int64, name: str) -> str:
    """source * multiplier in int64."""
    wide = writer.node("Cast", [source], f"{name}_int64", to=TensorProto.INT64)
    return writer.node("Mul", [wide, writer.constant(f"{name}_multiplier", multiplier)], name)


def shift(writer: Writer, terms: Sequence[str], offset: Int64, clamp: ShiftClamp, output: str, grid: Grid) -> None:
    """Add up int64 terms and `offset`, shift right rounding half up, clamp, and store as `grid` is stored."""
    total = terms[0]
    for position, added in enumerate(terms[1:]):
        total = writer.node("Add", [total, added], f"{output}_sum{position}")
    zero, dropped = storage_zero(grid), _lift_dropped_by_cast(clamp, grid)
    lift = clamp.reach - zero if dropped is None else np.int64(dropped)
    rounding = offset + (np.int64(1) << (clamp.shift - 1)) + ((zero + lift) << clamp.shift)
    total = writer.node("Add", [total, writer.constant(f"{output}_offset", rounding)], f"{output}_positive")
    total = writer.node("Cast", [total], f"{output}_unsigned", to=TensorProto.UINT64)
    amount = writer.constant(f"{output}_shift", clamp.shift.astype(np.uint64))
    total = writer.node("BitShift", [total, amount], f"{output}_shifted", direction="RIGHT")
    total = writer.node("Cast", [total], f"{output}_narrow", to=TensorProto.INT32)
    if dropped is None:
        excess = writer.constant(f"{output}_excess", lift.astype(np.int32))
        total = writer.node("Sub", [total, excess], f"{output}_unclamped")
    bounds = {"low": clamp.low + zero + (dropped or 0), "high": clamp.high + zero + (dropped or 0)}
    ends = [writer.constant(f"{output}_{name}", np.int32(bound)) for name, bound in bounds.items()]
    if grid.wide:
        writer.node("Clip", [total, *ends], stored(output))
    else:
        total = writer.node("Clip", [total, *ends], f"{output}_clamped")
        writer.node("Cast", [total], stored(output), to=storage_type(grid))


def _lift_dropped_by_cast(clamp: ShiftClamp, grid: Grid) -> int | None:
    """The least multiple of 256 from reach on, one for all channels; None where 64 bits have no room for it, or where
    the tensor is not stored as uint8."""
    lift = -(-int(clamp.reach.max()) // BYTE) * BYTE
    raised = (clamp.reach.astype(object) + lift + BYTE) * 2 ** clamp.shift.astype(object)
    return lift if not grid.wide and lift <= LARGEST_LIFT and np.max(raised) <= ROOM else None
