"""The integer-only ONNX model equals the NumPy reference in every integer, for every operator it covers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import Grid, QuantizedGraph, QuantizedLayer
from ompq_deploy.errors import BackendMissing
from ompq_deploy.export.integer.check import float_tensors_inside
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import IntegerConv, IntegerMatMul
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.export.qdq_names import QdqNames
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize.biases import float_biases
from ompq_deploy.weight_scale import quantize_weight
from tests import models
from tests.integer import Size, assert_equal_to_reference, quantized_case, run, settings, steps_from_qdq
from tests.models import GraphBuilder
from tests.quantized import inputs, quantize_graph, with_zero_points

SAMPLES = 3


def convolution(**attributes: object) -> Callable[[GraphBuilder], str]:
    return lambda g: g.conv("x", "tested", 4, 8, **attributes)


def auto_padded(auto_pad: str) -> Callable[[GraphBuilder], str]:
    def build(g: GraphBuilder) -> str:
        weight = g.constant(g.random.standard_normal((8, 4, 4, 4)).astype(np.float32), "weight")
        return g.node("Conv", ["x", weight], "tested", auto_pad=auto_pad, strides=[2, 2])

    return build


def average_pool(**attributes: object) -> Callable[[GraphBuilder], str]:
    return lambda g: g.node("AveragePool", [g.conv("x", "first", 4, 6)], "tested", **attributes)


def max_pool(**attributes: object) -> Callable[[GraphBuilder], str]:
    return lambda g: g.node("MaxPool", [g.conv("x", "first", 4, 6)], "tested", **attributes)


def mean(keepdims: int) -> Callable[[GraphBuilder], str]:
    return lambda g: g.node("ReduceMean", [g.conv("x", "first", 4, 6)], "tested", axes=[2, -1], keepdims=keepdims)


def padding(mode: str) -> Callable[[GraphBuilder], str]:
    def build(g: GraphBuilder) -> str:
        return g.node(
            "Pad", [g.conv("x", "first", 4, 6), settings(g, "pads", 0, 1, 2, 1, 0, 2, 1, 3)], "tested", mode=mode
        )

    return build


def padded_with(value: float) -> Callable[[GraphBuilder], str]:
    def build(g: GraphBuilder) -> str:
        pads = settings(g, "pads", 0, 0, 1, 2, 0, 0, 0, 1)
        return g.node("Pad", [g.conv("x", "first", 4, 6), pads, g.constant(np.float32(value), "value")], "tested")

    return build


def sliced(g: GraphBuilder) -> str:
    bounds = settings(g, "starts", -1, 1), settings(g, "ends", -(1 << 62), 99), settings(g, "axes", 3, 1)
    return g.node("Slice", [g.conv("x", "first", 4, 6), *bounds, settings(g, "steps", -2, 1)], "tested")


def concatenated(g: GraphBuilder) -> str:
    return g.node("Concat", [g.conv("x", "first", 4, 6), g.conv("x", "second", 4, 2, kernel=1), "x"], "tested", axis=1)


def concatenated_relu(g: GraphBuilder) -> str:
    return g.node("Relu", [g.node("Concat", [g.conv("x", "first", 4, 6), "x"], "joined", axis=1)], "tested")


def channel_constant(g: GraphBuilder) -> str:
    values = g.random.standard_normal((1, 8, 1, 1)).astype(np.float32)
    return g.node("Add", [g.constant(values, "values"), g.conv("x", "first", 4, 8)], "tested")


def constant_on_integers(g: GraphBuilder) -> str:
    values = g.random.standard_normal((4, 9, 1)).astype(np.float32)
    return g.node("Relu", [g.node("Add", ["x", g.constant(values, "values")], "sum")], "tested")


def residual_with_constant(g: GraphBuilder) -> str:
    values = g.random.standard_normal((8, 1, 1)).astype(np.float32)
    first = g.conv("x", "first", 4, 8)
    shifted = g.node("Add", [g.conv(first, "second", 8, 8), g.constant(values, "values")], "shifted")
    return g.node("Relu", [g.node("Add", [first, shifted], "sum")], "tested")


def doubled(g: GraphBuilder) -> str:
    first = g.conv("x", "first", 4, 8)
    return g.node("Add", [first, first], "tested")


def unfused_sum(g: GraphBuilder) -> str:
    first, second = g.conv("x", "first", 4, 8), g.conv("x", "second", 4, 8, kernel=1)
    pooled = [g.node("MaxPool", [name], f"{name}_pool", kernel_shape=[2, 2]) for name in (first, second)]
    return g.node("Clip", [g.node("Add", pooled, "sum"), g.constant(np.float32(-1), "low")], "tested")


def clipped(g: GraphBuilder) -> str:
    bounds = g.constant(np.float32(-0.7), "low"), g.constant(np.float32(0.4), "high")
    return g.node("Clip", [g.conv("x", "first", 4, 8), *bounds], "tested")


def transposed(g: GraphBuilder) -> str:
    moved = g.node("Transpose", [g.conv("x", "first", 4, 6)], "moved", perm=[0, 2, 3, 1])
    added = g.node("Add", [moved, g.constant(np.float32(0.5), "half")], "added")
    return g.node("Transpose", [added], "tested", perm=[0, 3, 2, 1])


def squeezed(g: GraphBuilder) -> str:
    longer = g.node("Unsqueeze", [g.conv("x", "first", 4, 6), settings(g, "new", 1, -1)], "longer")
    return g.node("Squeeze", [longer, settings(g, "old", -1, 1)], "tested")


def reshaped(g: GraphBuilder) -> str:
    flat = g.node("Reshape", [g.conv("x", "first", 4, 6), settings(g, "flat", 0, 3, -1)], "flat")
    return g.node("Reshape", [flat, settings(g, "back", -1, 6, 9, 9)], "tested")


def dynamically_reshaped(g: GraphBuilder) -> str:
    first = g.conv("x", "first", 4, 6)
    count = g.node("Gather", [g.node("Shape", [first], "shape"), settings(g, "zero", 0)], "count", axis=0)
    target = g.node("Concat", [count, settings(g, "rest", 3, 162)], "target", axis=0)
    return g.node("Reshape", [first, target], "tested")


def shared_weight(g: GraphBuilder) -> str:
    first = g.conv("x", "first", 4, 4)
    second = g.node("Conv", [first, "first_weight", "first_bias"], "second", pads=[1] * 4)
    return g.node("Add", [second, "x"], "tested")


CASES: dict[str, Callable[[GraphBuilder], str]] = {
    "conv": convolution(),
    "conv_grouped": convolution(groups=2),
    "conv_depthwise": convolution(groups=4),
    "conv_asymmetric_pads": convolution(pads=[0, 2, 1, 0]),
    "conv_strides": convolution(strides=[2, 3]),
    "conv_dilations": convolution(dilations=[2, 1], pads=[2, 1, 2, 1]),
    "conv_same_upper": auto_padded("SAME_UPPER"),
    "conv_same_lower": auto_padded("SAME_LOWER"),
    "conv_valid": auto_padded("VALID"),
    "average_pool": average_pool(kernel_shape=[2, 3], strides=[2, 1]),
    "average_pool_without_pads": average_pool(kernel_shape=[3, 3], pads=[1, 0, 1, 2]),
    "average_pool_with_pads": average_pool(kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    "average_pool_ceil": average_pool(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "average_pool_ceil_with_pads": average_pool(
        kernel_shape=[3, 3], strides=[2, 3], pads=[1, 1, 0, 0], ceil_mode=1, count_include_pad=1
    ),
    "average_pool_same_upper": average_pool(kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    "average_pool_same_lower": average_pool(kernel_shape=[2, 4], auto_pad="SAME_LOWER"),
    "average_pool_ceil_counting": average_pool(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1),
    "average_pool_dilated": average_pool(kernel_shape=[2, 2], dilations=[2, 3]),
    "average_pool_dilated_by_one": average_pool(kernel_shape=[2, 2], dilations=[1, 1]),
    "max_pool": max_pool(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "max_pool_ceil": max_pool(kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "max_pool_dilated": max_pool(kernel_shape=[2, 2], dilations=[2, 3]),
    "global_average_pool": lambda g: g.node("GlobalAveragePool", [g.conv("x", "first", 4, 6)], "tested"),
    "reduce_mean": mean(1),
    "reduce_mean_flat": mean(0),
    "pad": padding("constant"),
    "pad_reflect": padding("reflect"),
    "pad_edge": padding("edge"),
    "pad_with_zero": padded_with(0.0),
    "slice": sliced,
    "concat": concatenated,
    "relu_on_integers": concatenated_relu,
    "channel_constant": channel_constant,
    "constant_on_integers": constant_on_integers,
    "residual_with_constant": residual_with_constant,
    "sum_with_itself": doubled,
    "unfused_sum": unfused_sum,
    "clip": clipped,
    "transpose": transposed,
    "squeeze": squeezed,
    "reshape": reshaped,
    "dynamic_reshape": dynamically_reshaped,
    "shared_weight": shared_weight,
}


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("case", CASES)
def test_every_operator_equals_the_reference_and_the_qdq_model(case: str, batch: Size) -> None:
    quantized = quantized_case(CASES[case], batch)
    program = lower(quantized)
    feeds = inputs(quantized.graph, SAMPLES)
    assert_equal_to_reference(program, feeds)
    assert steps_from_qdq(quantized, program, feeds) <= 1
    floats, integers = run(quantized.graph.model, feeds)["y"], run(integer_model(program), feeds)["y"]
    assert np.linalg.norm(integers - floats) < 0.1 * np.linalg.norm(floats)


@pytest.mark.parametrize("zero_points", [(0,), (255,), (1, 128), (200, 3, 128, 255, 77)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_operator_equals_the_reference_on_any_grid(case: str, zero_points: tuple[int, ...]) -> None:
    quantized = quantized_case(CASES[case])
    moved = with_zero_points(quantized, zero_points)
    program = lower(moved)
    feeds = inputs(quantized.graph, SAMPLES)
    assert_equal_to_reference(program, feeds)
    assert steps_from_qdq(moved, program, feeds) <= 1


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize("bits", [4, 8])
def test_residual_network(batch: Size, bits: int, tmp_path: Path) -> None:
    quantized = quantize_graph(models.save(models.residual_network(batch), tmp_path / "m.onnx"), bits)
    assert_equal_to_reference(lower(quantized), inputs(quantized.graph, SAMPLES))


def test_graph_inputs_and_outputs_are_the_float_models(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    model = integer_model(lower(quantized))
    assert list(model.graph.input) == list(quantized.graph.model.graph.input)
    assert list(model.graph.output) == list(quantized.graph.model.graph.output)


@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("code", [-128, 127])
@pytest.mark.parametrize("value", [-1e6, 1e6])
def test_extreme_codes_and_inputs(code: int, value: float, zero_point: int, residual_model: Path) -> None:
    quantized = with_zero_points(quantize_graph(residual_model), [zero_point])
    layers = tuple(dataclasses.replace(q, codes=np.full_like(q.codes, code)) for q in quantized.layers)
    program = lower(dataclasses.replace(quantized, layers=layers))
    reference = assert_equal_to_reference(program, {"x": np.full((2, 3, 16, 16), value, np.float32)})
    grid = quantized.grids["x"]
    assert set(np.unique(reference.integers["x"])) == {grid.low if value < 0 else grid.high}


def test_random_scales_never_overflow(residual_model: Path) -> None:
    """Scales spread over ten orders of magnitude: results saturate, and still nothing wraps around."""
    quantized = quantize_graph(residual_model)
    random = np.random.default_rng(3)
    for _ in range(5):
        grids = {
            name: Grid(scale=float(10.0 ** random.uniform(-3, 0)), zero_point=int(random.integers(256)))
            for name in quantized.grids
        }
        layers = tuple(
            dataclasses.replace(q, scale=(10.0 ** random.uniform(-12, -2, q.scale.shape)).astype(np.float32))
            for q in quantized.layers
        )
        program = lower(dataclasses.replace(quantized, layers=layers, grids=grids))
        assert_equal_to_reference(program, inputs(quantized.graph, SAMPLES))


def test_sums_between_two_and_four_billion_survive(tmp_path: Path) -> None:
    """onnxruntime's int64 Clip takes 2^31 <= x < 2^32 for negative; the path to q = -127 at shift 31 must avoid it."""
    g = GraphBuilder()
    first = g.node("MaxPool", [g.conv("x", "first", 1, 1, kernel=1)], "pool", kernel_shape=[1, 1])
    model = g.model(["N", 1, 1, 256], g.conv(first, "second", 1, 1, kernel=1), ["N", 1, 1, 256])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    identity = tuple(
        dataclasses.replace(q, codes=np.ones_like(q.codes), scale=np.full_like(q.scale, 0.99), biases={})
        for q in quantized.layers
    )
    grids = dict.fromkeys(quantized.grids, Grid(scale=1.0))
    program = lower(dataclasses.replace(quantized, layers=identity, grids=grids))
    values = np.arange(-128, 128, dtype=np.float32).reshape(1, 1, 1, 256)
    assert (assert_equal_to_reference(program, {"x": values}).integers["first_out"] == -127).any()


