"""Every method's grid, on tensors of known shape: zero is exact, one-sided tensors use one side, and nothing is wider
than the values."""

from __future__ import annotations

import numpy as np
import pytest

from ompq_deploy.artifacts import Capture, Histogram
from ompq_deploy.capture.histograms import bin_counts
from ompq_deploy.errors import BadInput
from ompq_deploy.quantize.activations import METHODS, activation_grid, activation_grids
from ompq_deploy.quantize.clipping import squared_error

RANDOM = np.random.default_rng(0)
SAMPLES = {
    "gaussian": RANDOM.standard_normal(200_000),
    "relu": np.maximum(RANDOM.standard_normal(200_000), 0),
    "relu6": np.clip(RANDOM.standard_normal(200_000) * 5, 0, 6),
    "swish": (lambda x: x / (1 + np.exp(-x)))(RANDOM.standard_normal(200_000) * 3),
    "negative": -np.abs(RANDOM.standard_normal(50_000)) - 0.1,
    "uniform": RANDOM.uniform(-3, 3, 200_000),
    "skewed": RANDOM.uniform(-1, 30, 200_000),
    "heavy": RANDOM.standard_t(2, 200_000),
    "tiny": RANDOM.standard_normal(1_000) * 1e-30,
    "one value": np.full(1_000, 0.7),
    "two values": np.array([0.0, 5.0] * 500),
}
NOWHERE_NEGATIVE = ("relu", "relu6", "one value", "two values")


def measured(x: np.ndarray) -> tuple[tuple[float, float], Histogram]:
    x = x.astype(np.float32)
    limit = float(np.abs(x).max())
    return (float(x.min()), float(x.max())), Histogram(counts=bin_counts(x, limit), limit=limit)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("method", METHODS)
def test_scales_are_positive_and_never_above_the_symmetric_minmax(name: str, method: str, symmetric: bool) -> None:
    value_range, histogram = measured(SAMPLES[name])
    grid = activation_grid(value_range, histogram, method, symmetric=symmetric)
    assert 0 < grid.scale <= activation_grid(value_range, None, "minmax", symmetric=True).scale
    assert grid.scale == float(np.float32(grid.scale))
    assert isinstance(grid.zero_point, int)
    assert grid.low <= 0 <= grid.high


@pytest.mark.parametrize("name", SAMPLES)
def test_minmax_keeps_both_ends(name: str) -> None:
    value_range, _ = measured(SAMPLES[name])
    for symmetric in (True, False):
        grid = activation_grid(value_range, None, "minmax", symmetric=symmetric)
        assert grid.scale * (grid.low - 0.5001) <= value_range[0]
        assert grid.scale * (grid.high + 0.5001) >= value_range[1]
    assert activation_grid(value_range, None, "minmax", symmetric=True).scale * 127 == pytest.approx(
        max(map(abs, value_range))
    )


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_on_one_side_of_zero_has_all_steps_there(name: str, method: str) -> None:
    zero_point = activation_grid(*measured(SAMPLES[name]), method).zero_point
    if name in NOWHERE_NEGATIVE:
        assert zero_point == 0
    elif name == "negative":
        assert zero_point == 255
    else:
        assert 0 < zero_point < 255


@pytest.mark.parametrize("name", SAMPLES)
def test_mse_has_the_smallest_error_on_the_histogram(name: str) -> None:
    value_range, histogram = measured(SAMPLES[name])
    error = {
        (method, symmetric): squared_error(
            histogram, activation_grid(value_range, histogram, method, symmetric=symmetric)
        )
        for method in METHODS
        for symmetric in (True, False)
    }
    assert error["mse", False] <= error["mse", True]
    for symmetric in (True, False):
        assert error["mse", symmetric] <= error["minmax", symmetric] * (1 + 1e-5)


@pytest.mark.parametrize(("name", "most"), [("relu", 0.35), ("relu6", 0.35), ("skewed", 0.4), ("gaussian", 1.001)])
def test_an_asymmetric_grid_leaves_less_error_on_the_values(name: str, most: float) -> None:
    """Twice the steps are a quarter of the error; the larger clipping they allow is part of what is gained."""
    x = SAMPLES[name]
    value_range, histogram = measured(x)
    grids = [activation_grid(value_range, histogram, "mse", symmetric=symmetric) for symmetric in (False, True)]
    asymmetric, symmetric = (float(np.square(x - grid.steps(x) * grid.scale).mean()) for grid in grids)
    assert asymmetric <= most * symmetric


def test_mse_has_the_smaller_error_on_the_values_too() -> None:
    x = SAMPLES["heavy"]
    value_range, histogram = measured(x)
    for symmetric in (True, False):
        grids = [activation_grid(value_range, histogram, method, symmetric=symmetric) for method in ("mse", "minmax")]
        mse, minmax = (float(np.square(x - grid.steps(x) * grid.scale).mean()) for grid in grids)
        assert mse < 0.9 * minmax


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_stays_exact(method: str, symmetric: bool) -> None:
    histogram = Histogram(counts=bin_counts(np.zeros(9, np.float32), 0.0), limit=0.0)
    grid = activation_grid((0.0, 0.0), histogram, method, symmetric=symmetric)
    assert grid.scale > 0
    assert grid.steps(np.zeros(1, np.float32)).tolist() == [0]


def test_subnormal_ranges_get_a_normal_scale() -> None:
    tiny = float(np.finfo(np.float32).tiny)
    assert activation_grid((0.0, 1e-44), None, "minmax", symmetric=True).scale == tiny
    assert activation_grid((0.0, 1e-44), None, "minmax").scale == tiny
    assert activation_grid((-1e-44, 0.0), None, "minmax").zero_point == 255


def test_grids_of_a_capture() -> None:
    value_range, histogram = measured(SAMPLES["relu"])
    capture = Capture(
        grams={},
        ranges={"a": value_range, "b": (-1.0, 2.0)},
        means={},
        histograms={"a": histogram},
        count=1,
        streamed=False,
    )
    grids = activation_grids(capture, "minmax")
    assert grids["a"] == activation_grid(value_range, None, "minmax")
    assert (grids["b"].scale, grids["b"].zero_point) == (float(np.float32(3 / 255)), 85)
    assert activation_grids(capture, "minmax", symmetric=True)["b"].scale == float(np.float32(2 / 127))
    with pytest.raises(BadInput, match="needs a histogram"):
        activation_grids(capture, "mse")


def test_unknown_method() -> None:
    with pytest.raises(BadInput, match="unknown calibration method 'max'"):
        activation_grid((0.0, 1.0), None, "max")
