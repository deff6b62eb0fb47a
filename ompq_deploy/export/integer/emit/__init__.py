"""Write an integer program as ONNX, in the prepared graph's opset (21 or later); onnxruntime runs it on the CPU.

An integer tensor T is stored as uint8 codes `T_quantized` = q + z with its zero-point z, for which onnxruntime has
faster kernels and which padding fills with z, the integer 0. A tensor on a wide grid is stored as the int32 q itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ompq_deploy.export.integer.emit.elementwise import (
    emit_concat,
    emit_constant,
    emit_extreme,
    emit_product,
    emit_quotient,
    emit_sum,
    emit_table,
)
from ompq_deploy.export.integer.emit.linear import emit_conv, emit_matmul, emit_tensor_product, emit_zero_insertion
from ompq_deploy.export.integer.emit.moves import emit_interpolation, emit_move, emit_setting
from ompq_deploy.export.integer.emit.normalize import emit_norm, emit_normalization, emit_softmax
from ompq_deploy.export.integer.emit.pools import emit_average_pool, emit_max_pool, emit_mean
from ompq_deploy.export.integer.emit.unfold import unfolds
from ompq_deploy.export.integer.emit.writer import (
    CONTRIB,
    Writer,
    accumulator,
    biased,
    storage_type,
    storage_zero,
    stored,
)
from ompq_deploy.export.integer.program import (
    DYADIC,
    Dequantize,
    IntegerAveragePool,
    IntegerConcat,
    IntegerConstant,
    IntegerConv,
    IntegerExtreme,
    IntegerInterpolation,
    IntegerMatMul,
    IntegerMaxPool,
    IntegerMean,
    IntegerMove,
    IntegerNorm,
    IntegerNormalization,
    IntegerProduct,
    IntegerProgram,
    IntegerQuotient,
    IntegerSetting,
    IntegerSoftmax,
    IntegerSum,
    IntegerTable,
    IntegerTensorProduct,
    IntegerZeroInsertion,
    leaves_accumulator,
)
from ompq_deploy.graph.index import GraphIndex

__all__ = ["accumulator", "integer_model", "storage_type", "storage_zero", "stored"]

EMITTERS: dict[type, Callable[[Writer, Any], None]] = {
    IntegerConv: emit_conv,
    IntegerMatMul: emit_matmul,
    IntegerAveragePool: emit_average_pool,
    IntegerMean: emit_mean,
    IntegerMaxPool: emit_max_pool,
    IntegerSum: emit_sum,
    IntegerProduct: emit_product,
    IntegerTable: emit_table,
    IntegerConstant: emit_constant,
    IntegerQuotient: emit_quotient,
    IntegerExtreme: emit_extreme,
    IntegerConcat: emit_concat,
    IntegerMove: emit_move,
    IntegerInterpolation: emit_interpolation,
    IntegerSetting: emit_setting,
    IntegerZeroInsertion: emit_zero_insertion,
    IntegerTensorProduct: emit_tensor_product,
    IntegerNormalization: emit_normalization,
    IntegerSoftmax: emit_softmax,
    IntegerNorm: emit_norm,
}


def integer_model(program: IntegerProgram) -> onnx.ModelProto:
    """The integer-only model. Graph inputs and outputs are the float model's."""
    writer = Writer(
        program.grids,
        GraphIndex(program.graph.model).shapes,
        channels_first=_channels_first(program),
        on_any_cpu=program.arithmetic == DYADIC,
    )
    convolutions = [operation for operation in program.operations if isinstance(operation, IntegerConv)]
    writer.channels_last = frozenset(conv.input for conv in convolutions if unfolds(writer, conv))
    for name in program.inputs:
        _quantize(writer, name)
    for operation in program.operations:
        EMITTERS[type(operation)](writer, operation)
    for ending in program.dequantized:
        _dequantize(writer, ending, program.real_name(ending.tensor))
    original = program.graph.model.graph
    tail = [_reading_ends(node, program) for node in program.tail]
    used = {name for node in tail for name in node.input}
    graph = helper.make_graph(
        [*writer.nodes, *tail],
        "ompq_integer",
        original.input,
        original.output,
        [*writer.initializers, *(tensor for tensor in original.initializer if tensor.name in used)],
        value_info=writer.declared,
    )
    domains = [helper.make_opsetid(CONTRIB, 1)] if writer.declared else []
    model = helper.make_model(
        graph,
        opset_imports=[*program.graph.model.opset_import, *domains],
        producer_name="ompq-deploy",
        ir_version=program.graph.model.ir_version,
    )
    onnx.checker.check_model(model)
    return model


def _channels_first(program: IntegerProgram) -> frozenset[str]:
    """The tensors that a ConvInteger of several groups reads or makes; an average pool is one."""
    grouped = [
        operation
        for operation in program.operations
        if isinstance(operation, IntegerAveragePool)
        or (isinstance(operation, IntegerConv) and operation.groups > 1 and leaves_accumulator(operation))
    ]
    return frozenset(name for operation in grouped for name in (operation.input, operation.output))


def _quantize(writer: Writer, name: str) -> None:
    """A graph input as an integer tensor; one on a wide grid is quantized to uint16 and centred.

    QuantizeLinear holds 8-bit codes at 255, and those of fewer bits are clipped further.
    """
    grid = writer.grids[name]
    scale = writer.constant(f"{name}_scale", np.float32(grid.scale))
    if not grid.wide:
        narrow = grid.bits < 8
        codes = f"{name}_codes" if narrow else stored(name)
        writer.node("QuantizeLinear", [name, scale, writer.zero_point(name)], codes)
        if narrow:
            last = writer.constant(f"{name}_last", np.uint8((1 << grid.bits) - 1))
            writer.node("Clip", [codes, "", last], stored(name))
        return
    zero_point = writer.constant(f"{name}_zero_point", np.uint16(grid.zero_point))
    codes = writer.node("QuantizeLinear", [name, scale, zero_point], f"{name}_codes")
    codes = writer.node("Cast", [codes], f"{name}_int32", to=TensorProto.INT32)
    writer.node("Sub", [codes, writer.constant(f"{name}_zero", np.int32(grid.zero_point))], stored(name))


def _reading_ends(node: onnx.NodeProto, program: IntegerProgram) -> onnx.NodeProto:
    """A node of the tail, which reads the ends of the integers by the names they have here."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [program.real_name(name) for name in node.input]
    return copy


def _dequantize(writer: Writer, ending: Dequantize, name: str) -> None:
    """The float tensor `name` at the end of the integers.

    Behind a DequantizeLinear of int32 with one scale stands a Sum of that tensor alone: onnxruntime 1.31 repeats such a
    node behind a Reshape that reads it, with a QuantizeLinear to int32 that it cannot run (its issue 25001).
    """
    scale = writer.constant(f"{ending.tensor}_dequantize_scale", ending.scale)
    if not ending.from_accumulator and not writer.grids[ending.tensor].wide:
        zero_point = writer.zero_point(ending.tensor)
        writer.node("DequantizeLinear", [stored(ending.tensor), scale, zero_point], name)
        return
    source = biased(ending.tensor) if ending.from_accumulator else stored(ending.tensor)
    settings = {"axis": ending.axis} if ending.from_accumulator else {}
    alone = ending.scale.size == 1
    output = f"{ending.tensor}_dequantized" if alone else name
    writer.node("DequantizeLinear", [source, scale], output, **settings)
    if alone:
        writer.node("Sum", [output], name)
