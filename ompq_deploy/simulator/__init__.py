"""Run an integer program in NumPy: slow, small, and independent of ONNX. The reference the integer model must match.

One module per kind of operation; each function reads like its row in docs/integer-spec.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Grid
from ompq_deploy.export.integer.program import (
    Dequantize,
    Int64,
    IntegerAveragePool,
    IntegerConcat,
    IntegerConstant,
    IntegerConv,
    IntegerInterpolation,
    IntegerMatMul,
    IntegerMaxPool,
    IntegerMean,
    IntegerMove,
    IntegerNormalization,
    IntegerProduct,
    IntegerProgram,
    IntegerSetting,
    IntegerSoftmax,
    IntegerSum,
    IntegerTable,
    IntegerTensorProduct,
    IntegerZeroInsertion,
    Operation,
    Values,
)
from ompq_deploy.simulator.elementwise import add, concatenate, look_up, multiply_elements
from ompq_deploy.simulator.linear import convolve, insert_zeros, multiply, multiply_tensors
from ompq_deploy.simulator.moves import compute_setting, interpolate, move
from ompq_deploy.simulator.normalize import normalize, softmax
from ompq_deploy.simulator.pools import axis_sum, max_pool, window_sum
from ompq_deploy.simulator.rescale import requantize

__all__ = ["ProgramRun", "quantize_input", "requantize", "run_program"]


@dataclass(frozen=True, kw_only=True)
class ProgramRun:
    """What a run leaves: every integer tensor, every accumulator (int64, within int32), the dequantized floats."""

    integers: Mapping[str, Values]
    accumulators: Mapping[str, Int64]
    floats: Mapping[str, Float32]


def run_program(
    program: IntegerProgram, inputs: Mapping[str, NDArray[Any]], *, given: Mapping[str, Values] | None = None
) -> ProgramRun:
    """Run `program` on float graph inputs.

    Every operation that reads a tensor of `given` gets that one instead of the computed one, so that one operation's
    error does not reach the next; the run returns what was computed.
    """
    integers = {name: quantize_input(inputs[name], program.grids[name]) for name in program.inputs}
    accumulators: dict[str, Int64] = {}
    read: dict[str, Values] = integers | dict(given or {})
    for operation in program.operations:
        if isinstance(operation, IntegerSetting):
            read[operation.output] = compute_setting(operation, read)
            continue
        result, total = _run(operation, read)
        if total is not None:
            accumulators[operation.output] = total
        if result is not None:
            integers[operation.output] = result
            read.setdefault(operation.output, result)
    floats = {ending.tensor: _dequantize(ending, read, accumulators) for ending in program.dequantized}
    return ProgramRun(integers=integers, accumulators=accumulators, floats=floats)


def quantize_input(x: NDArray[Any], grid: Grid) -> Values:
    """ONNX QuantizeLinear, less the zero-point."""
    return grid.steps(x.astype(np.float32)).astype(np.int32)


def _run(operation: Operation, read: Mapping[str, Values]) -> tuple[Values | None, Int64 | None]:
    """The integer result of one operation and its accumulator, each None where the operation has none."""
    if isinstance(operation, IntegerConv | IntegerMatMul | IntegerAveragePool | IntegerMean):
        total = _accumulate(operation, read[operation.input])
        rule = operation.requantize
        return (None if rule is None else requantize(total, rule, read)), total
    if isinstance(operation, IntegerSum):
        return add(operation, read), None
    if isinstance(operation, IntegerProduct):
        return multiply_elements(operation, read), None
    if isinstance(operation, IntegerTensorProduct):
        return multiply_tensors(operation, read), None
    if isinstance(operation, IntegerZeroInsertion):
        return insert_zeros(operation, read[operation.input]), None
    if isinstance(operation, IntegerNormalization):
        return normalize(operation, read[operation.input]), None
    if isinstance(operation, IntegerSoftmax):
        return softmax(operation, read[operation.input]), None
    if isinstance(operation, IntegerTable):
        return look_up(operation, read[operation.input]), None
    if isinstance(operation, IntegerConstant):
        return operation.values, None
    if isinstance(operation, IntegerConcat):
        return concatenate(operation, read), None
    if isinstance(operation, IntegerMaxPool):
        return max_pool(operation, read[operation.input]), None
    if isinstance(operation, IntegerInterpolation):
        return interpolate(operation, read[operation.input]), None
    if isinstance(operation, IntegerMove):
        constants = [read[value] if isinstance(value, str) else value for value in operation.constants]
        return move(operation, read[operation.input], constants), None
    raise TypeError(f"no reference for {type(operation).__name__}")


def _accumulate(operation: IntegerConv | IntegerMatMul | IntegerAveragePool | IntegerMean, x: Values) -> Int64:
    if isinstance(operation, IntegerConv):
        return convolve(operation, x)
    if isinstance(operation, IntegerMatMul):
        return multiply(operation, x)
    return window_sum(operation, x) if isinstance(operation, IntegerAveragePool) else axis_sum(operation, x)


def _dequantize(ending: Dequantize, read: Mapping[str, Values], accumulators: Mapping[str, Int64]) -> Float32:
    source: NDArray[Any] = accumulators[ending.tensor] if ending.from_accumulator else read[ending.tensor]
    scale = ending.scale
    if scale.ndim and ending.axis >= 0:
        scale = scale.reshape(-1, *[1] * (source.ndim - ending.axis - 1))
    return source.astype(np.float32) * scale
