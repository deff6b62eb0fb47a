"""Run integer programs and compare them: with the NumPy reference bit by bit, with the Q/DQ model in steps."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from ompq_deploy.artifacts import QuantizedGraph
from ompq_deploy.export.integer.check import float_tensors_inside
from ompq_deploy.export.integer.emit import accumulator, integer_model, storage_type, storage_zero, stored
from ompq_deploy.export.integer.program import IntegerConv, IntegerProgram, first_input
from ompq_deploy.export.integer.rules import Window
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.export.qdq_names import QdqNames
from ompq_deploy.simulator import ProgramRun, run_program
from tests import models
from tests.exact import run_exactly
from tests.models import GraphBuilder
from tests.quantized import quantize_graph

ort.set_default_logger_severity(3)
Size = int | str


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def expose(model: onnx.ModelProto, kinds: dict[str, int]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    copy.graph.output.extend(helper.make_tensor_value_info(n, t, None) for n, t in kinds.items() if n not in present)
    return copy


def assert_equal_to_reference(
    program: IntegerProgram, feeds: dict[str, np.ndarray], *, exactly: bool = True
) -> ProgramRun:
    """Run the ONNX model, the reference and, if wanted, `exact.py`, and compare every integer tensor; of the first two
    also accumulators and dequantized floats."""
    model = integer_model(program)
    onnx.checker.check_model(model, full_check=True)
    assert float_tensors_inside(model) == ()
    assert {tensor.name for tensor in model.graph.initializer} <= {
        name for node in model.graph.node for name in node.input
    }
    reference = run_program(program, feeds)
    kinds = {stored(name): storage_type(program.grids[name]) for name in reference.integers}
    sources = {operation.output: first_input(operation) for operation in program.operations}
    for name in reference.accumulators:
        wide = program.grids[sources[name]].wide
        kinds[accumulator(name)] = TensorProto.INT64 if wide else TensorProto.INT32
    kinds |= dict.fromkeys(map(program.real_name, reference.floats), TensorProto.FLOAT)
    found = run(expose(model, kinds), feeds)
    for name, values in reference.integers.items():
        codes = found[stored(name)].astype(int)
        np.testing.assert_array_equal(codes - storage_zero(program.grids[name]), values, err_msg=name)
    if exactly:
        for name, wholes in run_exactly(program, feeds).items():
            np.testing.assert_array_equal(wholes.astype(np.int64), reference.integers[name], err_msg=name)
    for name, totals in reference.accumulators.items():
        np.testing.assert_array_equal(found[accumulator(name)], totals, err_msg=name)
    for name, floats in reference.floats.items():
        np.testing.assert_array_equal(found[program.real_name(name)], floats, err_msg=name)
    return reference


def steps_from_qdq(quantized: QuantizedGraph, program: IntegerProgram, feeds: dict[str, np.ndarray]) -> int:
    """Largest difference from the Q/DQ model in steps, every operation fed the Q/DQ model's integers."""
    names = {name: QdqNames(quantized.graph).quantized(name) for name in quantized.graph.activations}
    found = run(expose(qdq_model(quantized), dict.fromkeys(names.values(), TensorProto.UINT8)), feeds)
    given = {
        name: found[integers].astype(np.int32) - np.int32(program.grids[name].zero_point)
        for name, integers in names.items()
    }
    ours = run_program(program, feeds, given=given).integers
    return max(int(np.abs(ours[name].astype(int) - given[name]).max()) for name in names)


def draw_conv(random: np.random.Generator, rank: int, largest: int, groups: int = 1) -> tuple[IntegerConv, list[int]]:
    """A convolution of `x` with a random window, weights up to `largest`, and sizes it fits into."""
    kernel, strides, dilations = ([int(n) for n in random.integers(1, 4, rank)] for _ in range(3))
    pads = [int(random.integers(k)) for k in kernel * 2]
    sizes = [int((k - 1) * d + random.integers(1, 6)) for k, d in zip(kernel, dilations, strict=True)]
    outputs, channels = (int(n) for n in random.integers(1, 6, 2))
    conv = IntegerConv(
        name="c",
        input="x",
        output="y",
        weights=random.integers(-largest - 1, largest + 1, (outputs * groups, channels, *kernel)).astype(np.int8),
        bias=random.integers(-1000, 1000, outputs * groups),
        window=Window(kernel=tuple(kernel), strides=tuple(strides), dilations=tuple(dilations), pads=tuple(pads)),
        groups=groups,
        requantize=None,
    )
    return conv, sizes


def settings(g: GraphBuilder, name: str, *values: int) -> str:
    return g.constant(np.array(values, np.int64), name)


def with_classifier(build: Callable[[GraphBuilder], str], batch: Size) -> onnx.ModelProto:
    """The operator under test, then Flatten and a classifier, so that its result must be integer."""
    g = GraphBuilder(1)
    tested = build(g)
    opset = 17 if any(node.op_type == "ReduceMean" for node in g.nodes) else 21
    flat = g.node("Flatten", [tested], "flatten")
    probe = onnx.shape_inference.infer_shapes(g.model([1, 4, 9, 9], flat, [1, None], opset=opset), data_prop=True)
    width = next(v for v in probe.graph.value_info if v.name == flat).type.tensor_type.shape.dim[1].dim_value
    return g.model([batch, 4, 9, 9], g.gemm(flat, "classifier", width, 5), [batch, 5], opset=opset)


@functools.cache
def quantized_case(build: Callable[[GraphBuilder], str], batch: Size = "N") -> QuantizedGraph:
    """That network quantized to 8 bits; made once, since many tests ask for it."""
    with tempfile.TemporaryDirectory() as folder:
        return quantize_graph(models.save(with_classifier(build, batch), Path(folder) / "m.onnx"))
