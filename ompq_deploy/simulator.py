"""Run an integer program in NumPy: slow, small, and independent of ONNX. The reference the integer model must match.

q = clip((sum_k x_k M_k + 2^(shift-1)) >> shift, low, high)     in int64, `>>` rounding towards minus infinity

Sums of products of two int8 numbers stay below 2^53, so float64 matrix products are exact, and fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32
from ompq_deploy.export.integer.geometry import output_sizes, pad_widths, taps
from ompq_deploy.export.integer.program import (
    Dequantize,
    Int8,
    Int64,
    IntegerAveragePool,
    IntegerConcat,
    IntegerConv,
    IntegerMatMul,
    IntegerMaxPool,
    IntegerMean,
    IntegerMove,
    IntegerProgram,
    IntegerSum,
    Operation,
    Requantize,
    ShiftClamp,
)

Integers = dict[str, Int8]


@dataclass(frozen=True, kw_only=True)
class ProgramRun:
    """What a run leaves: every int8 tensor, every accumulator (int64, within int32), the dequantized floats."""

    integers: Mapping[str, Int8]
    accumulators: Mapping[str, Int64]
    floats: Mapping[str, Float32]


def run_program(
    program: IntegerProgram, inputs: Mapping[str, NDArray[Any]], *, given: Mapping[str, Int8] | None = None
) -> ProgramRun:
    """Run `program` on float graph inputs.

    Every operation that reads a tensor of `given` gets that one instead of the computed one, so that one operation's
    error does not reach the next; the run returns what was computed.
    """
    integers: Integers = {name: quantize_input(inputs[name], program.scales[name]) for name in program.inputs}
    accumulators: dict[str, Int64] = {}
    read: Integers = integers | dict(given or {})
    for operation in program.operations:
        result, total = _run(operation, read)
        if total is not None:
            accumulators[operation.output] = total
        if result is not None:
            integers[operation.output] = result
            read.setdefault(operation.output, result)
    floats = {ending.tensor: _dequantize(ending, read, accumulators) for ending in program.dequantized}
    return ProgramRun(integers=integers, accumulators=accumulators, floats=floats)


def quantize_input(x: NDArray[Any], scale: float) -> Int8:
    """ONNX QuantizeLinear: float32 division, ties to the even code."""
    return np.clip(np.rint(x.astype(np.float32) / np.float32(scale)), -128, 127).astype(np.int8)


def requantize(total: Int64, rule: Requantize, read: Mapping[str, Int8]) -> Int8:
    """An accumulator, plus the skip tensor where there is one, as int8."""
    scaled = total * rule.multiplier
    if rule.skip_multiplier is not None:
        scaled = scaled + read[rule.skip].astype(np.int64) * rule.skip_multiplier
    return shift_and_clamp(scaled, rule.clamp)


def shift_and_clamp(scaled: Int64, clamp: ShiftClamp) -> Int8:
    """Divide by 2^shift, round half up, clamp."""
    half = np.int64(1) << (clamp.shift - 1)
    return np.clip((scaled + half) >> clamp.shift, clamp.low, clamp.high).astype(np.int8)


def _run(operation: Operation, read: Mapping[str, Int8]) -> tuple[Int8 | None, Int64 | None]:
    """The int8 result of one operation and its accumulator, each None where the operation has none."""
    if isinstance(operation, IntegerConv | IntegerMatMul):
        x = read[operation.input]
        total = _convolve(operation, x) if isinstance(operation, IntegerConv) else _multiply(operation, x)
        rule = operation.requantize
        return (None if rule is None else requantize(total, rule, read)), total
    if isinstance(operation, IntegerAveragePool):
        x = np.pad(read[operation.input].astype(np.int64), pad_widths(operation.window, read[operation.input].ndim))
        total = np.sum([view for _, view in taps(x, operation.window)], axis=0)
        return requantize(total, operation.requantize, read), total
    if isinstance(operation, IntegerMean):
        x = read[operation.input].astype(np.int64)
        total = x.sum(axis=operation.axes, keepdims=operation.keep_axes)
        return requantize(total, operation.requantize, read), total
    if isinstance(operation, IntegerSum):
        return _add(operation, read), None
    if isinstance(operation, IntegerConcat):
        return _concatenate(operation, read), None
    if isinstance(operation, IntegerMaxPool):
        widths = pad_widths(operation.window, read[operation.input].ndim)
        x = np.pad(read[operation.input], widths, constant_values=-128)
        return np.max([view for _, view in taps(x, operation.window)], axis=0), None
    return _move(operation, read[operation.input]), None


def _convolve(conv: IntegerConv, x: Int8) -> Int64:
    """One matrix product per kernel element: (groups, C_out / g, C_in / g) @ (N, groups, C_in / g, positions)."""
    padded = np.pad(x.astype(np.float64), pad_widths(conv.window, x.ndim))
    channels, inputs = conv.weights.shape[:2]
    weights = conv.weights.astype(np.float64).reshape(conv.groups, channels // conv.groups, *conv.weights.shape[1:])
    total = np.zeros(1)
    for element, view in taps(padded, conv.window):
        columns = view.reshape(len(x), conv.groups, inputs, -1)
        total = total + _tap(weights, element) @ columns
    sizes = output_sizes(conv.window, x.shape[2:])
    return total.reshape(len(x), channels, *sizes).astype(np.int64) + conv.bias.reshape(-1, *[1] * len(sizes))


def _tap(weights: NDArray[np.float64], element: tuple[Any, ...]) -> NDArray[np.float64]:
    """The weights of one kernel element, (groups, C_out / g, C_in / g)."""
    return weights[(..., *element)]


def _multiply(matmul: IntegerMatMul, x: Int8) -> Int64:
    return (x.astype(np.float64) @ matmul.weights.astype(np.float64)).astype(np.int64) + matmul.bias


def _add(addition: IntegerSum, read: Mapping[str, Int8]) -> Int8:
    terms = zip(addition.inputs, addition.multipliers, strict=True)
    total = sum((read[name].astype(np.int64) * multiplier for name, multiplier in terms), start=addition.constant)
    return shift_and_clamp(total, addition.clamp)


def _concatenate(concat: IntegerConcat, read: Mapping[str, Int8]) -> Int8:
    parts = [
        read[name] if rule is None else requantize(read[name].astype(np.int64), rule, read)
        for name, rule in zip(concat.inputs, concat.rescales, strict=True)
    ]
    return np.concatenate(parts, axis=concat.axis)


def _move(move: IntegerMove, x: Int8) -> Int8:
    """The ONNX operators that rearrange values, from their specification."""
    settings: list[Any] = [None if value is None else value.tolist() for value in move.constants] + [None] * 4
    if move.op == "Flatten":
        axis = move.attributes.get("axis", 1) % (x.ndim + 1)
        return x.reshape(math.prod(x.shape[:axis]), -1)
    if move.op == "Reshape":
        keep = not move.attributes.get("allowzero", 0)
        return x.reshape([x.shape[i] if size == 0 and keep else size for i, size in enumerate(settings[0])])
    if move.op == "Transpose":
        return x.transpose(move.attributes.get("perm", range(x.ndim)[::-1]))
    if move.op == "Squeeze":
        return x.squeeze(None if settings[0] is None else tuple(settings[0]))
    if move.op == "Unsqueeze":
        return np.expand_dims(x, tuple(settings[0]))
    if move.op == "Slice":
        return _slice(x, *settings[:4])
    if move.op == "Pad":
        return _pad(x, settings[0], settings[2], move.attributes.get("mode", "constant"))
    raise TypeError(f"no reference for {move.op}")


def _slice(x: Int8, starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None) -> Int8:
    cut = [slice(None)] * x.ndim
    for i, axis in enumerate(axes if axes is not None else range(len(starts))):
        cut[axis] = slice(starts[i], ends[i], steps[i] if steps else 1)
    return x[tuple(cut)]


def _pad(x: Int8, pads: list[int], axes: list[int] | None, mode: str) -> Int8:
    chosen = axes if axes is not None else list(range(x.ndim))
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(chosen):
        widths[axis] = (pads[i], pads[i + len(chosen)])
    if mode == "constant":
        return np.pad(x, widths)
    return np.pad(x, widths, mode={"edge": "edge", "reflect": "reflect", "wrap": "wrap"}[mode])  # type: ignore[call-overload]


def _dequantize(ending: Dequantize, read: Mapping[str, Int8], accumulators: Mapping[str, Int64]) -> Float32:
    source: NDArray[Any] = accumulators[ending.tensor] if ending.from_accumulator else read[ending.tensor]
    scale = ending.scale
    if scale.ndim and ending.axis >= 0:
        scale = scale.reshape(-1, *[1] * (source.ndim - ending.axis - 1))
    return source.astype(np.float32) * scale