def test_a_large_constant_meets_a_large_input(tmp_path: Path) -> None:
    """x - 1000 on a grid a hundred times finer than that of x: both terms pass the clamp by far, their sum does not."""
    g = GraphBuilder()
    shifted = g.node("Add", ["x", g.constant(np.full((1, 1, 1, 1), -1000, np.float32), "shift")], "shifted")
    model = g.model(["N", 1, 4, 4], g.conv(shifted, "last", 1, 1), ["N", 1, 4, 4])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    grids = {"x": Grid(scale=10.0, zero_point=0), "shifted_out": Grid(scale=0.1, zero_point=100)}
    program = lower(dataclasses.replace(quantized, grids=grids))
    reference = assert_equal_to_reference(program, {"x": np.full((1, 1, 4, 4), 1000, np.float32)})
    assert not reference.integers["shifted_out"].any()


def quantize_open_graph(path: Path) -> QuantizedGraph:
    """A graph whose spatial axes are symbolic too, with one activation scale for all."""
    graph = prepare(path)
    weights = graph.layer_weights()
    layers = []
    for layer in graph.layers:
        codes, scale = quantize_weight(weights[layer.name], 8, layer.channel_axis)
        biases = float_biases(GraphIndex(graph.model), layer)
        layers.append(QuantizedLayer(layer=layer, bits=8, codes=codes, scale=scale, biases=biases))
    return QuantizedGraph(graph=graph, layers=tuple(layers), grids=dict.fromkeys(graph.activations, Grid(scale=0.03)))


