"""The target of rounding makes up for what happened to a layer's inputs, as far as the samples can tell."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from numpy.typing import NDArray

from ompq_deploy.quantize.covariance import Accumulator, Moments
from ompq_deploy.quantize.target import NONE, STEPS, best_ridge, fitted_target, gain

COLUMNS, ROWS = 24, 80
WEIGHT = np.random.default_rng(0).standard_normal((1, COLUMNS, ROWS))
CHANGE = np.eye(COLUMNS) + 0.1 * np.random.default_rng(1).standard_normal((COLUMNS, COLUMNS))


def drawn(count: int, noise: float, seed: int = 2) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Inputs changed linearly, with noise on top, and outputs of the exact ones: (1, K, P) and (1, R, P)."""
    random = np.random.default_rng(seed)
    exact = random.standard_normal((1, COLUMNS, count))
    seen = CHANGE @ exact + noise * random.standard_normal(exact.shape)
    return seen.astype(np.float32), (WEIGHT.swapaxes(1, 2) @ exact).astype(np.float32)


def halves(count: int, noise: float) -> tuple[Moments, ...]:
    return halved(*drawn(count, noise))


def halved(x: NDArray[np.float32], y: NDArray[np.float32]) -> tuple[Moments, ...]:
    found = []
    for parity in range(2):
        half = Accumulator()
        half.add(x[:, :, parity::2], y[:, :, parity::2])
        found.append(half.moments())
    return tuple(found)


def target(count: int, noise: float) -> NDArray:
    both = halves(count, noise)
    return fitted_target(WEIGHT, reduce(Moments.merged, both), both, np.random.default_rng(0))


def unseen_error(weight: NDArray, noise: float) -> float:
    x, y = drawn(20000, noise, seed=3)
    return float(np.square(y - weight.swapaxes(1, 2) @ x).mean())


def test_a_linear_change_is_undone_where_samples_are_many() -> None:
    expected = np.linalg.solve(CHANGE.T, WEIGHT[0])[None]
    np.testing.assert_allclose(target(4000, 0.0), expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize(("count", "noise"), [(4000, 0.0), (200, 0.1), (60, 0.5), (32, 1.0)])
def test_near_the_least_error_on_unseen_samples(count: int, noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = unseen_error(target(count, noise), noise)
    errors = []
    for t in STEPS:
        monkeypatch.setattr("ompq_deploy.quantize.target.best_ridge", lambda *_, t=t: t)
        errors.append(unseen_error(target(count, noise), noise))
    factor = gain(WEIGHT, reduce(Moments.merged, halves(count, noise)))
    assert errors[-1] == unseen_error(factor * WEIGHT, noise)  # t without end leaves the factor
    assert chosen < 1.15 * min(errors)


def test_the_fewer_samples_the_less_is_fitted() -> None:
    found = [best_ridge(WEIGHT, halves(count, 0.5), np.random.default_rng(0)) for count in (4000, 200, 40)]
    assert found == sorted(found)
    assert found[0] < found[-1]


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_a_common_factor_is_told_by_samples_too_few_for_anything_else(factor: float) -> None:
    random = np.random.default_rng(6)
    exact = random.standard_normal((1, COLUMNS, 16)).astype(np.float32)
    y = WEIGHT.swapaxes(1, 2) @ exact
    both = halved(exact / factor + 0.02 * random.standard_normal(exact.shape), y + random.standard_normal(y.shape))
    found = fitted_target(WEIGHT, both[0].merged(both[1]), both, np.random.default_rng(0))
    np.testing.assert_allclose(found, factor * WEIGHT, rtol=0.03, atol=0.02)


def test_inputs_of_zero_have_no_factor() -> None:
    both = halved(np.zeros((1, COLUMNS, 8), np.float32), np.ones((1, ROWS, 8), np.float32))
    assert gain(WEIGHT, both[0]) == 1


def test_exact_inputs_that_only_seem_to_miss_something_keep_the_weight() -> None:
    """Outputs with noise of their own: nothing in the inputs explains it."""
    random = np.random.default_rng(5)
    x = random.standard_normal((1, COLUMNS, 30)).astype(np.float32)
    y = (WEIGHT.swapaxes(1, 2) @ x + 3 * random.standard_normal((1, ROWS, 30))).astype(np.float32)
    both = halved(x, y)
    assert best_ridge(WEIGHT, both, np.random.default_rng(0)) == NONE
    found = fitted_target(WEIGHT, both[0].merged(both[1]), both, np.random.default_rng(0))
    np.testing.assert_allclose(found, WEIGHT, rtol=0.05)


def test_one_half_tells_nothing() -> None:
    (half, _) = halves(100, 0.5)
    assert fitted_target(WEIGHT, half, (half,), np.random.default_rng(0)) is WEIGHT
