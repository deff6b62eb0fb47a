"""The NumPy reference: exact arithmetic, and the same functions as onnxruntime's float operators."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import Grid
from ompq_deploy.export.integer.geometry import element_counts, explicit_pads, pad_widths, taps, window_of
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import IntegerConv
from ompq_deploy.export.integer.rescale import requantize as choose_requantize
from ompq_deploy.export.integer.rules import Window
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.simulator import quantize_input, requantize, run_program
from ompq_deploy.simulator.linear import add_bias, convolve
from tests.quantized import inputs, quantize_graph

ort.set_default_logger_severity(3)


def test_requantization_is_the_exact_rational_rounded_half_up() -> None:
    """q = clip(floor(acc M / 2^shift + 1/2)), checked in rational numbers."""
    random = np.random.default_rng(0)
    for _ in range(40):
        ratio = np.exp2(random.uniform(-24, 0, 6)).reshape(6, 1)
        bound = 1 << int(random.integers(10, 30))
        rule = choose_requantize("layer", ratio, bound, (-128, 127))
        spread = random.integers(-bound, bound + 1, (6, 50))
        near = np.rint(random.uniform(-130, 130, (6, 50)) / ratio).astype(np.int64)
        totals = np.where(np.abs(near) <= bound, near, spread)
        found = requantize(totals, rule, {})
        for (row, column), total in np.ndenumerate(totals):
            exact = Fraction(int(total)) * Fraction(int(rule.multiplier[row, 0]), 2 ** int(rule.clamp.shift[row, 0]))
            expected = min(max(floor(exact + Fraction(1, 2)), -128), 127)
            assert found[row, column] == expected


def test_ties_round_up_and_neighbours_round_to_nearest() -> None:
    rule = choose_requantize("layer", 0.25, 1000, (-128, 127))
    totals = np.array([-10, -6, -5, -2, -1, 1, 2, 3, 6, 10])
    assert requantize(totals, rule, {}).tolist() == [-2, -1, -1, 0, 0, 0, 1, 1, 2, 3]


def test_multipliers_have_31_bits_and_the_reach_holds() -> None:
    random = np.random.default_rng(1)
    ratio = np.exp2(random.uniform(-20, 2, 100))
    rule = choose_requantize("layer", ratio, 10_000, (-128, 127))
    assert (rule.multiplier >= 2**30).all()
    assert (rule.multiplier <= 2**31).all()
    approximation = np.ldexp(rule.multiplier.astype(float), -rule.clamp.shift.astype(np.int32))
    np.testing.assert_allclose(approximation, ratio, rtol=2.0**-31)
    assert (rule.clamp.reach >= np.ceil(10_000 * approximation)).all()


def test_a_residual_sum_is_rounded_once() -> None:
    """0.4 + 0.4 steps make one step, where rounding each term would make none."""
    rule = choose_requantize("layer", 0.4, 1000, (-128, 127), skip="skip", skip_ratio=0.4)
    assert requantize(np.array([1]), rule, {"skip": np.array([1], np.int32)}).tolist() == [1]
    assert rule.skip_multiplier is not None
    assert rule.skip_multiplier.shape == rule.multiplier.shape


def test_scales_that_cannot_be_rescaled_in_64_bits_are_refused() -> None:
    with pytest.raises(OverflowError, match="64 bits"):
        choose_requantize("layer", 1e6, 2**30, (-128, 127))


def test_inputs_are_quantized_as_onnx_does() -> None:
    x = np.array([0.5, 1.5, -0.5, -1.5, 200, -200, 0.49999997], np.float32)
    assert quantize_input(x, Grid(scale=1.0)).tolist() == [0, 2, 0, -2, 127, -128, 0]
    assert quantize_input(x, Grid(scale=1.0, zero_point=3)).tolist() == [0, 2, 0, -2, 200, -3, 0]


def test_convolutions_equal_float_convolutions() -> None:
    random = np.random.default_rng(2)
    for _ in range(30):
        groups = int(random.choice([1, 2, 4]))
        kernel, strides, dilations = (tuple(int(n) for n in random.integers(1, 4, 2)) for _ in range(3))
        pads = tuple(int(n) for n in random.integers(0, 3, 4))
        weights = random.integers(-128, 128, (8, 8 // groups, *kernel)).astype(np.int8)
        x = random.integers(-255, 256, (2, 8, 11, 10)).astype(np.int32)
        window = Window(kernel=kernel, strides=strides, dilations=dilations, pads=pads)
        bias = random.integers(-1000, 1000, 8).astype(np.int32)
        operation = IntegerConv(
            name="c", input="x", output="y", weights=weights, bias=bias, window=window, groups=groups, requantize=None
        )
        node = helper.make_node(
            "Conv", ["x", "w", "b"], ["y"], group=groups, strides=strides, dilations=dilations, pads=pads
        )
        expected = run_node(node, {"x": x, "w": weights, "b": bias})
        np.testing.assert_array_equal(add_bias(operation, convolve(operation, x)), expected)


def run_node(node: onnx.NodeProto, values: dict[str, np.ndarray]) -> np.ndarray:
    """One float operator in onnxruntime; sums here stay below 2^24, so float32 is exact."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values["x"].shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items() if name != "x"],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": values["x"].astype(np.float32)})[0]


