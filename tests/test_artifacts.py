"""Grids: zero is on every one, rounding is ONNX's, and the symmetric form reaches as far."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import Grid, Histogram

ZERO_POINTS = (0, 1, 77, 127, 128, 129, 254, 255)


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_a_grid_holds_zero_and_256_values(zero_point: int) -> None:
    grid = Grid(scale=0.1, zero_point=zero_point)
    assert grid.low <= 0 <= grid.high
    assert grid.high - grid.low == 255
    assert grid.largest == max(abs(grid.low), abs(grid.high))
    assert grid.steps(np.zeros(1, np.float32)).tolist() == [0]


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_steps_are_what_onnxruntime_quantizes_to(zero_point: int) -> None:
    grid = Grid(scale=float(np.float32(0.013)), zero_point=zero_point)
    ties = np.arange(-300, 300) + 0.5
    x = np.concatenate([ties * 0.013, np.random.default_rng(0).uniform(-5, 5, 5000), [1e9, -1e9]]).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["y"])],
        "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, x.shape)],
        [
            numpy_helper.from_array(np.float32(grid.scale), "scale"),
            numpy_helper.from_array(np.uint8(zero_point), "zero_point"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    codes = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_array_equal(grid.steps(x) + zero_point, codes)


@pytest.mark.parametrize("zero_point", ZERO_POINTS)
def test_the_symmetric_form_reaches_as_far(zero_point: int) -> None:
    grid = Grid(scale=float(np.float32(0.07)), zero_point=zero_point)
    other = grid.as_symmetric()
    assert other.zero_point == 128
    assert other.scale == float(np.float32(other.scale))
    assert other.scale * other.low <= grid.scale * grid.low * (1 - 1e-6)
    assert other.scale * other.high >= grid.scale * grid.high * (1 - 1e-6)
    assert other.as_symmetric() == other


def test_histogram_centres_and_magnitudes() -> None:
    histogram = Histogram(counts=np.array([1, 2, 3, 4]), limit=2.0)
    assert histogram.centres.tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert histogram.magnitudes.tolist() == [5, 5]
