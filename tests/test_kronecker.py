"""Rounding channels together: feedback is that of the whole Kronecker product, and E(Q) only ever falls."""

from __future__ import annotations

import numpy as np
import pytest

from ompq_deploy.numerics import signed_range
from ompq_deploy.quantize import gptq, kronecker
from ompq_deploy.quantize.kronecker import coupled_codes, coupled_error, descend, feedback, refit

BITS = 3
Problem = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def covariance(size: int, random: np.random.Generator) -> np.ndarray:
    mixed = (random.standard_normal((size, size)) / np.sqrt(size) + 0.3) @ random.standard_normal((size, 4 * size))
    return gptq.damped((mixed @ mixed.T / (4 * size))[None], 0.01)[0]


def problem(columns: int, channels: int, seed: int = 0) -> Problem:
    """W, H, A, and what rounding every channel for itself leaves: codes and scales."""
    random = np.random.default_rng(seed)
    hessian, coupling = covariance(columns, random), covariance(channels, random)
    weight = random.standard_normal((columns, channels))
    codes, scale = gptq.second_order_codes(weight[None], hessian[None], BITS)
    return weight, hessian, coupling, codes[0].astype(np.float64), scale[0].astype(np.float64)


def one_by_one(weight: np.ndarray, matrix: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Error feedback by the definition, over the elements of W one channel after the other; U is that of H (x) A."""
    unit = gptq.unit_upper(matrix[None])[0]
    flat, steps = weight.T.ravel(), np.repeat(scale, len(weight))
    codes, error = np.zeros_like(flat), np.zeros_like(flat)
    for j in range(flat.size):
        wanted = flat[j] + error[:j] @ unit[:j, j]
        codes[j] = np.clip(np.rint(wanted / steps[j]), *signed_range(BITS))
        error[j] = flat[j] - codes[j] * steps[j]
    return codes.reshape(weight.T.shape).T


@pytest.mark.parametrize("tile", [(128, 64), (4, 3), (1, 2), (5, 1)])
def test_feedback_is_that_of_the_kronecker_product(tile: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kronecker, "TILE", tile)
    weight, hessian, coupling, _, scale = problem(11, 7)
    u, v = gptq.unit_upper(hessian[None])[0], gptq.unit_upper(coupling[None])[0]
    expected = one_by_one(weight, np.kron(coupling, hessian), scale)
    np.testing.assert_array_equal(feedback(weight, u, v, scale, BITS), expected)
    alone = one_by_one(weight, np.kron(np.eye(7), hessian), scale)
    assert (alone != expected).any()


def test_without_coupling_feedback_is_that_of_every_channel() -> None:
    weight, hessian, _, _, scale = problem(140, 70)
    u = gptq.unit_upper(hessian[None])
    expected = gptq.feedback(weight[None], u, scale[None], BITS)[0]
    np.testing.assert_array_equal(feedback(weight, u[0], np.eye(70), scale, BITS), expected)


def test_descent_and_scales_lower_the_error() -> None:
    weight, hessian, coupling, codes, scale = problem(140, 70)
    errors = [coupled_error(weight, hessian, coupling, scale, codes)]
    for _ in range(4):
        codes = descend(weight, hessian, coupling, scale, codes, BITS)
        errors.append(coupled_error(weight, hessian, coupling, scale, codes))
        scale = refit(weight, hessian, coupling, scale, codes, np.zeros(70))
        errors.append(coupled_error(weight, hessian, coupling, scale, codes))
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < errors[1] < errors[0]
    assert np.abs(codes).max() <= 4
    assert np.array_equal(codes, np.rint(codes))


def test_a_sweep_leaves_no_better_code_behind_where_nothing_is_coupled() -> None:
    weight, _, _, codes, scale = problem(20, 6)
    swept = descend(weight, np.eye(20), np.eye(6), scale, codes, BITS)
    np.testing.assert_array_equal(swept, np.clip(np.rint(weight / scale), *signed_range(BITS)))


def test_scales_are_those_of_least_error() -> None:
    weight, hessian, coupling, codes, scale = problem(40, 8)
    fitted = refit(weight, hessian, coupling, scale, codes, np.zeros(8)).astype(np.float64)
    least = coupled_error(weight, hessian, coupling, fitted, codes)
    for channel in range(8):
        for factor in (0.99, 1.01):
            moved = fitted.copy()
            moved[channel] *= factor
            assert coupled_error(weight, hessian, coupling, moved, codes) > least


def test_scales_stay_where_codes_tell_nothing() -> None:
    weight, hessian, coupling, codes, scale = problem(40, 8)
    codes[:, 3] = 0
    fitted = refit(weight, hessian, coupling, scale, codes, np.zeros(8))
    assert fitted[3] == np.float32(scale[3])
    floor = np.full(8, 2 * scale.max())
    bounded = refit(weight, hessian, coupling, scale, codes, floor)
    assert (bounded == scale).all() or (bounded >= floor).all()


@pytest.mark.parametrize("shape", [(144, 32), (30, 200), (300, 5)])
def test_channels_rounded_together_err_less(shape: tuple[int, int]) -> None:
    weight, hessian, coupling, codes, scale = problem(*shape)
    found, scales = coupled_codes(weight, hessian, coupling, codes, scale, BITS, np.zeros(shape[1]))
    assert found.dtype == np.int8
    assert (scales > 0).all()
    low, high = signed_range(BITS)
    assert low <= found.min() <= found.max() <= high
    before = coupled_error(weight, hessian, coupling, scale, codes)
    after = coupled_error(weight, hessian, coupling, scales.astype(np.float64), found.astype(np.float64))
    assert after < 0.8 * before
    alone = np.eye(shape[1])
    assert coupled_error(weight, hessian, alone, scales, found) > coupled_error(weight, hessian, alone, scale, codes)


def test_what_cannot_be_bettered_stays() -> None:
    weight, hessian, coupling, codes, scale = problem(12, 4)
    exact = codes * scale
    found, scales = coupled_codes(exact, hessian, coupling, codes, scale, BITS, np.zeros(4))
    assert coupled_error(exact, hessian, coupling, scales, found) <= 1e-9 * coupled_error(
        weight, hessian, coupling, scale, codes
    )
    np.testing.assert_array_equal(found, codes)
