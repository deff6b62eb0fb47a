"""Shrinkage is strong where samples are few, and what it leaves on unseen samples is near the least possible."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ompq_deploy.quantize.gptq import damped, output_error, second_order_codes
from ompq_deploy.quantize.shrinkage import STEPS, best_shrinkage, shrunk

DAMPING = 0.01
COLUMNS = 96


def drawn(count: int, seed: int, columns: int = COLUMNS) -> NDArray[np.float64]:
    """Samples (columns, count) of one distribution whose eigenvalues fall by three orders of magnitude."""
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((columns, columns)))
    random = np.random.default_rng(seed)
    return basis @ (np.logspace(0, -3, columns)[:, None] ** 0.5 * random.standard_normal((columns, count)))


def covariance(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return (x @ x.T / x.shape[1])[np.newaxis]


def chosen(count: int, columns: int = COLUMNS) -> float:
    x = drawn(count, 1, columns)
    halves = (covariance(x[:, ::2]), covariance(x[:, 1::2]))
    return best_shrinkage(halves, DAMPING, np.random.default_rng(0))


def unseen_error(count: int, r: float) -> float:
    weight = np.random.default_rng(2).standard_normal((1, COLUMNS, 200))
    hessian = damped(shrunk(covariance(drawn(count, 1)), r), DAMPING)
    codes, scale = second_order_codes(weight, hessian, 4)
    return float(output_error(weight, codes, scale, covariance(drawn(20000, 3))).sum())


def test_the_diagonal_stays_and_the_rest_shrinks() -> None:
    hessian = covariance(drawn(50, 1))
    half = shrunk(hessian, 0.5)
    off = ~np.eye(COLUMNS, dtype=bool)
    np.testing.assert_array_equal(np.diag(half[0]), np.diag(hessian[0]))
    np.testing.assert_allclose(half[0][off], 0.5 * hessian[0][off])


def test_the_fewer_samples_the_more() -> None:
    found = [chosen(count) for count in (24, 200, 20000)]
    assert found == sorted(found, reverse=True)
    assert found[0] >= 0.5
    assert found[-1] <= 0.03


@pytest.mark.parametrize("count", [24, 64, 400])
def test_near_the_least_error_on_unseen_samples(count: int) -> None:
    errors = [unseen_error(count, r) for r in STEPS]
    assert unseen_error(count, chosen(count)) < 1.1 * min(errors)


def test_it_pays() -> None:
    assert unseen_error(24, chosen(24)) < 0.8 * unseen_error(24, 0.0)


def test_probes_stand_for_all_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer probes than dimensions choose what an exact trace chooses, or the step beside it."""
    for count in (24, 200):
        estimated = STEPS.index(chosen(count))
        with monkeypatch.context() as patch:
            patch.setattr("ompq_deploy.quantize.cross_validation.PROBES", COLUMNS)
            assert abs(STEPS.index(chosen(count)) - estimated) <= 1


def test_steps_at_which_float32_is_singular_are_passed_over() -> None:
    x = drawn(40, 1).astype(np.float32).astype(np.float64)
    x[1:] = x[0] * np.linspace(1, 2, COLUMNS - 1)[:, None]
    halves = (covariance(x[:, ::2]), covariance(x[:, 1::2]))
    assert best_shrinkage(halves, 0.0, np.random.default_rng(0)) > 0
