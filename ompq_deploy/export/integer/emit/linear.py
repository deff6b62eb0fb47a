"""Emit convolutions and matrix products."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ompq_deploy.export.integer.emit.blocks import requantize_blocks
from ompq_deploy.export.integer.emit.channels_last import requantize_last, suits_last
from ompq_deploy.export.integer.emit.products import convolve, multiply, over_parts, shifted, summands
from ompq_deploy.export.integer.emit.qgemm import emit_qgemm, rescale_sum
from ompq_deploy.export.integer.emit.qlinear import emit_qlinear_conv
from ompq_deploy.export.integer.emit.rescale import requantize
from ompq_deploy.export.integer.emit.unfold import matrix, unfolded, unfolds
from ompq_deploy.export.integer.emit.writer import Writer, accumulator, biased, stored
from ompq_deploy.export.integer.program import IntegerConv, IntegerMatMul, IntegerTensorProduct, IntegerZeroInsertion
from ompq_deploy.export.integer.rules import FloatRescale, Int64
from ompq_deploy.numerics import along_axis


def emit_conv(writer: Writer, conv: IntegerConv) -> None:
    """ConvInteger or MatMulInteger, the bias, the requantization; or QLinearConv."""
    if isinstance(conv.requantize, FloatRescale) and not conv.requantize.skip:
        emit_qlinear_conv(writer, conv, conv.requantize)
        return
    name, is_product = f"{conv.output}_codes", unfolds(writer, conv)
    if is_product:
        weights = summands(writer, name, matrix(conv.weights))
        over_parts(
            writer, conv.input, accumulator(conv.output),
            lambda part, result: unfolded(writer, part, weights, conv, result),
        )  # fmt: skip
    else:
        codes = shifted(writer, name, conv.weights)
        convolve(writer, conv.input, codes, accumulator(conv.output), conv.groups, conv.window)
    bias = along_axis(conv.bias, conv.weights.ndim - 1, 0)
    if conv.requantize is None:
        _add_bias(writer, conv.output, bias)
    elif isinstance(conv.requantize, FloatRescale):
        rescale_sum(writer, conv.output, conv.requantize, conv.bias, len(conv.window.kernel))
    elif is_product and suits_last(writer, conv, conv.requantize):
        requantize_last(writer, conv.requantize, conv.output, bias)
    else:
        requantize_blocks(writer, accumulator(conv.output), conv.requantize, conv.output, bias)


def emit_matmul(writer: Writer, matmul: IntegerMatMul) -> None:
    """MatMulInteger, the bias, the requantization; or QGemm."""
    if isinstance(matmul.requantize, FloatRescale) and not matmul.requantize.skip:
        emit_qgemm(writer, matmul, matmul.requantize)
        return
    weights = summands(writer, f"{matmul.output}_codes", matmul.weights)
    over_parts(
        writer, matmul.input, accumulator(matmul.output), lambda part, result: multiply(writer, part, weights, result)
    )
    if matmul.requantize is None:
        _add_bias(writer, matmul.output, matmul.bias)
    elif isinstance(matmul.requantize, FloatRescale):
        rescale_sum(writer, matmul.output, matmul.requantize, matmul.bias, 0)
    else:
        requantize(writer, accumulator(matmul.output), matmul.requantize, matmul.output, matmul.bias)


def _add_bias(writer: Writer, output: str, bias: Int64) -> None:
    """The biased accumulator, which is dequantized."""
    added = writer.constant(f"{output}_bias", bias.astype(np.int32))
    writer.node("Add", [accumulator(output), added], biased(output))


def emit_zero_insertion(writer: Writer, insertion: IntegerZeroInsertion) -> None:
    """An axis of length 1 behind every spatial axis, padded with zeros; then both become one, and its end is cut."""
    channels, *sizes = insertion.sizes
    pairs = list(zip(sizes, insertion.strides, strict=True))
    apart = [-1, channels, *(length for size in sizes for length in (size, 1))]
    pads = [0] * len(apart) + [0, 0, *(length for _, stride in pairs for length in (0, stride - 1))]
    joined = [-1, channels, *(size * stride for size, stride in pairs)]
    ends = [(size - 1) * stride + 1 for size, stride in pairs]
    writer.shapes[insertion.output] = (None, channels, *ends)
    result = stored(insertion.input)
    for op, values, name in (("Reshape", apart, "apart"), ("Pad", pads, "padded"), ("Reshape", joined, "joined")):
        setting = writer.constant(f"{insertion.output}_{name}_setting", np.array(values, np.int64))
        zero = [writer.stored_zero(insertion.input)] if op == "Pad" else []
        result = writer.node(op, [result, setting, *zero], f"{insertion.output}_{name}")
    bounds = {"starts": [0] * len(ends), "ends": ends, "axes": list(range(2, 2 + len(ends)))}
    settings = [writer.constant(f"{insertion.output}_{name}", np.array(v, np.int64)) for name, v in bounds.items()]
    writer.node("Slice", [result, *settings], stored(insertion.output))


def emit_tensor_product(writer: Writer, product: IntegerTensorProduct) -> None:
    """MatMulInteger of 8-bit tensors; MatMul in int64 where one is wide."""
    if not any(writer.grids[name].wide for name in product.inputs):
        inputs = [*map(stored, product.inputs), *map(writer.zero_point, product.inputs)]
        total = writer.node("MatMulInteger", inputs, f"{product.output}_total")
    else:
        factors = [
            writer.centred(name, f"{product.output}_factor{position}", TensorProto.INT64)
            for position, name in enumerate(product.inputs)
        ]
        total = writer.node("MatMul", factors, f"{product.output}_total")
    requantize(writer, total, product.requantize, product.output)
