"""Where histograms of known shape are clipped."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ompq_deploy.artifacts import Grid, Histogram
from ompq_deploy.capture.histograms import bin_counts
from ompq_deploy.quantize.activations import asymmetric_grid, symmetric_grid
from ompq_deploy.quantize.clipping import (
    divergence,
    entropy_threshold,
    least_error_ends,
    least_error_threshold,
    percentile_ends,
    percentile_threshold,
    squared_error,
)

RANDOM = np.random.default_rng(0)
GAUSSIAN = RANDOM.standard_normal(200_000)


def histogram_of(x: np.ndarray) -> Histogram:
    x = x.astype(np.float32)
    limit = float(np.abs(x).max())
    return Histogram(counts=bin_counts(x, limit), limit=limit)


def test_percentile_drops_one_value_in_ten_thousand() -> None:
    even = histogram_of(np.arange(1, 100_001) / 100_000)
    assert percentile_threshold(even) == pytest.approx(0.9999, abs=1 / 2048)
    outlier = histogram_of(np.append(np.full(100_000, 1.0), 1000.0))
    assert percentile_threshold(outlier) < 1000 * 4 / 2048


def test_percentile_cuts_either_end_by_itself() -> None:
    x = np.concatenate([np.linspace(-1, 3, 100_000), [-8, -8, 8, 8]])
    low, high = percentile_ends(histogram_of(x))
    assert low == pytest.approx(-1, abs=8 / 2048)
    assert high == pytest.approx(3, abs=8 / 2048)


def test_squared_error_is_that_of_the_values_up_to_a_bin() -> None:
    for grid in (Grid(scale=0.05), Grid(scale=0.02, zero_point=90)):
        exact = float(np.square(GAUSSIAN - grid.steps(GAUSSIAN) * grid.scale).sum())
        assert squared_error(histogram_of(GAUSSIAN), grid) == pytest.approx(exact, rel=0.02)


def test_no_threshold_has_a_smaller_error() -> None:
    histogram = histogram_of(RANDOM.standard_t(2, 100_000))
    least = squared_error(histogram, symmetric_grid(least_error_threshold(histogram, symmetric_grid)))
    for share in np.linspace(0.1, 1, 20):
        assert least <= squared_error(histogram, symmetric_grid(share * histogram.limit)) * (1 + 1e-3)


def test_no_pair_of_ends_has_a_smaller_error() -> None:
    """Against every pair of a coarse grid, on a skewed distribution with a tail on either side."""
    x = np.concatenate([RANDOM.standard_gamma(2, 100_000) - 0.5, RANDOM.standard_t(3, 20_000) * 0.3])
    histogram = histogram_of(x)
    widest = float(x.min()), float(x.max())
    found = squared_error(histogram, asymmetric_grid(*least_error_ends(histogram, widest, asymmetric_grid)))
    shares = np.linspace(0.1, 1, 12)
    pairs = [squared_error(histogram, asymmetric_grid(a * widest[0], b * widest[1])) for a in shares for b in shares]
    assert found <= min(pairs) * (1 + 1e-3)


def test_the_search_for_both_ends_is_fast() -> None:
    histogram = histogram_of(GAUSSIAN)
    started = time.perf_counter()
    least_error_ends(histogram, (-histogram.limit, histogram.limit), asymmetric_grid)
    assert time.perf_counter() - started < 1


def test_entropy_cuts_a_long_tail_and_keeps_an_even_spread() -> None:
    heavy, even = histogram_of(RANDOM.standard_t(2, 200_000)), histogram_of(RANDOM.uniform(-3, 3, 200_000))
    for levels in (128, 256):
        assert entropy_threshold(heavy, levels) < 0.5 * heavy.limit
        assert entropy_threshold(even, levels) > 0.9 * even.limit


def test_divergence_is_zero_when_levels_are_bins() -> None:
    counts = RANDOM.integers(1, 100, 128).astype(np.float64)
    assert divergence(counts, 128, 128) == pytest.approx(0, abs=1e-12)
    doubled = np.repeat(counts, 2)
    assert divergence(doubled, 256, 128) == pytest.approx(0, abs=1e-12)
    assert divergence(RANDOM.permutation(doubled), 256, 128) > 1e-3


def test_zeros_that_relu_makes_do_not_move_the_entropy_threshold() -> None:
    x = np.abs(GAUSSIAN)
    with_zeros = np.concatenate([x, np.zeros(10 * x.size)])
    assert entropy_threshold(histogram_of(x), 128) == entropy_threshold(histogram_of(with_zeros), 128)
