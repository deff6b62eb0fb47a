"""Write an integer program as ONNX, in the prepared graph's opset (21 or later); onnxruntime runs it on the CPU.

An int8 tensor T is stored as uint8 `T_quantized` = q + 128 with zero-point 128, for which onnxruntime has faster
kernels and which padding fills with 128, the integer 0. With acc the int32 tensor `T_accumulator`,

    T_quantized = clip(((acc M + skip_quantized M_skip + offset) >> shift) - (reach - 128), low + 128, high + 128)
    offset      = 2^(shift-1) + (reach << shift) - 128 M_skip

The number shifted is never negative, so `>>` may act on uint64, the type onnxruntime shifts. The clamp is in int32:
onnxruntime 1.31 compares int64 wrongly in Clip, Max and Min (2^31 <= x < 2^32 counts as negative on x86; its PR 32475).
"""

from __future__ import annotations

from functools import singledispatchmethod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.export.integer.program import (
    Dequantize,
    IntegerAveragePool,
    IntegerConcat,
    IntegerConv,
    IntegerMatMul,
    IntegerMaxPool,
    IntegerMean,
    IntegerMove,
    IntegerProgram,
    IntegerSum,
    Requantize,
    ShiftClamp,
    Window,
)

STORED_ZERO = 128
ZERO_POINT = "stored_zero"


def integer_model(program: IntegerProgram) -> onnx.ModelProto:
    """The integer-only model. Graph inputs and outputs are the float model's."""
    writer = _Writer()
    for name in program.inputs:
        scale = writer.constant(f"{name}_scale", np.float32(program.scales[name]))
        writer.node("QuantizeLinear", [name, scale, ZERO_POINT], stored(name))
    for operation in program.operations:
        writer.emit(operation)
    for ending in program.dequantized:
        writer.dequantize(ending)
    original = program.graph.model.graph
    used = {name for node in program.tail for name in node.input}
    graph = helper.make_graph(
        [*writer.nodes, *program.tail],
        "ompq_integer",
        original.input,
        original.output,
        [*writer.initializers, *(tensor for tensor in original.initializer if tensor.name in used)],
    )
    model = helper.make_model(
        graph,
        opset_imports=list(program.graph.model.opset_import),
        producer_name="ompq-deploy",
        ir_version=program.graph.model.ir_version,
    )
    onnx.checker.check_model(model)
    return model


def stored(name: str) -> str:
    """The uint8 tensor that holds an integer tensor."""
    return f"{name}_quantized"


def accumulator(name: str) -> str:
    """The int32 accumulator that an integer tensor is requantized from, or that a float tensor is dequantized from."""
    return f"{name}_accumulator"


