"""Cholesky factors and triangular systems, by blocks, so that nearly all of the work is matrix products.

On a covariance of 4,608 inputs `np.linalg.cholesky`, with the BLAS that NumPy brings, takes twice as long in float64
and five times as long in float32, and NumPy has no solver that knows a matrix to be triangular. Matrices are (G, K, K),
right-hand sides (G, K, N); float32 stays float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 128
"""Rows and columns taken at once."""


def cholesky(matrix: NDArray) -> NDArray:
    """L, lower triangular, of `matrix` = L L^T; np.linalg.LinAlgError where that is not positive definite."""
    size = matrix.shape[1]
    lower = np.zeros_like(matrix)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        panel = matrix[:, start:, start:end] - lower[:, start:, :start] @ lower[:, start:end, :start].swapaxes(1, 2)
        corner = np.linalg.cholesky(panel[:, : end - start])
        lower[:, start:end, start:end] = corner
        lower[:, end:, start:end] = panel[:, end - start :] @ np.linalg.inv(corner).swapaxes(1, 2)
    return lower


def solve_lower(lower: NDArray, right: NDArray) -> NDArray:
    """X of L X = `right`, for a lower triangular L."""
    found = right.copy()
    for start in range(0, lower.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        found[:, block] -= lower[:, block, :start] @ found[:, :start]
        found[:, block] = np.linalg.inv(lower[:, block, block]) @ found[:, block]
    return found


def solve_transposed(lower: NDArray, right: NDArray) -> NDArray:
    """X of L^T X = `right`, for a lower triangular L."""
    found = right.copy()
    for start in reversed(range(0, lower.shape[1], BLOCK)):
        block, after = slice(start, start + BLOCK), slice(start + BLOCK, None)
        found[:, block] -= lower[:, after, block].swapaxes(1, 2) @ found[:, after]
        found[:, block] = np.linalg.inv(lower[:, block, block]).swapaxes(1, 2) @ found[:, block]
    return found


def solve_positive(matrix: NDArray, right: NDArray) -> NDArray:
    """X of `matrix` X = `right`, for a positive definite matrix."""
    lower = cholesky(matrix)
    return solve_transposed(lower, solve_lower(lower, right))
