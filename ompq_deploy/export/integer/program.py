"""The integer program: what the integer-only model computes, as plain values.

Every integer tensor T has one grid: T ~ scale[T] * q, where q = code - zero-point lies in [low, high] around zero, so
that zero is the integer 0 whatever the zero-point. Every operation ends in

    q = clip((acc * M + skip * M_skip + 2^(shift-1)) >> shift, low, high)          in int64

where `acc` is an accumulator, int32 of 8-bit tensors and int64 of wide ones, its bias included, and
M / 2^shift ~ scale_acc / scale_out (HAWQ-V3, Yao et al. 2021, section 3.2). Under the arithmetic `tensorrt`
layers between 8-bit grids end in

    q = clip(rint(float32(acc M + skip M_skip) scale), low, high)                  in float32, ties to even

docs/integer-spec.md is the prose; `emit/` writes it as ONNX and `simulator/` runs it in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Grid, PreparedGraph
from ompq_deploy.export.integer.rules import FloatRescale, Int8, Int64, Requantize, ShiftClamp, Values, Window

DYADIC, TENSORRT = ARITHMETICS = "dyadic", "tensorrt"
"""How accumulators become integers on a grid."""
PAD_VALUE_POSITION = 2
PROBABILITY_BITS = 30
"""The fixed point of exponentials and probabilities in Softmax."""


@dataclass(frozen=True, kw_only=True)
class IntegerConv:
    """acc = sum x * weights + bias; weights int8 (C_out, C_in / groups, kernel...), bias (C_out,), within int32 where
    the input is on an 8-bit grid. A `FloatRescale` is for 8-bit grids alone.

    Without `requantize` the accumulator itself is the result, to be dequantized.
    """

    name: str
    input: str
    output: str
    weights: Int8
    bias: Int64
    window: Window
    groups: int
    requantize: Requantize | FloatRescale | None


@dataclass(frozen=True, kw_only=True)
class IntegerMatMul:
    """acc = x @ weights + bias for MatMul and Gemm; weights int8 (K, C_out), bias (C_out,) as in `IntegerConv`."""

    name: str
    input: str
    output: str
    weights: Int8
    bias: Int64
    requantize: Requantize | FloatRescale | None


@dataclass(frozen=True, kw_only=True)
class IntegerSetting:
    """Whole numbers about shapes, computed by an ONNX node as it stands: a setting of some move, on no grid.

    A Shape measures the integer tensor of its input's name; `constants` are the node's constant inputs.
    """

    name: str
    output: str
    node: onnx.NodeProto
    constants: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class IntegerZeroInsertion:
    """`strides` - 1 zeros between neighbours along each spatial axis: what a ConvTranspose convolves.

    `sizes` are the channels and the spatial sizes of the input.
    """

    name: str
    input: str
    output: str
    strides: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class IntegerTensorProduct:
    """acc = left @ right, both computed, batched as in NumPy; int32 where both are on 8-bit grids, else int64."""

    name: str
    inputs: tuple[str, str]
    output: str
    requantize: Requantize


@dataclass(frozen=True, kw_only=True)
class IntegerSum:
    """v = sum_k inputs[k] * multipliers[k] + constant, then shift and clamp.

    Serves Add and Sub of two integer tensors, whatever is affine (Add, Sub, Mul and Div with a constant, BatchNorm:
    `constant` is int64 in units of 2^-shift steps, multipliers may be negative and one per channel), and a Relu or Clip
    on an integer tensor, which is a sum of one.
    """

    name: str
    inputs: tuple[str, ...]
    multipliers: tuple[Int64, ...]
    constant: Int64
    output: str
    clamp: ShiftClamp


@dataclass(frozen=True, kw_only=True)
class IntegerProduct:
    """acc = left * right, broadcast; int64."""

    name: str
    inputs: tuple[str, str]
    output: str
    requantize: Requantize


@dataclass(frozen=True, kw_only=True)
class IntegerQuotient:
    """x / y, both computed, broadcast; int64. With s = 1 for y >= 0, else -1:

    d = max(|y|, floor(|x| / saturating), 1),   p = floor((s x 2^bits + floor(d / 2)) / d),   |p| <= reach

    then requantized. A quotient beyond `saturating` leaves the output's grid, and may be any other beyond it; so may
    one whose divisor is 0.
    """

    name: str
    inputs: tuple[str, str]
    output: str
    saturating: int
    bits: int
    reach: int
    requantize: Requantize


@dataclass(frozen=True, kw_only=True)
class IntegerExtreme:
    """The elementwise largest (`op` is Max) or smallest (Min) of the inputs, broadcast, each first brought to the
    output's grid (None: it lies there)."""

    name: str
    op: str
    inputs: tuple[str, ...]
    rescales: tuple[Requantize | None, ...]
    output: str


@dataclass(frozen=True, kw_only=True)
class IntegerTable:
    """output = table[input - low]: a function evaluated beforehand at every value of the input's grid."""

    name: str
    input: str
    output: str
    low: int
    table: Values