@pytest.mark.skipif(
    tuple(map(int, ort.__version__.split(".")[:2])) < (1, 24), reason="older onnxruntime counts ceil-mode pads wrongly"
)
def test_averages_count_what_onnxruntime_counts() -> None:
    """Sum and count over every window equal AveragePool, in ceil mode, with and without counting the padding."""
    random = np.random.default_rng(3)
    choices = itertools.product((5, 6, 9), (2, 3), (1, 2, 3), (0, 1), (0, 1), (0, 1))
    for size, kernel, stride, begin, end, counted in choices:
        settings = {"kernel_shape": [kernel], "strides": [stride], "pads": [begin, end]}
        node = helper.make_node("AveragePool", ["x"], ["y"], ceil_mode=1, count_include_pad=counted, **settings)
        x = random.integers(-128, 128, (1, 1, size)).astype(np.float32)
        graph = helper.make_graph([node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)], [])
        index = GraphIndex(helper.make_model(graph))
        window = window_of(index, node, [kernel])
        pads = explicit_pads(index, node, [kernel]) if counted else (0, 0)
        total = np.sum([view for _, view in taps(np.pad(x, pad_widths(window, 3)), window)], axis=0)
        found = total / element_counts(window, [size], pads)
        np.testing.assert_allclose(found, run_node(node, {"x": x}), rtol=1e-5, atol=1e-4)


def test_given_integers_replace_what_operations_read(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    program = lower(quantized)
    feeds = inputs(quantized.graph)
    free = run_program(program, feeds)
    same = run_program(program, feeds, given=free.integers)
    for name, values in free.integers.items():
        np.testing.assert_array_equal(same.integers[name], values)
    silent = {"stem_relu_out": np.zeros_like(free.integers["stem_relu_out"])}
    forced = run_program(program, feeds, given=silent)
    np.testing.assert_array_equal(forced.integers["stem_relu_out"], free.integers["stem_relu_out"])
    assert (forced.integers["depthwise_clip_out"] != free.integers["depthwise_clip_out"]).any()


def test_the_reference_is_close_to_the_float_model(residual_model: Path) -> None:
    quantized = quantize_graph(residual_model)
    feeds = inputs(quantized.graph)
    session = ort.InferenceSession(quantized.graph.model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, feeds)[0]
    found = run_program(lower(quantized), feeds).floats[quantized.graph.output_names[0]]
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


def test_a_large_network_takes_seconds(shared: Callable[[str], Path]) -> None:
    quantized = quantize_graph(shared("models/imagenet/mobilenet_v2_1.0_224_keras.onnx"))
    program = lower(quantized)
    feeds = inputs(quantized.graph, 2)
    start = time.perf_counter()
    run_program(program, feeds)
    assert time.perf_counter() - start < 20
