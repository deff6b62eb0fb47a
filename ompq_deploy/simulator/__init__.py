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
    IntegerAveragePool,
    IntegerConcat,
    IntegerConstant,
    IntegerConv,
    IntegerExtreme,
    IntegerInterpolation,
    IntegerMatMul,
    IntegerMaxPool,
    IntegerMean,
    IntegerMove,
    IntegerNorm,
    IntegerNormalization,
    IntegerProduct,
    IntegerProgram,
    IntegerQuotient,
    IntegerSetting,
    IntegerSoftmax,
    IntegerSum,
    IntegerTable,
    IntegerTensorProduct,
    IntegerZeroInsertion,
    Operation,
    leaves_accumulator,
)
from ompq_deploy.export.integer.rules import Int64, Values
from ompq_deploy.simulator.elementwise import add, concatenate, divide, extreme, look_up, multiply_elements
from ompq_deploy.simulator.linear import accumulate, add_bias, insert_zeros, multiply_tensors
from ompq_deploy.simulator.moves import compute_setting, interpolate, move
from ompq_deploy.simulator.normalize import norm, normalize, softmax
from ompq_deploy.simulator.pools import max_pool, sum_up
from ompq_deploy.simulator.rescale import requantize

__all__ = ["ProgramRun", "quantize_input", "requantize", "run_program"]


@dataclass(frozen=True, kw_only=True)
class ProgramRun:
    """What a run leaves: every integer tensor, the accumulators that the ONNX model has too (int64, without bias), the
    dequantized floats."""

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
        if total is not None and leaves_accumulator(operation):
            accumulators[operation.output] = total
        if result is not None:
            integers[operation.output] = result
            read.setdefault(operation.output, result)
    biased = {
        operation.output: add_bias(operation, accumulators[operation.output])
        for operation in program.operations
        if isinstance(operation, IntegerConv | IntegerMatMul) and operation.requantize is None
    }
    floats = {
        ending.tensor: _dequantize(ending, biased[ending.tensor] if ending.from_accumulator else read[ending.tensor])
        for ending in program.dequantized
    }
    return ProgramRun(integers=integers, accumulators=accumulators, floats=floats)


def quantize_input(x: NDArray[Any], grid: Grid) -> Values:
    """ONNX QuantizeLinear, less the zero-point."""
    return grid.steps(x.astype(np.float32)).astype(np.int32)


def _run(operation: Operation, read: Mapping[str, Values]) -> tuple[Values | None, Int64 | None]:
    """The integer result of one operation and its accumulator, each None where the operation has none."""
    if isinstance(operation, IntegerConv | IntegerMatMul):
        total = accumulate(operation, read[operation.input])
        rule = operation.requantize
        return (None if rule is None else requantize(add_bias(operation, total), rule, read)), total
    if isinstance(operation, IntegerAveragePool | IntegerMean):
        total = sum_up(operation, read[operation.input])
        return requantize(total, operation.requantize, read), total
    if isinstance(operation, IntegerSum):
        return add(operation, read), None
    if isinstance(operation, IntegerProduct):
        return multiply_elements(operation, read), None
    if isinstance(operation, IntegerQuotient):
        return divide(operation, read), None
    if isinstance(operation, IntegerExtreme):
        return extreme(operation, read), None
    if isinstance(operation, IntegerNorm):
        return norm(operation, read[operation.input]), None
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


def _dequantize(ending: Dequantize, source: NDArray[Any]) -> Float32:
    scale = ending.scale
    if scale.ndim and ending.axis >= 0:
        scale = scale.reshape(-1, *[1] * (source.ndim - ending.axis - 1))
    return source.astype(np.float32) * scale
