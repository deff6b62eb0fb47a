"""The integer program: what the integer-only model computes, as plain values.

Every integer tensor T is int8 with zero-point 0 and one scale: T ~ scale[T] * q. Every operation ends in

    q = clip((acc * M + skip * M_skip + 2^(shift-1)) >> shift, low, high)          in int64

where `acc` is an int32 accumulator and M / 2^shift ~ scale_acc / scale_out (HAWQ-V3, Yao et al. 2021, section 3.2).
docs/integer-spec.md is the prose; `emit.py` writes it as ONNX and `simulator.py` runs it in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Int32, PreparedGraph

Int8 = NDArray[np.int8]
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
    """From an accumulator to int8: multiply, add, shift, clamp.

    `multiplier` and `skip_multiplier` have the shape of the shift. `skip` names an integer tensor added before the
    shift, so that the sum is rounded once; "" for none.
    """

    multiplier: Int64
    clamp: ShiftClamp
    skip: str = ""
    skip_multiplier: Int64 | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """A sliding window over the spatial axes: one entry per axis; `pads` are all begins, then all ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class IntegerConv:
    """acc = sum x * weights + bias; weights int8 (C_out, C_in / groups, kernel...), bias int32 (C_out,).

    Without `requantize` the accumulator itself is the result, to be dequantized.
    """

    name: str
    input: str
    output: str
    weights: Int8
    bias: Int32
    window: Window
    groups: int
    requantize: Requantize | None


@dataclass(frozen=True, kw_only=True)
class IntegerMatMul:
    """acc = x @ weights + bias for MatMul and Gemm; weights int8 (K, C_out), bias int32 (C_out,)."""

    name: str
    input: str
    output: str
    weights: Int8
    bias: Int32
    requantize: Requantize | None


@dataclass(frozen=True, kw_only=True)
class IntegerSum:
    """v = sum_k inputs[k] * multipliers[k] + constant, then shift and clamp.

    Serves Add of two integer tensors, Add of a constant (`constant`, int64 in units of 2^-shift steps) and a
    Relu or Clip on an integer tensor, which is a sum of one.
    """

    name: str
    inputs: tuple[str, ...]
    multipliers: tuple[Int64, ...]
    constant: Int64
    output: str
    clamp: ShiftClamp


@dataclass(frozen=True, kw_only=True)
class IntegerConcat:
    """Concatenation along `axis`; an input on another grid is first brought to the output's (None: same grid)."""

    name: str
    inputs: tuple[str, ...]
    rescales: tuple[Requantize | None, ...]
    output: str
    axis: int


@dataclass(frozen=True, kw_only=True)
class IntegerAveragePool:
    """acc = sum over the window, padding counted as 0; the multiplier holds 1 / count."""

    name: str
    input: str
    output: str
    channels: int
    window: Window
    requantize: Requantize


@dataclass(frozen=True, kw_only=True)
class IntegerMean:
    """acc = sum over `axes` of `count` elements; the multiplier holds 1 / count."""

    name: str
    input: str
    output: str
    axes: tuple[int, ...]
    keep_axes: bool
    count: int
    requantize: Requantize


@dataclass(frozen=True, kw_only=True)
class IntegerMaxPool:
    """The largest value under the window; padding never wins. Input and output share one grid."""

    name: str
    input: str
    output: str
    window: Window


@dataclass(frozen=True, kw_only=True)
class IntegerMove:
    """An ONNX operator that rearranges values (Reshape, Slice, Pad with zeros ...): input and output share one grid.

    `constants` are the operator's further inputs, None where one is left out; Pad's value is always integer 0.
    """

    name: str
    op: str
    input: str
    output: str
    attributes: Mapping[str, Any]
    constants: tuple[NDArray[Any] | None, ...]


Operation = (
    IntegerConv
    | IntegerMatMul
    | IntegerSum
    | IntegerConcat
    | IntegerAveragePool
    | IntegerMean
    | IntegerMaxPool
    | IntegerMove
)


@dataclass(frozen=True, kw_only=True)
class Dequantize:
    """Where the integers end: float tensor = scale * integers.

    From an accumulator `scale` is float32 (C,) along `axis`; from an int8 tensor it is a scalar.
    """

    tensor: str
    from_accumulator: bool
    scale: Float32
    axis: int


@dataclass(frozen=True, kw_only=True)
class IntegerProgram:
    """A quantized graph as integer operations, in execution order.

    Tensor names are the prepared graph's. `scales` has an entry for every int8 tensor, the quantized graph inputs
    `inputs` included. `dequantized` are the float tensors at the integer part's end; `tail` are the float nodes
    from there to the graph outputs, often none.
    """

    graph: PreparedGraph
    inputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    scales: Mapping[str, float]
    dequantized: tuple[Dequantize, ...]
    tail: tuple[onnx.NodeProto, ...]
