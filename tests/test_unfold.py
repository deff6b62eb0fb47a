"""Convolutions as matrix products: which, and that they are the same integers; weights as sums of safe halves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import Grid, Samples
from ompq_deploy.export.integer.emit import integer_model, unfold
from ompq_deploy.export.integer.emit.linear import emit_conv
from ompq_deploy.export.integer.emit.products import LARGEST_SAFE, summands
from ompq_deploy.export.integer.emit.writer import Writer, biased
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import DYADIC, TENSORRT, IntegerConv
from ompq_deploy.export.integer.rules import Window
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.simulator.linear import add_bias, convolve
from ompq_deploy.verify import verify
from tests import models
from tests.integer import assert_equal_to_reference, draw_conv, quantized_case, run
from tests.models import GraphBuilder
from tests.quantized import inputs, quantize_graph
from tests.test_integer import CASES
from tests.test_integer_operators import CASES as OPERATOR_CASES

CONVOLUTIONS = [name for name in CASES | OPERATOR_CASES if name.startswith("conv")]


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def emit_one(conv: IntegerConv, grid: Grid, shape: Sequence[int | None]) -> onnx.ModelProto:
    writer = Writer({"x": grid}, {"x": shape})
    emit_conv(writer, conv)
    given = helper.make_tensor_value_info("x_quantized", TensorProto.UINT8, ["N", *shape[1:]])
    result = helper.make_tensor_value_info(biased("y"), TensorProto.INT32, None)
    graph = helper.make_graph(writer.nodes, "one", [given], [result], writer.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("largest", [7, 127])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.usefixtures("unfold_all")
def test_any_window_gives_the_integers_of_the_reference(rank: int, largest: int) -> None:
    random = np.random.default_rng(10 * rank + largest)
    for _ in range(25):
        conv, sizes = draw_conv(random, rank, largest)
        grid = Grid(scale=1.0, zero_point=int(random.choice([0, 77, 128, 255])))
        model = emit_one(conv, grid, [None, conv.weights.shape[1], *sizes])
        assert operators(model)["ConvInteger"] == 0
        codes = random.choice([0, 1, 128, 254, 255], (2, conv.weights.shape[1], *sizes)).astype(np.uint8)
        expected = add_bias(conv, convolve(conv, codes.astype(np.int32) - grid.zero_point))
        np.testing.assert_array_equal(run(model, {"x_quantized": codes})[biased("y")], expected)


@pytest.mark.parametrize("case", [*CONVOLUTIONS, "residual_with_constant", "unfused_sum"])
@pytest.mark.usefixtures("unfold_all")
def test_convolutions_in_a_network(case: str) -> None:
    quantized = quantized_case((CASES | OPERATOR_CASES)[case])
    for arithmetic in (DYADIC, TENSORRT):
        assert_equal_to_reference(lower(quantized, arithmetic), inputs(quantized.graph))


@pytest.mark.usefixtures("unfold_all")
def test_a_batch_of_none(residual_model: Path) -> None:
    model = integer_model(lower(quantize_graph(residual_model)))
    assert operators(model)["MatMulInteger"] > 1
    assert run(model, {"x": np.zeros((0, 3, 16, 16), np.float32)})["y"].shape == (0, 10)


@pytest.mark.usefixtures("unfold_all")
def test_constant_positions_are_small_in_the_file() -> None:
    conv, _ = draw_conv(np.random.default_rng(0), 2, 7)
    small, large = (emit_one(conv, Grid(scale=1.0), [None, conv.weights.shape[1], n, n]).ByteSize() for n in (50, 100))
    assert large - small < 10 * (100 - 50) * max(conv.window.kernel)


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.usefixtures("unfold_all")
def test_a_weight_changed_in_one_half_is_found(half: int, residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    program = lower(quantized)
    model = integer_model(program)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == f"main1_relu_out_codes_half{half}")
    changed = numpy_helper.to_array(tensor).copy()
    changed[5, 2] ^= 1
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    samples = Samples(inputs=inputs(quantized.graph), labels=None, source="drawn", sha256="")
    verdict = verify(program, model, qdq_model(quantized), samples)
    assert not verdict.matches_reference
    assert verdict.first_departure is not None
    assert verdict.first_departure.layer == "main1"


def unfolds(weights: tuple[int, ...], shape: tuple[int | None, ...], groups: int = 1) -> bool:
    rank = len(weights) - 2
    window = Window(kernel=weights[2:], strides=(1,) * rank, dilations=(1,) * rank, pads=(1,) * 2 * rank)
    conv = IntegerConv(
        name="c", input="x", output="y", weights=np.ones(weights, np.int8), bias=np.zeros(weights[0], np.int64),
        window=window, groups=groups, requantize=None,
    )  # fmt: skip
    return unfold.unfolds(Writer({}, {"x": shape}), conv)


def test_which_convolutions_become_products() -> None:
    assert unfolds((16, 16, 3, 3), (None, 16, 32, 32))
    assert unfolds((64, 16, 3), (None, 16, 32))
    assert not unfolds((16, 16, 3, 3), (None, 16, None, 32)), "sizes are not known"
    assert not unfolds((16, 16, 3, 3), ()), "nor is the rank"
    assert not unfolds((16, 16, 3, 3), (None, 32, 32, 32), groups=2)
    assert not unfolds((16, 3, 3, 3), (None, 3, 32, 32)), "the first layer"
    assert not unfolds((2, 32, 3, 3), (None, 32, 32, 32)), "a head of few channels"
    assert not unfolds((16, 32, 9, 9), (None, 32, 32, 32)), "columns take ten times what the float tensors do"


def test_the_first_layer_becomes_one_where_the_next_does(tmp_path: Path) -> None:
    """Otherwise onnxruntime would transpose what follows, in 64 bits where it is added up."""
    g = GraphBuilder()
    first = g.node("Relu", [g.conv("x", "first", 3, 16)], "relu")
    second = g.conv(first, "second", 16, 16)
    model = g.model(["N", 3, 16, 16], g.node("Add", [first, second], "added"), ["N", 16, 16, 16])
    program = lower(quantize_graph(models.save(model, tmp_path / "m.onnx")))
    assert operators(integer_model(program))["ConvInteger"] == 0
    assert_equal_to_reference(program, inputs(program.graph))


@pytest.mark.usefixtures("unfold_all")
def test_a_kernel_of_one_place_beside_a_grouped_convolution_stays_one(tmp_path: Path) -> None:
    """Under `tensorrt` the grouped one is a QLinearConv, which onnxruntime runs with channels last."""
    g = GraphBuilder()
    first = g.conv("x", "first", 4, 8, kernel=1)
    grouped = g.conv(first, "grouped", 8, 8, groups=8)
    narrow = g.conv(grouped, "narrow", 8, 4, kernel=1)
    added = g.node("Add", [narrow, "x"], "added")
    model = g.model(["N", 4, 9, 9], g.conv(added, "last", 4, 2, kernel=1), ["N", 2, 9, 9])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"), 4)
    dyadic, tensorrt = (operators(integer_model(lower(quantized, name))) for name in (DYADIC, TENSORRT))
    assert (dyadic["ConvInteger"], dyadic["MatMulInteger"]) == (3, 1)
    assert (tensorrt["ConvInteger"], tensorrt["MatMulInteger"], tensorrt["QLinearConv"]) == (0, 2, 2)


def test_large_weights_are_halved_where_any_cpu_must_agree() -> None:
    every = np.arange(-128, 128).astype(np.int8).reshape(16, 16)
    writer = Writer({}, {})
    assert len(summands(writer, "all", every)) == 2
    halves = [numpy_helper.to_array(tensor).astype(int) for tensor in writer.initializers]
    assert max(np.abs(half).max() for half in halves) <= LARGEST_SAFE
    np.testing.assert_array_equal(sum(halves), every)
    assert summands(writer, "small", np.clip(every, -64, 64)) == ["small"]
    assert summands(Writer({}, {}, on_any_cpu=False), "whole", every) == ["whole"]
