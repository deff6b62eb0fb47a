"""Properties of the activation scales on histograms of known shape."""

from __future__ import annotations

import numpy as np
import pytest

from ompq_deploy.artifacts import Capture, Histogram
from ompq_deploy.capture.histograms import bin_counts
from ompq_deploy.errors import BadInput
from ompq_deploy.quantize.activations import (
    LARGEST_CODE,
    METHODS,
    activation_scale,
    activation_scales,
    divergence,
    squared_error,
)

RANDOM = np.random.default_rng(0)
SAMPLES = {
    "gaussian": RANDOM.standard_normal(200_000),
    "relu": np.maximum(RANDOM.standard_normal(200_000), 0),
    "uniform": RANDOM.uniform(-3, 3, 200_000),
    "heavy": RANDOM.standard_t(2, 200_000),
    "tiny": RANDOM.standard_normal(1_000) * 1e-30,
    "one value": np.full(1_000, 0.7),
    "two values": np.array([0.0, 5.0] * 500),
}


def measured(x: np.ndarray) -> tuple[tuple[float, float], Histogram]:
    x = x.astype(np.float32)
    limit = float(np.abs(x).max())
    return (float(x.min()), float(x.max())), Histogram(counts=bin_counts(x, limit), limit=limit)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("method", METHODS)
def test_scales_are_positive_and_never_above_minmax(name: str, method: str) -> None:
    value_range, histogram = measured(SAMPLES[name])
    scale = activation_scale(value_range, histogram, method)
    assert 0 < scale <= activation_scale(value_range, None, "minmax")
    assert scale == float(np.float32(scale))


@pytest.mark.parametrize("name", SAMPLES)
def test_minmax_keeps_the_largest_value(name: str) -> None:
    value_range, _ = measured(SAMPLES[name])
    assert activation_scale(value_range, None, "minmax") * LARGEST_CODE == pytest.approx(max(map(abs, value_range)))


@pytest.mark.parametrize("name", SAMPLES)
def test_mse_has_the_smallest_error_on_the_histogram(name: str) -> None:
    value_range, histogram = measured(SAMPLES[name])
    error = {
        method: squared_error(histogram, activation_scale(value_range, histogram, method) * LARGEST_CODE)
        for method in METHODS
    }
    assert error["mse"] <= error["minmax"] * (1 + 1e-5)


def test_mse_has_the_smaller_error_on_the_values_too() -> None:
    x = SAMPLES["heavy"]
    value_range, histogram = measured(x)

    def error(scale: float) -> float:
        return float(np.mean((x - scale * np.clip(np.rint(x / scale), -128, 127)) ** 2))

    mse, minmax = (activation_scale(value_range, histogram, method) for method in ("mse", "minmax"))
    assert error(mse) < 0.9 * error(minmax)


def test_percentile_drops_one_value_in_ten_thousand() -> None:
    value_range, histogram = measured(np.arange(1, 100_001) / 100_000)
    scale = activation_scale(value_range, histogram, "percentile")
    assert scale * LARGEST_CODE == pytest.approx(0.9999, abs=1 / 2048)
    outlier = np.append(np.full(100_000, 1.0), 1000.0)
    value_range, histogram = measured(outlier)
    assert activation_scale(value_range, histogram, "percentile") * LARGEST_CODE < 1000 * 4 / 2048


def test_entropy_cuts_a_long_tail_and_keeps_an_even_spread() -> None:
    value_range, histogram = measured(SAMPLES["heavy"])
    assert activation_scale(value_range, histogram, "entropy") < 0.5 * activation_scale(value_range, None, "minmax")
    value_range, histogram = measured(SAMPLES["uniform"])
    assert activation_scale(value_range, histogram, "entropy") > 0.9 * activation_scale(value_range, None, "minmax")


def test_divergence_is_zero_when_levels_are_bins() -> None:
    counts = RANDOM.integers(1, 100, 128).astype(np.float64)
    assert divergence(counts, 128) == pytest.approx(0, abs=1e-12)
    doubled = np.repeat(counts, 2)
    assert divergence(doubled, 256) == pytest.approx(0, abs=1e-12)
    assert divergence(RANDOM.permutation(doubled), 256) > 1e-3


def test_zeros_that_relu_makes_do_not_move_the_entropy_threshold() -> None:
    x = np.abs(SAMPLES["gaussian"])
    with_zeros = np.concatenate([x, np.zeros(10 * x.size)])
    scales = [activation_scale(*measured(values), "entropy") for values in (x, with_zeros)]
    assert scales[0] == scales[1]


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_stays_exact(method: str) -> None:
    scale = activation_scale((0.0, 0.0), Histogram(counts=bin_counts(np.zeros(9, np.float32), 0.0), limit=0.0), method)
    assert scale > 0
    assert np.rint(0.0 / scale) * scale == 0


def test_subnormal_range_gets_a_normal_scale() -> None:
    assert activation_scale((0.0, 1e-44), None, "minmax") == float(np.finfo(np.float32).tiny)


def test_scales_of_a_capture() -> None:
    value_range, histogram = measured(SAMPLES["relu"])
    capture = Capture(
        grams={},
        ranges={"a": value_range, "b": (-1.0, 2.0)},
        means={},
        histograms={"a": histogram},
        count=1,
        streamed=False,
    )
    assert activation_scales(capture, "minmax") == {
        "a": activation_scale(value_range, None, "minmax"),
        "b": float(np.float32(2 / 127)),
    }
    with pytest.raises(BadInput, match="needs a histogram"):
        activation_scales(capture, "mse")


def test_unknown_method() -> None:
    with pytest.raises(BadInput, match="unknown calibration method 'max'"):
        activation_scale((0.0, 1.0), None, "max")
