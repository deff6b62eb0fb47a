"""Emit a convolution under the arithmetic `tensorrt`: ONNX QLinearConv, whose kernel in onnxruntime computes it.

That kernel (MLAS, `MlasRequantizeOutput`) adds the int32 bias to the int32 sum, converts to float32, multiplies by
x_scale w_scale[c] / y_scale, clamps, and rounds to nearest, ties to even. x_scale and y_scale are 1 here and w_scale is
the whole ratio, so that no runtime can round their quotient in another way. Every node has a zero-point of the weights
of its own: onnxruntime 1.31 does not start with `session.x64quantprecision` where several share one.
"""

from __future__ import annotations

import numpy as np

from ompq_deploy.export.integer.emit.writer import Writer, stored, window_attributes
from ompq_deploy.export.integer.program import IntegerConv
from ompq_deploy.export.integer.rules import FloatRescale


def emit_qlinear_conv(writer: Writer, conv: IntegerConv, rule: FloatRescale) -> None:
    """One node, and a Clip where the clamp is narrower than uint8."""
    one = unit_scale(writer)
    inputs = [
        stored(conv.input),
        one,
        writer.zero_point(conv.input),
        writer.constant(f"{conv.output}_codes", conv.weights),
        writer.constant(f"{conv.output}_ratio", rule.scale.reshape(-1)),
        writer.constant(f"{conv.output}_weight_zero_point", np.int8(0)),
        one,
        writer.zero_point(conv.output),
        writer.constant(f"{conv.output}_bias", conv.bias.astype(np.int32)),
    ]
    ends = clip_ends(writer, conv.output, rule)
    result = f"{conv.output}_saturated" if ends else stored(conv.output)
    writer.node("QLinearConv", inputs, result, group=conv.groups, **window_attributes(conv.window))
    if ends:
        writer.node("Clip", [result, *ends], stored(conv.output))


def unit_scale(writer: Writer) -> str:
    """The constant scale 1."""
    return writer.shared("unit_scale", np.float32(1))


def clip_ends(writer: Writer, output: str, rule: FloatRescale) -> list[str]:
    """The constants between which codes are clipped; none where uint8 ends there."""
    zero = writer.grids[output].zero_point
    ends = [rule.low + zero, rule.high + zero]
    return [] if ends == [0, 255] else [writer.uint8(end) for end in ends]