@dataclass(frozen=True, kw_only=True)
class IntegerConstant:
    """A constant of the float model on a grid of its own."""

    name: str
    output: str
    values: Values


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

    `constants` are the operator's further inputs, None where one is left out, as Pad's value always is: it pads
    with zeros. A name stands for a tensor of whole numbers computed at run time (`IntegerSetting`).
    """

    name: str
    op: str
    input: str
    output: str
    attributes: Mapping[str, Any]
    constants: tuple[NDArray[Any] | str | None, ...]


@dataclass(frozen=True, kw_only=True)
class IntegerNormalization:
    """(x - mean) / sqrt(var + epsilon) over `axes` of `count` elements, then one multiplier and constant per channel.

    S = sum q,  m = floor((2 S + n) / 2 n),  d = q - m,  r = S - n m             mean = m + r / n
    V = sum d^2 - floor(r^2 / n),  f = r^2 mod n                                var = (V - f / n) / n
    R = floor(sqrt(V 4^root_shift - floor(f 4^root_shift / n) + epsilon))
    z = floor(((n d - r) 2^quotient_shift + floor(R / 2)) / R)                  |z| <= reach
    output = clip((z multiplier + constant + 2^(shift-1)) >> shift, low, high)
    """

    name: str
    input: str
    output: str
    axes: tuple[int, ...]
    count: int
    epsilon: int
    root_shift: int
    quotient_shift: int
    reach: int
    multiplier: Int64
    constant: Int64
    clamp: ShiftClamp


@dataclass(frozen=True, kw_only=True)
class IntegerNorm:
    """R = floor(sqrt((sum x^2) 4^root_shift + 1)) over `axes`, requantized; int64."""

    name: str
    input: str
    output: str
    axes: tuple[int, ...]
    keep_axes: bool
    root_shift: int
    requantize: Requantize


@dataclass(frozen=True, kw_only=True)
class IntegerSoftmax:
    """e = exponentials[max - q], S = sum e, p = floor((e 2^30 + floor(S / 2)) / S) along `axis`, requantized.

    exponentials[d] = round(2^30 exp(-s d)); beyond the end of the table they are 0, its last entry.
    """

    name: str
    input: str
    output: str
    axis: int
    exponentials: Values
    requantize: Requantize


@dataclass(frozen=True, kw_only=True)
class IntegerInterpolation:
    """Linear or cubic resizing: along each of `axes` in turn, acc[i] = sum_t weights[t, i] * x[indices[t, i]].

    Per axis, `indices` are (T, length), and `weights` too, with an axis of 1 for every further one of x; the weights of
    every element sum to the same power of two, which `requantize` divides by.
    """

    name: str
    input: str
    output: str
    axes: tuple[int, ...]
    indices: tuple[Int64, ...]
    weights: tuple[Int64, ...]
    requantize: Requantize


Operation = (
    IntegerConv
    | IntegerMatMul
    | IntegerSum
    | IntegerProduct
    | IntegerQuotient
    | IntegerExtreme
    | IntegerTable
    | IntegerConstant
    | IntegerConcat
    | IntegerAveragePool
    | IntegerMean
    | IntegerMaxPool
    | IntegerMove
    | IntegerSetting
    | IntegerInterpolation
    | IntegerZeroInsertion
    | IntegerTensorProduct
    | IntegerNormalization
    | IntegerSoftmax
    | IntegerNorm
)


def leaves_accumulator(operation: Operation) -> bool:
    """Whether the accumulator of an operation, without its bias, is a tensor of its own in the ONNX model."""
    if isinstance(operation, IntegerConv | IntegerMatMul):
        rule = operation.requantize
        return not isinstance(rule, FloatRescale) or bool(rule.skip)
    return isinstance(operation, IntegerAveragePool | IntegerMean)


def leaves_integers(operation: Operation) -> bool:
    """Whether an operation computes a tensor on a grid: not only an accumulator to be dequantized, and no setting."""
    if isinstance(operation, IntegerConv | IntegerMatMul):
        return operation.requantize is not None
    return not isinstance(operation, IntegerSetting)


SEVERAL_INPUTS = (
    IntegerSum,
    IntegerProduct,
    IntegerQuotient,
    IntegerExtreme,
    IntegerTensorProduct,
    IntegerConcat,
)
"""Operations that read a tuple of tensors."""


def first_input(operation: Operation) -> str:
    """The first tensor that an operation reads; "" for a constant."""
    if isinstance(operation, IntegerConstant | IntegerSetting):
        return ""
    if isinstance(operation, SEVERAL_INPUTS):
        return operation.inputs[0]
    return operation.input


@dataclass(frozen=True, kw_only=True)
class Dequantize:
    """Where the integers end: float tensor = scale * integers.

    From an accumulator `scale` is float32 (C,) along `axis`; from an integer tensor it is a scalar.
    """

    tensor: str
    from_accumulator: bool
    scale: Float32
    axis: int


@dataclass(frozen=True, kw_only=True)
class IntegerProgram:
    """A quantized graph as integer operations, in execution order, under one of ARITHMETICS.

    Tensor names are the prepared graph's. `grids` has an entry for every integer tensor, the quantized graph inputs
    `inputs` included. `dequantized` are the float tensors at the integer part's end; `tail` are the float nodes
    from there to the graph outputs, often none.
    """

    graph: PreparedGraph
    arithmetic: str
    inputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    grids: Mapping[str, Grid]
    dequantized: tuple[Dequantize, ...]
    tail: tuple[onnx.NodeProto, ...]

    def real_name(self, tensor: str) -> str:
        """The float tensor that the end of the integers leaves in the ONNX model: an input's own name is taken."""
        return f"{tensor}_dequantized_input" if tensor in self.inputs else tensor