def test_symbolic_spatial_sizes(tmp_path: Path) -> None:
    g = GraphBuilder()
    first = g.node("Relu", [g.conv("x", "first", 3, 4, strides=[2, 2])], "relu")
    model = g.model(["N", 3, "H", "W"], g.conv(first, "second", 4, 2), ["N", 2, None, None])
    quantized = quantize_open_graph(models.save(model, tmp_path / "m.onnx"))
    assert_equal_to_reference(
        lower(quantized), {"x": np.random.default_rng(0).standard_normal((2, 3, 7, 10), np.float32)}
    )


@pytest.mark.parametrize("rank", [2, 3])
def test_matmul_with_a_bias_after_it(rank: int, tmp_path: Path) -> None:
    g = GraphBuilder()
    shape: list[object] = ["N", 8] if rank == 2 else ["N", 6, 8]
    hidden = g.node("MatMul", ["x", g.constant(g.random.standard_normal((8, 7)).astype(np.float32), "w1")], "first")
    hidden = g.node("Add", [g.constant(g.random.standard_normal(7).astype(np.float32), "b1"), hidden], "biased")
    hidden = g.node("Relu", [hidden], "relu")
    last = g.node("MatMul", [hidden, g.constant(g.random.standard_normal((7, 5)).astype(np.float32), "w2")], "second")
    last = g.node("Add", [last, g.constant(g.random.standard_normal(5).astype(np.float32), "b2")], "result_bias")
    model = g.model(shape, last, [*shape[:-1], 5])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    program = lower(quantized)
    assert [type(operation) for operation in program.operations] == [IntegerMatMul, IntegerMatMul]
    assert program.tail == ()
    feeds = inputs(quantized.graph, SAMPLES)
    assert_equal_to_reference(program, feeds)
    assert steps_from_qdq(quantized, program, feeds) <= 1