class _Writer:
    """Collects nodes and initializers, in order."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.constant(ZERO_POINT, np.uint8(STORED_ZERO))

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}_{op}", **attributes))
        return output

    def shifted(self, name: str, weights: NDArray[np.int8]) -> str:
        """Weights stored as activations are, uint8 with zero-point 128: older onnxruntime convolves no others."""
        return self.constant(name, (weights.astype(np.int16) + STORED_ZERO).astype(np.uint8))

    def convolve(self, tensor: str, codes: str, output: str, groups: int, window: Window) -> str:
        """ConvInteger of an integer tensor with shifted weights."""
        inputs = [stored(tensor), codes, ZERO_POINT, ZERO_POINT]
        return self.node("ConvInteger", inputs, output, group=groups, **_window_attributes(window))

    @singledispatchmethod
    def emit(self, operation: object) -> None:
        """Append the nodes of one operation."""
        raise TypeError(f"no ONNX form for {type(operation).__name__}")

    @emit.register
    def _(self, conv: IntegerConv) -> None:
        codes = self.shifted(f"{conv.output}_codes", conv.weights)
        total = self.convolve(conv.input, codes, f"{conv.output}_total", conv.groups, conv.window)
        bias = self.constant(f"{conv.output}_bias", _along_channels(conv.bias, conv.weights.ndim))
        self.node("Add", [total, bias], accumulator(conv.output))
        if conv.requantize is not None:
            self.requantize(accumulator(conv.output), conv.requantize, conv.output)

    @emit.register
    def _(self, matmul: IntegerMatMul) -> None:
        weights = self.constant(f"{matmul.output}_codes", matmul.weights)
        total = self.node("MatMulInteger", [stored(matmul.input), weights, ZERO_POINT], f"{matmul.output}_total")
        bias = self.constant(f"{matmul.output}_bias", matmul.bias)
        self.node("Add", [total, bias], accumulator(matmul.output))
        if matmul.requantize is not None:
            self.requantize(accumulator(matmul.output), matmul.requantize, matmul.output)

    @emit.register
    def _(self, pool: IntegerAveragePool) -> None:
        ones = self.shifted(f"{pool.output}_ones", np.ones((pool.channels, 1, *pool.window.kernel), np.int8))
        self.convolve(pool.input, ones, accumulator(pool.output), pool.channels, pool.window)
        self.requantize(accumulator(pool.output), pool.requantize, pool.output)

    @emit.register
    def _(self, mean: IntegerMean) -> None:
        axes = self.constant(f"{mean.output}_axes", np.array(mean.axes, np.int64))
        zeros = self.constant(f"{mean.output}_zeros", np.int32(STORED_ZERO * mean.count))
        wide = self.node("Cast", [stored(mean.input)], f"{mean.output}_int32", to=TensorProto.INT32)
        total = self.node("ReduceSum", [wide, axes], f"{mean.output}_total", keepdims=int(mean.keep_axes))
        self.node("Sub", [total, zeros], accumulator(mean.output))
        self.requantize(accumulator(mean.output), mean.requantize, mean.output)

    @emit.register
    def _(self, addition: IntegerSum) -> None:
        offset = addition.constant - STORED_ZERO * sum(addition.multipliers)
        terms = [
            self.term(stored(name), multiplier, f"{addition.output}_term{position}")
            for position, (name, multiplier) in enumerate(zip(addition.inputs, addition.multipliers, strict=True))
        ]
        self.shift(terms, offset, addition.clamp, addition.output)

    @emit.register
    def _(self, concat: IntegerConcat) -> None:
        parts = []
        for position, (name, rescale) in enumerate(zip(concat.inputs, concat.rescales, strict=True)):
            if rescale is None:
                parts.append(stored(name))
                continue
            part = f"{concat.output}_part{position}"
            term = self.term(stored(name), rescale.multiplier, f"{part}_term")
            self.shift([term], -STORED_ZERO * rescale.multiplier, rescale.clamp, part)
            parts.append(stored(part))
        self.node("Concat", parts, stored(concat.output), axis=concat.axis)

    @emit.register
    def _(self, pool: IntegerMaxPool) -> None:
        kernel = {"kernel_shape": list(pool.window.kernel)}
        self.node("MaxPool", [stored(pool.input)], stored(pool.output), **kernel, **_window_attributes(pool.window))

    @emit.register
    def _(self, move: IntegerMove) -> None:
        inputs = [stored(move.input)]
        for position, value in enumerate(move.constants, start=1):
            inputs.append("" if value is None else self.constant(f"{move.output}_setting{position}", value))
        if move.op == "Pad":
            inputs[2:3] = [ZERO_POINT]
        self.node(move.op, inputs, stored(move.output), **move.attributes)

    def requantize(self, source: str, requantize: Requantize, output: str) -> None:
        """From an int32 accumulator to the stored tensor of `output`."""
        terms = [self.term(source, requantize.multiplier, f"{output}_scaled")]
        offset = np.zeros((), np.int64)
        if requantize.skip_multiplier is not None:
            terms.append(self.term(stored(requantize.skip), requantize.skip_multiplier, f"{output}_skip"))
            offset = -STORED_ZERO * requantize.skip_multiplier
        self.shift(terms, offset, requantize.clamp, output)

    def term(self, source: str, multiplier: NDArray[np.int64], name: str) -> str:
        """source * multiplier in int64."""
        wide = self.node("Cast", [source], f"{name}_int64", to=TensorProto.INT64)
        return self.node("Mul", [wide, self.constant(f"{name}_multiplier", multiplier)], name)

    def shift(self, terms: list[str], offset: NDArray[np.int64], clamp: ShiftClamp, output: str) -> None:
        """Add up int64 terms, shift right rounding half up, clamp, and store."""
        total = terms[0]
        for position, term in enumerate(terms[1:]):
            total = self.node("Add", [total, term], f"{output}_sum{position}")
        rounding = offset + (np.int64(1) << (clamp.shift - 1)) + (clamp.reach << clamp.shift)
        total = self.node("Add", [total, self.constant(f"{output}_offset", rounding)], f"{output}_positive")
        total = self.node("Cast", [total], f"{output}_unsigned", to=TensorProto.UINT64)
        amount = self.constant(f"{output}_shift", clamp.shift.astype(np.uint64))
        total = self.node("BitShift", [total, amount], f"{output}_shifted", direction="RIGHT")
        total = self.node("Cast", [total], f"{output}_narrow", to=TensorProto.INT32)
        excess = self.constant(f"{output}_excess", (clamp.reach - STORED_ZERO).astype(np.int32))
        total = self.node("Sub", [total, excess], f"{output}_unclamped")
        low = self.constant(f"{output}_low", np.int32(clamp.low + STORED_ZERO))
        high = self.constant(f"{output}_high", np.int32(clamp.high + STORED_ZERO))
        total = self.node("Clip", [total, low, high], f"{output}_clamped")
        self.node("Cast", [total], stored(output), to=TensorProto.UINT8)

    def dequantize(self, ending: Dequantize) -> None:
        """The float tensor at the end of the integers."""
        scale = self.constant(f"{ending.tensor}_dequantize_scale", ending.scale)
        if ending.from_accumulator:
            self.node("DequantizeLinear", [accumulator(ending.tensor), scale], ending.tensor, axis=ending.axis)
        else:
            self.node("DequantizeLinear", [stored(ending.tensor), scale, ZERO_POINT], ending.tensor)


def _along_channels(vector: NDArray[np.int32], rank: int) -> NDArray[np.int32]:
    return vector.reshape(-1, *[1] * (rank - 2))


def _window_attributes(window: Window) -> dict[str, list[int]]:
    return {"strides": list(window.strides), "dilations": list(window.dilations), "pads": list(window.pads)}
