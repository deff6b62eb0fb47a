"""Matrix products, and layers that add a tensor, under the arithmetic `tensorrt`: QGemm, the reference and exact
arithmetic agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import Grid, QuantizedGraph, Samples
from ompq_deploy.export.integer.check import float_tensors_inside
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.emit.linear import emit_conv, emit_matmul
from ompq_deploy.export.integer.emit.writer import Writer
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import TENSORRT, IntegerConv, IntegerMatMul
from ompq_deploy.export.integer.rescale import ACCUMULATOR_LIMIT
from ompq_deploy.export.integer.rules import FloatRescale, Requantize
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.simulator import requantize, run_program
from ompq_deploy.simulator.linear import accumulate, add_bias
from ompq_deploy.verify import verify
from tests import models
from tests.exact import requantize as requantize_exactly
from tests.exact import whole
from tests.integer import assert_equal_to_reference, draw_conv, quantized_case, steps_from_qdq
from tests.integer import run as run_model
from tests.models import GraphBuilder
from tests.quantized import inputs, quantize_graph, with_zero_points
from tests.test_integer_operators import CASES

X, ADDED, OUT = Grid(scale=1.0, zero_point=77), Grid(scale=1.0, zero_point=200), Grid(scale=1.0, zero_point=30)
ZERO_POINTS = [100, 30, 128, 60, 90]
Layer = IntegerConv | IntegerMatMul
Shape = Sequence[int | None]


def draw_rule(random: np.random.Generator, per_channel: tuple[int, ...], skip: str = "s") -> FloatRescale:
    """Multipliers with which small layers stay inside int32, and scales that leave some results inside the clamp."""
    return FloatRescale(
        scale=np.exp2(random.uniform(-20, -8, per_channel)).astype(np.float32),
        low=int(random.choice([OUT.low, -20])),
        high=OUT.high,
        skip=skip,
        multiplier=2 ** random.integers(0, 8, per_channel) if skip else None,
        skip_multiplier=random.integers(0, 2**22, per_channel) if skip else None,
    )


def draw_matmul(random: np.random.Generator, skip: str) -> IntegerMatMul:
    inner, outputs = (int(n) for n in random.integers(1, 40, 2))
    return IntegerMatMul(
        name="c",
        input="x",
        output="y",
        weights=random.integers(-128, 128, (inner, outputs)).astype(np.int8),
        bias=random.integers(-(2**17), 2**17, outputs),
        requantize=draw_rule(random, (outputs,), skip),
    )


def assert_equal(layer: Layer, codes: dict[str, np.ndarray], shapes: dict[str, Shape]) -> None:
    """The ONNX model, the reference and exact arithmetic on stored integers, in a graph where `shapes` are known."""
    writer = Writer({"x": X, "s": ADDED, "y": OUT}, shapes)
    (emit_conv if isinstance(layer, IntegerConv) else emit_matmul)(writer, layer)
    graph = helper.make_graph(
        writer.nodes,
        "one",
        [helper.make_tensor_value_info(f"{name}_quantized", TensorProto.UINT8, None) for name in codes],
        [helper.make_tensor_value_info("y_quantized", TensorProto.UINT8, None)],
        writer.initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    found = run_model(model, {f"{name}_quantized": array for name, array in codes.items()})["y_quantized"]
    read = {name: codes[name].astype(np.int32) - grid.zero_point for name, grid in (("x", X), ("s", ADDED))
            if name in codes}  # fmt: skip
    total = add_bias(layer, accumulate(layer, read["x"]))
    assert layer.requantize is not None
    expected = requantize(total, layer.requantize, read)
    np.testing.assert_array_equal(found.astype(int) - OUT.zero_point, expected)
    exact = requantize_exactly(whole(total), layer.requantize, {name: whole(q) for name, q in read.items()})
    np.testing.assert_array_equal(exact.astype(int), expected)


@pytest.mark.parametrize("form", ["one product", "groups", "sizes not known", "broadcast"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.usefixtures("unfold_all")
def test_any_convolution_gives_the_integers_of_the_reference(rank: int, form: str) -> None:
    random = np.random.default_rng(rank)
    for _ in range(10):
        conv, sizes = draw_conv(random, rank, 127, 2 if form == "groups" else 1)
        conv = replace(conv, requantize=draw_rule(random, (len(conv.weights), *[1] * rank)))
        x = random.integers(0, 256, (2, conv.weights.shape[1] * conv.groups, *sizes)).astype(np.uint8)
        outputs = accumulate(conv, x.astype(np.int32)).shape
        added = random.integers(0, 256, (1, *outputs[1:-1], 1) if form == "broadcast" else outputs).astype(np.uint8)
        shapes: dict[str, Shape] = {"x": (None, *x.shape[1:]), "s": added.shape, "y": (None, *outputs[1:])}
        if form == "sizes not known":
            shapes = {name: (*shape[:2], *[None] * rank) for name, shape in shapes.items()}
        assert_equal(conv, {"x": x, "s": added}, shapes)


@pytest.mark.parametrize("form", ["nothing added", "added", "broadcast"])
@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_any_matrix_product_gives_the_integers_of_the_reference(rank: int, form: str) -> None:
    random = np.random.default_rng(rank)
    for _ in range(10):
        matmul = draw_matmul(random, "" if form == "nothing added" else "s")
        inner, outputs = matmul.weights.shape
        leading = [int(n) for n in random.integers(1, 5, rank - 1)]
        codes = {"x": random.integers(0, 256, (*leading, inner)).astype(np.uint8)}
        if form != "nothing added":
            shape = (*([1] * len(leading) if form == "broadcast" else leading), outputs)
            codes["s"] = random.integers(0, 256, shape).astype(np.uint8)
        assert_equal(matmul, codes, {})


def adding(quantized: QuantizedGraph) -> dict[str, Layer]:
    """The layers that add a tensor, by name."""
    operations = [op for op in lower(quantized, TENSORRT).operations if isinstance(op, Layer)]
    return {op.name: op for op in operations if op.requantize is not None and op.requantize.skip}


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("zero_points", [None, ZERO_POINTS])
def test_the_sum_is_the_real_one(residual_model: Path, bits: int, zero_points: list[int] | None) -> None:
    """Every integer is the nearest to the real sum of the same integers, and that sum fills int32."""
    quantized = quantize_graph(residual_model, bits)
    if zero_points:
        quantized = with_zero_points(quantized, zero_points)
    program, feeds = lower(quantized, TENSORRT), inputs(quantized.graph)
    assert_equal_to_reference(program, feeds)
    integers = run_program(program, feeds).integers
    for name, conv in adding(quantized).items():
        rule = conv.requantize
        assert isinstance(rule, FloatRescale)
        assert rule.multiplier is not None
        assert rule.skip_multiplier is not None
        total = add_bias(conv, accumulate(conv, integers[conv.input]))
        layer = next(layer for layer in quantized.layers if name in layer.layer.nodes)
        s_in, s_skip, s_out = (np.float64(program.grids[part].scale) for part in (conv.input, rule.skip, conv.output))
        real = (s_in * total * layer.scale.reshape(-1, 1, 1) + s_skip * integers[rule.skip]) / s_out
        inside = (real > rule.low) & (real < rule.high)
        assert np.count_nonzero(inside) > 100
        assert np.abs(integers[conv.output] - real)[inside].max() <= 0.5 + 1e-3
        rows = np.abs(conv.weights.astype(int)).reshape(len(conv.weights), -1).sum(axis=1)
        most = program.grids[conv.input].largest * rows + np.abs(conv.bias)
        reach = most * rule.multiplier.ravel() + 255 * rule.skip_multiplier.ravel()
        assert reach.max() <= ACCUMULATOR_LIMIT
        assert reach.min() > ACCUMULATOR_LIMIT / 4


@pytest.mark.parametrize(
    ("factor", "in_float"), [(1e-3, True), (1e-7, False)], ids=["fine steps", "steps too fine for int32"]
)
def test_one_channel_with_finer_steps_than_the_others(residual_model: Path, factor: float, in_float: bool) -> None:
    quantized = quantize_graph(residual_model)
    layers = list(quantized.layers)
    place = next(i for i, layer in enumerate(layers) if layer.layer.name == "project")
    factors = np.where(np.arange(len(layers[place].scale)) == 1, factor, 1)
    layers[place] = replace(layers[place], scale=(layers[place].scale * factors).astype(np.float32))
    quantized = replace(quantized, layers=tuple(layers))
    rule = adding(quantized)["project"].requantize
    assert isinstance(rule, FloatRescale if in_float else Requantize)
    assert_equal_to_reference(lower(quantized, TENSORRT), inputs(quantized.graph))


def test_linear_layers_are_rescaled_in_float(tmp_path: Path) -> None:
    """Of a network of Gemm, MatMul and Add; the last returns its accumulator."""
    g = GraphBuilder()
    first = g.node("Relu", [g.gemm("x", "first", 12, 20)], "first_relu")
    weight = g.constant(np.random.default_rng(1).standard_normal((20, 20)).astype(np.float32), "weight")
    second = g.node("Relu", [g.node("Add", [g.node("MatMul", [first, weight], "second"), first], "sum")], "sum_relu")
    model = g.model(["N", 12], g.gemm(second, "last", 20, 5), ["N", 5])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    program, feeds = lower(quantized, TENSORRT), inputs(quantized.graph, 9)
    rules = [op.requantize for op in program.operations if isinstance(op, IntegerMatMul)]
    assert [type(rule) for rule in rules] == [FloatRescale, FloatRescale, type(None)]
    assert [rule.skip for rule in rules if rule is not None] == ["", "first_relu_out"]
    assert_equal_to_reference(program, feeds)
    assert steps_from_qdq(quantized, program, feeds) <= 1


def test_a_sum_that_int32_holds_too_coarsely_is_rescaled_in_64_bits(residual_model: Path) -> None:
    """Steps of the output so fine that those of the sum are a hundredth of them."""
    quantized = quantize_graph(residual_model)
    output = adding(quantized)["project"].output
    finer = replace(quantized.grids[output], scale=float(np.float32(quantized.grids[output].scale / 1000)))
    quantized = replace(quantized, grids={**quantized.grids, output: finer})
    assert isinstance(adding(quantized)["project"].requantize, Requantize)
    assert_equal_to_reference(lower(quantized, TENSORRT), inputs(quantized.graph))


def test_a_wide_tensor_is_added_in_64_bits() -> None:
    layers = adding(quantized_case(CASES["function_of_a_sum"]))
    assert layers
    assert all(isinstance(layer.requantize, Requantize) for layer in layers.values())


def test_accumulators_of_sums_are_compared(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    reference = assert_equal_to_reference(lower(quantized, TENSORRT), inputs(quantized.graph))
    assert {layer.output for layer in adding(quantized).values()} <= set(reference.accumulators)


@pytest.mark.parametrize("shape", [(4, 0, 6), (0, 3, 6), (0, 0, 6)])
@pytest.mark.parametrize("skip", ["", "s"])
def test_matrix_products_of_nothing(shape: tuple[int, ...], skip: str) -> None:
    matmul = draw_matmul(np.random.default_rng(0), skip)
    matmul = replace(matmul, weights=matmul.weights[:6])
    codes = {"x": np.zeros((*shape[:-1], len(matmul.weights)), np.uint8)}
    if skip:
        codes["s"] = np.zeros((*shape[:-1], matmul.weights.shape[1]), np.uint8)
    assert_equal(matmul, codes, {})


@pytest.mark.usefixtures("unfold_all")
def test_a_batch_of_none(residual_model: Path) -> None:
    model = integer_model(lower(quantize_graph(residual_model), TENSORRT))
    assert any(node.op_type == "QGemm" for node in model.graph.node)
    assert run_model(model, {"x": np.zeros((0, 3, 16, 16), np.float32)})["y"].shape == (0, 10)


def test_a_changed_multiplier_is_found(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    program = lower(quantized, TENSORRT)
    model = integer_model(program)
    name = f"{adding(quantized)['downsample'].output}_skip_multiplier"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    changed = (numpy_helper.to_array(tensor) * 1.01).astype(np.int32)
    tensor.CopyFrom(numpy_helper.from_array(changed, name))
    samples = Samples(inputs=inputs(quantized.graph), labels=None, source="drawn", sha256="")
    verdict = verify(program, model, qdq_model(quantized), samples)
    assert verdict.first_departure is not None
    assert verdict.first_departure.layer == "downsample"


def test_the_check_works_out_what_qgemm_returns(residual_model: Path) -> None:
    """Floats, without a zero-point of its output, whatever the model declares."""
    model = integer_model(lower(quantize_graph(residual_model), TENSORRT))
    assert float_tensors_inside(model) == ()
    product = next(node for node in model.graph.node if node.op_type == "QGemm")
    del product.input[7:]
    assert product.output[0] in float_tensors_inside(model)


def test_the_check_wants_constant_scales(residual_model: Path) -> None:
    model = integer_model(lower(quantize_graph(residual_model), TENSORRT))
    product = next(node for node in model.graph.node if node.op_type == "QGemm")
    ratio = next(tensor for tensor in model.graph.initializer if tensor.name == product.input[4])
    model.graph.initializer.remove(ratio)
    model.graph.input.append(helper.make_tensor_value_info(ratio.name, TensorProto.FLOAT, list(ratio.dims)))
    assert ratio.name in float_tensors_inside(model)