def test_one_dimensional_convolution(tmp_path: Path) -> None:
    g = GraphBuilder()
    weight = g.constant(g.random.standard_normal((6, 2, 5)).astype(np.float32), "w")
    first = g.node("Conv", ["x", weight], "first", group=2, pads=[3, 1], strides=[2])
    pooled = g.node("MaxPool", [first], "pool", kernel_shape=[3], pads=[1, 1])
    last = g.node("Conv", [pooled, g.constant(g.random.standard_normal((3, 6, 1)).astype(np.float32), "w2")], "last")
    quantized = quantize_graph(models.save(g.model(["N", 4, 21], last, ["N", 3, None]), tmp_path / "m.onnx"))
    assert_equal_to_reference(lower(quantized), inputs(quantized.graph, SAMPLES))


def test_corrected_biases_replace_the_nodes_own(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    changed = tuple(
        dataclasses.replace(q, biases={node: np.full(q.layer.channels, 3.5, np.float32) for node in q.layer.nodes})
        for q in quantized.layers
    )
    program = lower(dataclasses.replace(quantized, layers=changed))
    layers = [op for op in program.operations if isinstance(op, IntegerConv | IntegerMatMul)]
    assert len(layers) == len(changed)
    for operation in layers:
        layer = next(q for q in changed if operation.name in q.layer.nodes)
        grid = layer.bias_scale(program.grids[operation.input].scale)
        np.testing.assert_allclose(operation.bias, 3.5 / grid, atol=0.51)


def test_dead_channels_keep_the_accumulator_in_32_bits(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    layers = tuple(
        dataclasses.replace(q, scale=np.full_like(q.scale, 1e-20), codes=q.codes // 64) for q in quantized.layers
    )
    program = lower(dataclasses.replace(quantized, layers=layers))
    assert_equal_to_reference(program, inputs(quantized.graph, SAMPLES))
    for operation in program.operations:
        if isinstance(operation, IntegerConv):
            own = next(q for q in layers if operation.name in q.layer.nodes).biases[operation.name]
            largest = program.grids[operation.input].largest
            sums = largest * np.abs(operation.weights.astype(np.int64)).reshape(len(operation.bias), -1).sum(axis=1)
            assert (np.sign(operation.bias) == np.sign(own)).all()
            assert (np.abs(operation.bias.astype(np.int64)) + sums < 2**31).all()


@pytest.mark.parametrize("followed", [False, True])
def test_too_long_sums_are_refused(followed: bool, tmp_path: Path) -> None:
    g = GraphBuilder()
    weight = g.constant(np.ones((140_000, 1), np.float32), "w")
    last = g.node("MatMul", ["x", weight], "long")
    last = g.gemm(g.node("Relu", [last], "relu"), "last", 1, 1) if followed else last
    model = g.model(["N", 140_000], last, ["N", 1])
    with pytest.raises(BackendMissing, match="'long' can reach"):
        lower(quantize_graph(models.save(model, tmp_path / "m.onnx")))


def test_uncovered_operators_are_listed_completely(tmp_path: Path) -> None:
    g = GraphBuilder()
    first = g.conv("x", "first", 3, 4)
    largest = g.node("Hardmax", [first], "largest", axis=1)
    pooled = g.node("LpPool", [g.conv(largest, "second", 4, 4)], "pool", kernel_shape=[2, 2], ceil_mode=1)
    last = g.node("Softmax", [g.conv(pooled, "third", 4, 2)], "tail", axis=1)
    model = g.model(["N", 3, 8, 8], last, ["N", 2, 7, 7], opset=21)
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    with pytest.raises(BackendMissing) as refusal:
        lower(quantized)
    listed = {name.strip() for kind in refusal.value.where.split(";") for name in kind.split(":")[1].split(",")}
    assert listed == {"largest", "pool"}


def test_a_constant_that_is_not_per_channel_is_named_where_a_tensor_is_added_too(tmp_path: Path) -> None:
    g = GraphBuilder()
    grid = g.constant(g.random.standard_normal((1, 4, 8, 8)).astype(np.float32), "position")
    first = g.conv("x", "first", 3, 4)
    added = g.node("Add", [g.conv(first, "second", 4, 4), grid], "added")
    model = g.model(["N", 3, 8, 8], g.conv(g.node("Add", [added, first], "sum"), "third", 4, 2), ["N", 2, 8, 8])
    with pytest.raises(BackendMissing, match="'position'"):
        lower(quantize_graph(models.save(model, tmp_path / "m.onnx")))


def test_a_float_tail_is_kept(tmp_path: Path) -> None:
    g = GraphBuilder()
    block = g.node("Relu", [g.conv("x", "first", 3, 4)], "relu")
    scores = g.node("Softmax", [g.conv(block, "second", 4, 2)], "softmax", axis=1)
    model = g.model(["N", 3, 8, 8], scores, ["N", 2, 8, 8])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    program = lower(quantized)
    assert [node.op_type for node in program.tail] == ["Softmax"]
    feeds = inputs(quantized.graph, SAMPLES)
    assert_equal_to_reference(program, feeds)
    np.testing.assert_allclose(run(integer_model(program), feeds)["y"].sum(axis=1), 1, rtol=1e-5)


def test_a_tail_may_read_the_input(tmp_path: Path) -> None:
    """As that of a network which computes the noise in an image."""
    g = GraphBuilder()
    noise = g.conv(g.node("Relu", [g.conv("x", "first", 3, 4)], "relu"), "second", 4, 3)
    model = g.model(["N", 3, 8, 8], g.node("Sub", ["x", noise], "clean"), ["N", 3, 8, 8])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    assert_equal_to_reference(lower(quantized), inputs(quantized.graph, SAMPLES))


def test_what_one_node_makes_is_integer_together(tmp_path: Path) -> None:
    """Of a Split's results a layer reads one, and only the tail the other, as in a detector's head."""
    g = GraphBuilder()
    both = g.node("Concat", [g.conv("x", "first", 3, 4), g.conv("x", "second", 3, 4)], "both", axis=1)
    parts = ["boxes", "scores"]
    g.nodes.append(helper.make_node("Split", [both, settings(g, "lengths", 4, 4)], parts, name="split", axis=1))
    joined = [g.conv("boxes", "last", 4, 4), g.node("Sigmoid", ["scores"], "sigmoid")]
    model = g.model(["N", 3, 8, 8], g.node("Concat", joined, "joined", axis=1), ["N", 8, 8, 8])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    program = lower(quantized)
    assert_equal_to_reference(program, inputs(quantized.graph, SAMPLES))
    assert [node.op_type for node in program.tail] == ["Sigmoid", "Concat"]


@pytest.mark.parametrize("wide", [False, True])
def test_one_scale_and_a_reshape_behind_the_integers(wide: bool, tmp_path: Path) -> None:
    """onnxruntime carries a DequantizeLinear with one scale behind the Reshape, where int32 has no kernel."""
    g = GraphBuilder()
    last = g.conv(g.node("Relu", [g.conv("x", "first", 3, 4)], "relu"), "second", 4, 1)
    if wide:
        last = g.node("Mul", [last, g.node("Sigmoid", [last], "gate")], "product")
        shape = settings(g, "shape", 0, -1)
        flat = g.node("Reshape", [g.node("Add", [last, g.conv(last, "third", 1, 1)], "sum"), shape], "flat")
    else:
        flat = g.node("Reshape", [last, settings(g, "shape", 0, -1)], "flat")
    model = g.model(["N", 3, 8, 8], g.node("Softmax", [flat], "softmax"), ["N", 64])
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    assert_equal_to_reference(lower(quantized), inputs(quantized.graph, SAMPLES))


def test_a_grid_tensor_may_be_an_output_too(tmp_path: Path) -> None:
    g = GraphBuilder()
    block = g.node("Relu", [g.conv("x", "first", 3, 4)], "relu")
    model = g.model(["N", 3, 8, 8], g.conv(block, "second", 4, 2), ["N", 2, 8, 8])
    model.graph.output.append(helper.make_tensor_value_info(block, TensorProto.FLOAT, ["N", 4, 8, 8]))
    quantized = quantize_graph(models.save(model, tmp_path / "m.onnx"))
    feeds = inputs(quantized.graph, SAMPLES)
    reference = assert_equal_to_reference(lower(quantized), feeds)
    np.testing.assert_allclose(
        reference.floats[block], reference.integers[block] * np.float32(quantized.grids[block].scale), rtol=1e-6
    )


def test_the_check_finds_planted_floats(residual_model: Path) -> None:
    model = integer_model(lower(quantize_graph(residual_model)))
    assert float_tensors_inside(model) == ()
    target = next(node for node in model.graph.node if node.op_type == "ConvInteger" and node.input[0] != "x_quantized")
    position = list(model.graph.node).index(target)
    planted = [
        helper.make_node("Cast", [target.input[0]], ["planted"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["planted", "planted_one"], ["planted_product"]),
        helper.make_node("Cast", ["planted_product"], ["planted_back"], to=TensorProto.UINT8),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "planted_one"))
    target.input[0] = "planted_back"
    for node in reversed(planted):
        model.graph.node.insert(position, node)
    assert float_tensors_inside(model) == ("planted", "planted_one", "planted_product")


def test_the_check_sees_through_qdq_and_float_models(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    assert QdqNames(quantized.graph).dequantized("stem_relu_out") in float_tensors_inside(qdq_model(quantized))
    assert "stem_out" in float_tensors_inside(quantized.graph.model)


def test_the_check_refuses_float_work_before_quantization(residual_model: Path) -> None:
    model = integer_model(lower(quantize_graph(residual_model)))
    quantizer = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    quantizer.input[0] = "early"
    model.graph.node.insert(0, helper.make_node("Abs", ["x"], ["early"]))
    assert "early" in float_tensors_inside(model)


SHARED_MODELS = {
    "cifar10/resnet20.onnx": (0, False),
    "cifar10/resnet20_rawexport.onnx": (0, False),
    "cifar10/resnet56.onnx": (0, False),
    "cifar10/mlperf_tiny_resnet8.onnx": (1, True),
    "cifar10/vit_small.onnx": (0, False),
    "imagenet/mobilenet_v2_1.0_224_keras.onnx": (0, False),
    "other/fast_style_transfer_starry_night_256.onnx": (4, True),
    "other/stm_mobilenet_v2_128_0.5.onnx": (1, False),
    "other/ultraface_slim320.onnx": (39, False),
    "other/yolox_nano.onnx": (14, True),
}
"""How many float nodes each keeps behind its last layer, and whether it takes raw pixels."""
SMALL = ("cifar10/mlperf_tiny_resnet8.onnx", "cifar10/resnet20.onnx")
"""Small enough for arithmetic in Python integers."""


@pytest.mark.parametrize("name", SHARED_MODELS)
def test_real_networks(name: str, shared: Callable[[str], Path]) -> None:
    tail, raw = SHARED_MODELS[name]
    quantized = quantize_graph(shared(f"models/{name}"), raw=raw)
    program = lower(quantized)
    assert len(program.tail) == tail
    feeds = inputs(quantized.graph, 1, raw=raw)
    assert_equal_to_reference(program, feeds, exactly=name in SMALL)
    assert steps_from_qdq(quantized, program, feeds) <= 1
