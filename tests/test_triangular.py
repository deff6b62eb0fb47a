"""Blocked factors and solutions are those of LAPACK, whatever the size is a multiple of."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ompq_deploy.quantize.triangular import BLOCK, cholesky, solve_lower, solve_positive, solve_transposed

SIZES = (1, 9, BLOCK, BLOCK + 1, 3 * BLOCK - 5)


def positive(size: int, dtype: type = np.float64) -> NDArray:
    """Two covariances (2, K, K)."""
    x = np.random.default_rng(size).standard_normal((2, size, 2 * size))
    return (x @ x.swapaxes(1, 2) / (2 * size)).astype(dtype)


@pytest.mark.parametrize("size", SIZES)
def test_cholesky(size: int) -> None:
    matrix = positive(size)
    np.testing.assert_allclose(cholesky(matrix), np.linalg.cholesky(matrix), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_solutions(size: int) -> None:
    matrix, right = positive(size), np.random.default_rng(1).standard_normal((2, size, 3))
    lower = np.linalg.cholesky(matrix)
    np.testing.assert_allclose(lower @ solve_lower(lower, right), right, atol=1e-10)
    np.testing.assert_allclose(lower.swapaxes(1, 2) @ solve_transposed(lower, right), right, atol=1e-10)
    np.testing.assert_allclose(matrix @ solve_positive(matrix, right), right, atol=1e-10)


def test_float32_stays_float32() -> None:
    matrix, right = positive(300, np.float32), np.ones((2, 300, 1), np.float32)
    found = solve_positive(matrix, right)
    assert cholesky(matrix).dtype == found.dtype == np.float32
    np.testing.assert_allclose(matrix @ found, right, atol=1e-3)


def test_what_is_not_positive_definite_is_refused() -> None:
    matrix = positive(300)
    matrix[1, 299, 299] = -1
    with pytest.raises(np.linalg.LinAlgError):
        cholesky(matrix)
