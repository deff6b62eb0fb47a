"""Emit the operators that rearrange values, and resizing."""

from __future__ import annotations

from functools import reduce

from onnx import TensorProto

from ompq_deploy.export.integer.emit.rescale import requantize
from ompq_deploy.export.integer.emit.writer import Writer, stored
from ompq_deploy.export.integer.program import PAD_VALUE_POSITION, IntegerInterpolation, IntegerMove, IntegerSetting
from ompq_deploy.graph.index import attributes


def emit_move(writer: Writer, move: IntegerMove) -> None:
    """The operator itself, on the stored tensor; padding is stored as the tensor is."""
    inputs = [stored(move.input)]
    for position, value in enumerate(move.constants, start=1):
        if isinstance(value, str):
            inputs.append(value)
        else:
            inputs.append("" if value is None else writer.constant(f"{move.output}_setting{position}", value))
    if move.op == "Pad":
        inputs[PAD_VALUE_POSITION : PAD_VALUE_POSITION + 1] = [writer.stored_zero(move.input)]
    writer.node(move.op, inputs, stored(move.output), **move.attributes)


def emit_setting(writer: Writer, setting: IntegerSetting) -> None:
    """The node as it stands, reading integer tensors and constants of its own."""
    node = setting.node
    named = {name: writer.constant(f"{node.name}_{name}", value) for name, value in setting.constants.items()}
    if node.op_type == "Shape":
        named = {node.input[0]: stored(node.input[0])}
    inputs = [named.get(name, name) for name in node.input]
    writer.node(node.op_type, inputs, setting.output, **attributes(node))


def emit_interpolation(writer: Writer, resize: IntegerInterpolation) -> None:
    """A Gather and a product per weight and axis, in int64."""
    total = writer.centred(resize.input, f"{resize.output}_source", TensorProto.INT64)
    for axis, indices, weights in zip(resize.axes, resize.indices, resize.weights, strict=True):
        name = f"{resize.output}_axis{axis}"
        parts = []
        for t, (index, weight) in enumerate(zip(indices, weights, strict=True)):
            elements = [total, writer.constant(f"{name}_{t}", index)]
            picked = writer.node("Gather", elements, f"{name}_{t}_values", axis=axis)
            factor = writer.constant(f"{name}_{t}_weights", weight)
            parts.append(writer.node("Mul", [picked, factor], f"{name}_{t}_products"))
        total = reduce(lambda a, b: writer.node("Add", [a, b], f"{b}_sum"), parts)
    requantize(writer, total, resize.requantize, resize.output)
