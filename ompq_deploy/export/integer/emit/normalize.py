"""Emit normalizations and Softmax, in int64."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ompq_deploy.export.integer.emit.rescale import requantize, shift, term
from ompq_deploy.export.integer.emit.writer import Writer
from ompq_deploy.export.integer.program import (
    PROBABILITY_BITS,
    IntegerNorm,
    IntegerNormalization,
    IntegerSoftmax,
)

MEAN_OFFSET = 1 << 17
"""Above the magnitude of any grid, so that what is divided is positive and division rounds down."""
ROOT_STEPS = 5
"""From at most twice the root: errors of 1, 1/4, 1/40, 1/3280, 2^-24 and 2^-49 of it."""
LARGEST_POWER = 30


def emit_normalization(writer: Writer, norm: IntegerNormalization) -> None:
    """The formulas of `IntegerNormalization`; offsets make every dividend positive."""
    math = _Arithmetic(writer, f"{norm.output}_norm")
    x = writer.centred(norm.input, f"{norm.output}_source", TensorProto.INT64)
    axes = writer.constant(f"{norm.output}_axes", np.array(norm.axes, np.int64))
    total = writer.node("ReduceSum", [x, axes], f"{norm.output}_sum", keepdims=1)
    n = norm.count
    shifted = math.add(math.times(total, 2, "twice"), n + 2 * n * MEAN_OFFSET, "dividend")
    mean = math.add(math.over(shifted, 2 * n, "quotient"), -MEAN_OFFSET, "mean")
    centred = math.node("Sub", [x, mean], "centred")
    rest = math.node("Sub", [total, math.times(mean, n, "mean_sum")], "rest")
    squares = math.node("Mul", [centred, centred], "squares")
    squares = writer.node("ReduceSum", [squares, axes], f"{norm.output}_square_sum", keepdims=1)
    rest_square = math.node("Mul", [rest, rest], "rest_square")
    excess = math.over(rest_square, n, "rest_mean")
    variance = math.times(math.node("Sub", [squares, excess], "variance"), 4**norm.root_shift, "variance_shifted")
    fraction = math.times(math.modulo(rest_square, n, "rest_remainder"), 4**norm.root_shift, "remainder_shifted")
    exact = math.node("Sub", [variance, math.over(fraction, n, "fraction")], "variance_exact")
    radicand = math.add(exact, norm.epsilon, "radicand")
    root = emit_square_root(writer, radicand, f"{norm.output}_root")
    numerator = math.node("Sub", [math.times(centred, n, "centred_sum"), rest], "numerator")
    numerator = math.times(numerator, 2**norm.quotient_shift, "numerator_shifted")
    offset = math.node("Add", [math.over(root, 2, "half_root"), math.times(root, norm.reach, "offset")], "root_offset")
    quotient = math.node("Div", [math.node("Add", [numerator, offset], "positive_numerator"), root], "quotients")
    scaled = term(writer, math.add(quotient, -norm.reach, "normalized"), norm.multiplier, f"{norm.output}_scaled")
    shift(writer, [scaled], norm.constant, norm.clamp, norm.output, writer.grids[norm.output])


def emit_softmax(writer: Writer, softmax: IntegerSoftmax) -> None:
    """A table of exponentials, their sum, and one division."""
    math = _Arithmetic(writer, f"{softmax.output}_softmax")
    x = writer.centred(softmax.input, f"{softmax.output}_source", TensorProto.INT32)
    axis = writer.constant(f"{softmax.output}_axis", np.array([softmax.axis], np.int64))
    largest = writer.node("ReduceMax", [x, axis], f"{softmax.output}_largest", keepdims=1)
    distance = math.node("Sub", [largest, x], "distance")
    last = writer.constant(f"{softmax.output}_last", np.int32(softmax.exponentials.size - 1))
    distance = math.node("Min", [distance, last], "held_distance")
    entries = writer.constant(f"{softmax.output}_exponentials", softmax.exponentials)
    looked_up = math.node("Gather", [entries, distance], "looked_up")
    powers = writer.node("Cast", [looked_up], f"{softmax.output}_powers", to=TensorProto.INT64)
    total = writer.node("ReduceSum", [powers, axis], f"{softmax.output}_total", keepdims=1)
    scaled = math.times(powers, 1 << PROBABILITY_BITS, "powers_scaled")
    rounded = math.node("Add", [scaled, math.over(total, 2, "half_total")], "powers_rounded")
    requantize(writer, math.node("Div", [rounded, total], "shares"), softmax.requantize, softmax.output)


def emit_norm(writer: Writer, norm: IntegerNorm) -> None:
    """The root of a sum of squares."""
    math = _Arithmetic(writer, f"{norm.output}_root")
    axes = writer.constant(f"{norm.output}_axes", np.array(norm.axes, np.int64))
    x = writer.centred(norm.input, f"{norm.output}_source", TensorProto.INT64)
    squares = math.node("Mul", [x, x], "squares")
    total = writer.node("ReduceSum", [squares, axes], f"{norm.output}_sum", keepdims=int(norm.keep_axes))
    last = writer.constant(f"{norm.output}_new_axis", np.array([-1], np.int64))
    radicand = math.add(math.times(total, 4**norm.root_shift, "total_scaled"), 1, "radicand")
    column = writer.node("Unsqueeze", [radicand, last], f"{norm.output}_column")
    root = emit_square_root(writer, column, f"{norm.output}_roots")
    requantize(writer, writer.node("Squeeze", [root, last], f"{norm.output}_row"), norm.requantize, norm.output)


class _Arithmetic:
    """int64 arithmetic with constants; every output is named after `output` and what it holds."""

    def __init__(self, writer: Writer, output: str) -> None:
        self.writer, self.output = writer, output

    def node(self, op: str, inputs: list[str], name: str) -> str:
        return self.writer.node(op, inputs, f"{self.output}_{name}")

    def add(self, source: str, value: int, name: str) -> str:
        return self._with_constant("Add", source, value, name)

    def times(self, source: str, value: int, name: str) -> str:
        return self._with_constant("Mul", source, value, name)

    def over(self, source: str, value: int, name: str) -> str:
        """Rounded down, where `source` is not negative."""
        return self._with_constant("Div", source, value, name)

    def modulo(self, source: str, value: int, name: str) -> str:
        return self._with_constant("Mod", source, value, name)

    def _with_constant(self, op: str, source: str, value: int, name: str) -> str:
        constant = self.writer.constant(f"{self.output}_{name}_constant", np.int64(value))
        return self.node(op, [source, constant], name)


def emit_square_root(writer: Writer, x: str, output: str) -> str:
    """floor(sqrt(x)) for int64 1 <= x < 2^62 with a last axis of length 1: Newton's method from above."""
    math = _Arithmetic(writer, output)
    powers = np.arange(1, LARGEST_POWER + 1, dtype=np.int64)
    limits = writer.constant(f"{output}_powers_of_4", np.int64(4) ** powers)
    reached = math.node("GreaterOrEqual", [x, limits], "powers_reached")
    reached = writer.node("Cast", [reached], f"{output}_powers_int64", to=TensorProto.INT64)
    weighted = math.node("Mul", [reached, writer.constant(f"{output}_powers_of_2", np.int64(2) ** powers)], "powers")
    last = writer.constant(f"{output}_last_axis", np.array([-1], np.int64))
    root = math.add(writer.node("ReduceSum", [weighted, last], f"{output}_power_sum", keepdims=1), 2, "step0")
    for step in range(1, ROOT_STEPS + 1):
        quotient = math.node("Div", [x, root], f"step{step}_quotient")
        root = math.over(math.node("Add", [root, quotient], f"step{step}_sum"), 2, f"step{step}")
    above = math.node("Greater", [math.node("Mul", [root, root], "square"), x], "above")
    above = writer.node("Cast", [above], f"{output}_excess", to=TensorProto.INT64)
    return math.node("Sub", [root, above], "floor")
