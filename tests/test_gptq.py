"""What second-order rounding promises: less output error for more weight error, and never worse than where it began."""

from __future__ import annotations

import numpy as np
import pytest

from ompq_deploy.numerics import signed_range
from ompq_deploy.quantize.gptq import (
    damped,
    descend,
    feedback,
    output_error,
    refit,
    second_order_codes,
    unit_upper,
)
from ompq_deploy.weight_scale import best_scale

SHAPES = [(1, 144, 32), (4, 36, 8), (96, 9, 1), (1, 300, 5)]
"""Dense, grouped, depthwise, and more columns than one block holds."""


def problem(shape: tuple[int, int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights (G, K, R), the damped covariance of correlated inputs, and scales that clip little."""
    groups, columns, rows = shape
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((groups, columns, columns)) / np.sqrt(columns) + 0.3
    inputs = np.maximum(mixing @ random.standard_normal((groups, columns, 2000)), 0)
    weight = random.standard_normal(shape)
    scale = best_scale(weight.swapaxes(1, 2).reshape(-1, columns).astype(np.float32), 4).reshape(groups, rows)
    return weight, damped(inputs @ inputs.swapaxes(1, 2) / 2000, 0.01), scale.astype(np.float64)


def nearest(weight: np.ndarray, scale: np.ndarray, bits: int) -> np.ndarray:
    return np.clip(np.rint(weight / scale[:, None, :]), *signed_range(bits))


def weight_error(weight: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> float:
    return float(np.sum((weight - codes * scale[:, None, :]) ** 2))


@pytest.mark.parametrize("shape", SHAPES)
def test_feedback_trades_weight_error_for_output_error(shape: tuple[int, int, int]) -> None:
    weight, hessian, scale = problem(shape)
    rounded = nearest(weight, scale, 4)
    codes = feedback(weight, unit_upper(hessian), scale, 4)
    assert weight_error(weight, codes, scale) > weight_error(weight, rounded, scale)
    less = output_error(weight, codes, scale, hessian).sum() / output_error(weight, rounded, scale, hessian).sum()
    assert less < 0.8


@pytest.mark.parametrize("shape", SHAPES[1:3])
def test_groups_that_share_scales(shape: tuple[int, int, int]) -> None:
    weight, hessian, _ = problem(shape)
    codes, scale = second_order_codes(weight, hessian, 4, shared=True)
    np.testing.assert_array_equal(scale, np.broadcast_to(scale[0], scale.shape))
    rows = weight.transpose(2, 0, 1).reshape(shape[2], -1).astype(np.float32)
    plain = np.broadcast_to(best_scale(rows, 4), scale.shape)
    error = output_error(weight, nearest(weight, plain, 4), plain, hessian).sum()
    assert output_error(weight, codes, scale, hessian).sum() < 0.8 * error


def test_feedback_without_correlation_rounds_to_nearest() -> None:
    weight, _, scale = problem((3, 20, 7))
    diagonal = np.random.default_rng(1).uniform(0.1, 5, (3, 20))
    codes = feedback(weight, unit_upper(diagonal[:, :, None] * np.eye(20)), scale, 4)
    np.testing.assert_array_equal(codes, nearest(weight, scale, 4))


def test_the_factor_rebuilds_the_covariance() -> None:
    _, hessian, _ = problem((2, 40, 1))
    unit = unit_upper(hessian)
    np.testing.assert_allclose(np.triu(unit), unit)
    np.testing.assert_allclose(np.einsum("gkk->gk", unit), 1)
    middle = np.linalg.solve(unit, np.linalg.solve(unit, hessian).swapaxes(1, 2))
    off_diagonal = middle - np.einsum("gkk->gk", middle)[:, :, None] * np.eye(40)
    np.testing.assert_allclose(off_diagonal, 0, atol=1e-8)


def test_feedback_is_the_published_algorithm() -> None:
    """GPTQ as printed: the inverse's Cholesky factor, one column at a time, the rest of the row updated."""
    weight, hessian, scale = problem((1, 150, 6))
    factor = np.linalg.cholesky(np.linalg.inv(hessian[0])).T
    w, expected = weight[0].copy(), np.empty_like(weight[0])
    for j in range(150):
        expected[j] = np.clip(np.rint(w[j] / scale[0]), -8, 7)
        w[j:] -= factor[j, j:, None] * ((w[j] - expected[j] * scale[0]) / factor[j, j])
    np.testing.assert_array_equal(feedback(weight, unit_upper(hessian), scale, 4)[0], expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_descent_and_rescaling_never_lose(shape: tuple[int, int, int], bits: int) -> None:
    weight, hessian, scale = problem(shape)
    codes = nearest(weight, scale, bits)
    error = output_error(weight, codes, scale, hessian)
    for _ in range(3):
        codes = descend(weight, hessian, scale, codes, bits)
        better = output_error(weight, codes, scale, hessian)
        assert (better <= error * (1 + 1e-9)).all()
        scale = refit(weight, hessian, scale, codes)
        error = output_error(weight, codes, scale, hessian)
        assert (error <= better * (1 + 1e-9)).all()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", SHAPES)
def test_second_order_codes_beat_rounding_with_the_best_scale(shape: tuple[int, int, int], bits: int) -> None:
    weight, hessian, _ = problem(shape)
    groups, columns, rows = shape
    plain = best_scale(weight.swapaxes(1, 2).reshape(-1, columns).astype(np.float32), bits).reshape(groups, rows)
    codes, scale = second_order_codes(weight, hessian, bits)
    low, high = signed_range(bits)
    assert codes.dtype == np.int8
    assert low <= codes.min()
    assert codes.max() <= high
    assert scale.dtype == np.float32
    assert (scale > 0).all()
    found = output_error(weight, codes.astype(float), scale.astype(float), hessian).sum()
    assert found < 0.9 * output_error(weight, nearest(weight, plain, bits), plain, hessian).sum()


def test_fewer_samples_than_columns_and_dead_inputs() -> None:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((2, 60, 10))
    inputs[1] = 0
    hessian = inputs @ inputs.swapaxes(1, 2) / 10
    weight = random.standard_normal((2, 60, 4))
    codes, scale = second_order_codes(weight, damped(hessian, 0.01), 4)
    rounded = best_scale(weight.swapaxes(1, 2).reshape(-1, 60).astype(np.float32), 4).reshape(2, 4)
    found = output_error(weight, codes.astype(float), scale.astype(float), hessian)
    plain = output_error(weight, nearest(weight, rounded, 4), rounded, hessian)
    assert found[0].sum() < 0.2 * plain[0].sum()
    np.testing.assert_array_equal(found[1], 0)
