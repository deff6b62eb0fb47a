"""Emit pools and means."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from ompq_deploy.export.integer.emit.products import convolve, shifted
from ompq_deploy.export.integer.emit.rescale import requantize
from ompq_deploy.export.integer.emit.writer import Writer, accumulator, stored, window_attributes
from ompq_deploy.export.integer.program import IntegerAveragePool, IntegerMaxPool, IntegerMean

LAST = np.iinfo(np.int64).max
"""The end of a Slice that takes all there is."""


def emit_average_pool(writer: Writer, pool: IntegerAveragePool) -> None:
    """A depthwise convolution with ones."""
    ones = shifted(writer, f"{pool.output}_ones", np.ones((pool.channels, 1, *pool.window.kernel), np.int8))
    convolve(writer, pool.input, ones, accumulator(pool.output), pool.channels, pool.window)
    requantize(writer, accumulator(pool.output), pool.requantize, pool.output)


def emit_mean(writer: Writer, mean: IntegerMean) -> None:
    """ReduceSum in int32, less what the zero-points add up to; in int64 of a wide tensor."""
    kind = TensorProto.INT64 if writer.grids[mean.input].wide else TensorProto.INT32
    axes = writer.constant(f"{mean.output}_axes", np.array(mean.axes, np.int64))
    zeros = np.asarray(writer.zero(mean.input) * mean.count, helper.tensor_dtype_to_np_dtype(kind))
    cast = writer.node("Cast", [stored(mean.input)], f"{mean.output}_cast", to=kind)
    total = writer.node("ReduceSum", [cast, axes], f"{mean.output}_total", keepdims=int(mean.keep_axes))
    writer.node("Sub", [total, writer.constant(f"{mean.output}_zeros", zeros)], accumulator(mean.output))
    requantize(writer, accumulator(mean.output), mean.requantize, mean.output)


def emit_max_pool(writer: Writer, pool: IntegerMaxPool) -> None:
    """MaxPool on the stored tensor; of a wide one, which onnxruntime does not pool, the maxima of its shifts."""
    if writer.grids[pool.input].wide:
        _emit_wide_max_pool(writer, pool)
        return
    kernel = {"kernel_shape": list(pool.window.kernel)}
    writer.node("MaxPool", [stored(pool.input)], stored(pool.output), **kernel, **window_attributes(pool.window))


def _emit_wide_max_pool(writer: Writer, pool: IntegerMaxPool) -> None:
    """Axis by axis: Slice from every place in the kernel, and Max of the slices, in int32."""
    window, rank = pool.window, len(pool.window.kernel)
    pads = np.array([0, 0, *window.pads[:rank], 0, 0, *window.pads[rank:]], np.int64)
    result = stored(pool.input)
    if pads.any():
        setting = writer.constant(f"{pool.output}_pads", pads)
        least = writer.constant(f"{pool.output}_least", np.int32(np.iinfo(np.int32).min))
        result = writer.node("Pad", [result, setting, least], f"{pool.output}_padded")
    for axis, (length, stride, dilation) in enumerate(
        zip(window.kernel, window.strides, window.dilations, strict=True), start=2
    ):
        slices = []
        for place in range(length):
            start, end = place * dilation, (place - length + 1) * dilation or LAST
            bounds = {"start": start, "end": end, "axis": axis, "step": stride}
            name = f"{pool.output}_axis{axis}_{place}"
            settings = [writer.constant(f"{name}_{key}", np.array([value], np.int64)) for key, value in bounds.items()]
            slices.append(writer.node("Slice", [result, *settings], name))
        result = writer.node("Max", slices, f"{pool.output}_axis{axis}")
    writer.node("Identity", [result], stored(pool.output))
