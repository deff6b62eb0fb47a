"""Emit matrix products, and layers that add a tensor, under the arithmetic `tensorrt`: onnxruntime's operator QGemm.

    y = saturate(rint(float32(A B + C) scale) + zero-point)

Of a matrix product that adds nothing else, A is the input, B the weights and C the bias. Where a tensor is added, C is
the sum of it all, in int32, and A B is zero. The kernel that rescales is that of QLinearConv, see `qlinear.py` for the
scales.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from ompq_deploy.export.integer.emit.channels_last import repeated
from ompq_deploy.export.integer.emit.products import codes_of
from ompq_deploy.export.integer.emit.qlinear import clip_ends, unit_scale
from ompq_deploy.export.integer.emit.writer import Writer, accumulator, stored
from ompq_deploy.export.integer.program import IntegerMatMul
from ompq_deploy.export.integer.rules import FloatRescale, Int8, Int64


def emit_qgemm(writer: Writer, matmul: IntegerMatMul, rule: FloatRescale) -> None:
    """A matrix product with its bias."""
    x, output = codes_of(writer, matmul.input), matmul.output
    batch = writer.node("Shape", [x.tensor], f"{output}_batch", end=-1)
    channels = writer.constant(f"{output}_channels", np.array([len(matmul.bias)], np.int64))
    shape = writer.node("Concat", [batch, channels], f"{output}_shape", axis=0)
    bias = writer.constant(f"{output}_bias", matmul.bias.astype(np.int32))
    rows = _qgemm(writer, output, rule, x.tensor, writer.zero_point(matmul.input), matmul.weights, bias)
    writer.node("Reshape", [rows, shape], stored(output), allowzero=1)


def rescale_sum(writer: Writer, output: str, rule: FloatRescale, bias: Int64, axes: int) -> None:
    """From the accumulator of `output`, to which `bias` and a tensor are added, to its stored tensor. Channels are in
    front of `axes` spatial ones, or last where there are none."""
    sizes = writer.sizes(output) if axes else []
    total = _sum(writer, output, rule, bias, axes, width=sizes[-1] if sizes else 1)
    rows = writer.reshape(total, [-1, len(bias)], f"{output}_total_rows")
    count = writer.node("Shape", [rows], f"{output}_row_count", end=1)
    zero = helper.make_tensor("zero", TensorProto.UINT8, [1], [0])
    column = writer.node("ConstantOfShape", [count], f"{output}_column", value=zero)
    weights = np.zeros((1, len(bias)), np.int8)
    result = _qgemm(writer, output, rule, column, writer.uint8(0), weights, rows)
    last = f"{output}_last" if axes else stored(output)
    if sizes:
        writer.reshape(result, [-1, *sizes, len(bias)], last)
    else:
        writer.node("Reshape", [result, writer.node("Shape", [total], f"{output}_shape")], last, allowzero=1)
    if axes:
        writer.channels_to_front(last, stored(output), axes)


def _sum(writer: Writer, output: str, rule: FloatRescale, bias: Int64, axes: int, width: int) -> str:
    """accumulator M + skip M_skip, bias and zero-point taken into account: int32 (N, sizes..., C). `width` is the
    length of the last spatial axis, 1 where it is not known."""
    assert rule.multiplier is not None
    assert rule.skip_multiplier is not None
    total, skip = accumulator(output), stored(rule.skip)
    if axes:
        total = writer.channels_to_back(total, f"{output}_accumulator_last", axes)
        skip = writer.channels_to_back(skip, f"{output}_skip_last", axes)

    def per_channel(name: str, values: Int64) -> str:
        return writer.constant(f"{output}_{name}", repeated(values, width).astype(np.int32))

    scaled = writer.node("Mul", [total, per_channel("multiplier", rule.multiplier)], f"{output}_scaled")
    skip = writer.node("Cast", [skip], f"{output}_skip_int32", to=TensorProto.INT32)
    skip = writer.node("Mul", [skip, per_channel("skip_multiplier", rule.skip_multiplier)], f"{output}_skip_scaled")
    offset = bias * rule.multiplier.reshape(-1) - writer.zero(rule.skip) * rule.skip_multiplier.reshape(-1)
    total = writer.node("Add", [scaled, skip], f"{output}_without_offset")
    return writer.node("Add", [total, per_channel("offset", offset)], f"{output}_total")


def _qgemm(writer: Writer, output: str, rule: FloatRescale, left: str, zero: str, weights: Int8, added: str) -> str:
    """left (..., K) times weights (K, C), plus `added` (C,) or (N, C), rescaled: codes (N, C), with a Clip where the
    clamp is narrower than uint8."""
    inner, channels = weights.shape
    inputs = [
        writer.reshape(left, [-1, inner], f"{output}_left_rows"),
        unit_scale(writer),
        zero,
        writer.constant(f"{output}_weights", weights),
        writer.constant(f"{output}_ratio", rule.scale.reshape(-1)),
        writer.constant(f"{output}_weight_zero_point", np.zeros(channels, np.int8)),
        added,
        unit_scale(writer),
        writer.zero_point(output),
    ]
    rows = writer.contrib_node("QGemm", inputs, f"{output}_rows", TensorProto.UINT8)
    ends = clip_ends(writer, output, rule)
    return writer.node("Clip", [rows, *ends], f"{output}_clipped_rows") if ends else rows
