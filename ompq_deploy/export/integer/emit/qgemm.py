"""Emit a convolution that adds a tensor, under the arithmetic `tensorrt`: onnxruntime's operator QGemm.

    y = saturate(rint(float32(A B + C) scale) + zero-point)

A are the columns of the convolution (see `unfold.py`), B its weights, and C, an int32 matrix of the output's size, the
bias and what is added. Where the convolution is not a matrix product, A B is zero, and C has the accumulator of
ConvInteger too. The kernel that rescales is that of QLinearConv; see `qlinear.py` for the scales.

Channels are last in all of it. Constants with one value per channel are repeated along the last spatial axis, since
onnxruntime broadcasts rows of a few hundred numbers in half the time that rows of 16 take.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ompq_deploy.export.integer.emit.products import Codes, convolve, shifted
from ompq_deploy.export.integer.emit.qlinear import clip_ends, unit_scale
from ompq_deploy.export.integer.emit.unfold import columns, matrix, unfolds
from ompq_deploy.export.integer.emit.writer import Writer, accumulator, stored
from ompq_deploy.export.integer.geometry import output_sizes
from ompq_deploy.export.integer.program import IntegerConv
from ompq_deploy.export.integer.rules import FloatRescale, Skip


def emit_qgemm(writer: Writer, conv: IntegerConv, rule: FloatRescale) -> None:
    """What is added, the matrix product that adds it, and a Clip where the clamp is narrower than uint8."""
    assert rule.skip is not None
    output, channels, rank = conv.output, len(conv.weights), len(conv.window.kernel)
    added = _added(writer, conv, rule.skip)
    if _is_one_product(writer, conv, rule.skip):
        source = Codes(tensor=stored(conv.input), zero=writer.grids[conv.input].zero_point)
        weights = matrix(conv.weights)
        left = columns(writer, source, conv, accumulator(output))
        places = output_sizes(conv.window, writer.sizes(conv.input))
        shape = writer.constant(f"{output}_shape", np.array([-1, *places, channels], np.int64))
    else:
        codes = shifted(writer, f"{output}_shifted_codes", conv.weights)
        total = convolve(writer, conv.input, codes, accumulator(output), conv.groups, conv.window)
        total = writer.channels_to_back(total, f"{output}_accumulator_channels_last", rank)
        added = writer.node("Add", [added, total], f"{output}_total")
        weights = np.zeros((channels, channels), np.int8)
        left = writer.node("Cast", [added], f"{output}_unread", to=TensorProto.UINT8)
        shape = writer.node("Shape", [added], f"{output}_shape")
    one, ends = unit_scale(writer), clip_ends(writer, conv, rule)
    inputs = [
        writer.reshape(left, [-1, len(weights)], f"{output}_left"),
        one,
        writer.zero_point(conv.input),
        writer.constant(f"{output}_codes", weights),
        writer.constant(f"{output}_ratio", rule.scale),
        writer.constant(f"{output}_weight_zero_point", np.zeros(channels, np.int8)),
        writer.reshape(added, [-1, channels], f"{output}_right"),
        one,
        writer.zero_point(output),
    ]
    result = writer.contrib_node("QGemm", inputs, f"{output}_rows", TensorProto.UINT8)
    if ends:
        result = writer.node("Clip", [result, *ends], f"{output}_clipped_rows")
    result = writer.node("Reshape", [result, shape], f"{output}_channels_last")
    writer.channels_to_front(result, stored(output), rank)


def _is_one_product(writer: Writer, conv: IntegerConv, skip: Skip) -> bool:
    """Whether QGemm can do it all: C is not broadcast as a sum is."""
    shape = writer.shapes.get(conv.output)
    return unfolds(writer, conv) and shape is not None and writer.shapes.get(skip.tensor) == shape


def _added(writer: Writer, conv: IntegerConv, skip: Skip) -> str:
    """What is added to the sum of products: the other tensor in steps of the accumulator, and the bias; int32."""
    name = f"{conv.output}_added"
    x = writer.channels_to_back(stored(skip.tensor), f"{name}_channels_last", len(conv.window.kernel))
    x = writer.node("Cast", [x], f"{name}_int32", to=TensorProto.INT32)
    multiplier = _per_channel(writer, conv, f"{name}_multiplier", skip.multiplier.astype(np.int32))
    amount = _per_channel(writer, conv, f"{name}_shift", skip.shift.astype(np.uint32))
    bias = _per_channel(writer, conv, f"{name}_bias", conv.bias.astype(np.int32))
    x = writer.node("Mul", [x, multiplier], f"{name}_scaled")
    x = writer.node("Cast", [x], f"{name}_unsigned", to=TensorProto.UINT32)  # the one type of 32 bits that it shifts
    x = writer.node("BitShift", [x, amount], f"{name}_shifted", direction="RIGHT")
    x = writer.node("Cast", [x], f"{name}_steps", to=TensorProto.INT32)
    return writer.node("Add", [x, bias], f"{name}_with_bias")


def _per_channel(writer: Writer, conv: IntegerConv, name: str, values: NDArray[np.integer]) -> str:
    """A constant (C,); a scalar where all channels have the same."""
    if np.all(values == values[0]):
        return writer.constant(name, values[0])
    sizes = writer.sizes(conv.output)
    return writer.constant(name, np.tile(values, (sizes[-1], 1)) if sizes else values)
