"""Convolutions as matrix products: which, and that they are the same integers; weights as sums of safe halves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import Grid
from ompq_deploy.export.integer.emit import integer_model, unfold
from ompq_deploy.export.integer.emit.linear import emit_conv
from ompq_deploy.export.integer.emit.products import LARGEST_SAFE, factors
from ompq_deploy.export.integer.emit.writer import Writer, biased
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import DYADIC, TENSORRT, IntegerConv
from ompq_deploy.export.integer.rules import Window
from ompq_deploy.simulator.linear import add_bias, convolve
from tests import models
from tests.integer import assert_equal_to_reference, run
from tests.models import GraphBuilder
from tests.quantized import inputs, quantize_graph


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def draw_conv(random: np.random.Generator, rank: int, largest: int) -> tuple[IntegerConv, list[int]]:
    """A convolution of one group with a random window, and sizes it fits into."""
    kernel, strides, dilations = ([int(n) for n in random.integers(1, 4, rank)] for _ in range(3))
    pads = [int(random.integers(k)) for k in kernel * 2]
    sizes = [int((k - 1) * d + random.integers(1, 6)) for k, d in zip(kernel, dilations, strict=True)]
    outputs, channels = (int(n) for n in random.integers(1, 6, 2))
    conv = IntegerConv(
        name="c",
        input="x",
        output="y",
        weights=random.integers(-largest - 1, largest + 1, (outputs, channels, *kernel)).astype(np.int8),
        bias=random.integers(-1000, 1000, outputs),
        window=Window(kernel=tuple(kernel), strides=tuple(strides), dilations=tuple(dilations), pads=tuple(pads)),
        groups=1,
        requantize=None,
    )
    return conv, sizes


def emit_one(conv: IntegerConv, grid: Grid, shape: Sequence[int | None]) -> onnx.ModelProto:
    writer = Writer({"x": grid}, {"x": shape})
    emit_conv(writer, conv)
    given = helper.make_tensor_value_info("x_quantized", TensorProto.UINT8, ["N", *shape[1:]])
    result = helper.make_tensor_value_info(biased("y"), TensorProto.INT32, None)
    graph = helper.make_graph(writer.nodes, "one", [given], [result], writer.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("largest", [7, 127])
@pytest.mark.parametrize("rank", [1, 2, 3])
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


def test_constant_positions_are_small_in_the_file() -> None:
    conv, _ = draw_conv(np.random.default_rng(0), 2, 7)
    small, large = (emit_one(conv, Grid(scale=1.0), [None, conv.weights.shape[1], n, n]).ByteSize() for n in (50, 100))
    assert large - small < 10 * (100 - 50) * max(conv.window.kernel)


@pytest.mark.parametrize("shape", [(None, 3, None, 9), ()])
def test_a_convolution_whose_sizes_are_not_known_stays_one(shape: tuple[int | None, ...]) -> None:
    window = Window(kernel=(3, 3), strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0))
    conv = IntegerConv(
        name="c", input="x", output="y", weights=np.ones((2, 3, 3, 3), np.int8), bias=np.zeros(2, np.int64),
        window=window, groups=1, requantize=None,
    )  # fmt: skip
    assert unfold.unfolds(Writer({}, {"x": (None, 3, 9, 9)}), conv)
    assert not unfold.unfolds(Writer({}, {"x": shape}), conv)


def test_so_does_one_whose_columns_are_large(residual_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = lower(quantize_graph(residual_model))
    before = operators(integer_model(program))["ConvInteger"]
    monkeypatch.setattr(unfold, "LARGEST_COLUMNS", 1)
    layers = sum(isinstance(operation, IntegerConv) for operation in program.operations)
    assert before < operators(integer_model(program))["ConvInteger"] == layers
    assert_equal_to_reference(program, inputs(program.graph))


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
    assert len(factors(writer, "all", every)) == 2
    halves = [numpy_helper.to_array(tensor).astype(int) for tensor in writer.initializers]
    assert max(np.abs(half).max() for half in halves) <= LARGEST_SAFE
    np.testing.assert_array_equal(sum(halves), every)
    assert factors(writer, "small", np.clip(every, -64, 64)) == ["small"]
    assert factors(Writer({}, {}, on_any_cpu=False), "whole", every) == ["whole"]
