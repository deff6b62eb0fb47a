"""ORM: the three estimators against their definitions, and what the paper says of them."""

from __future__ import annotations

import numpy as np
import pytest

from ompq_deploy.errors import BadInput
from ompq_deploy.metrics import orm


def grams(*features: np.ndarray) -> list[np.ndarray]:
    return [x @ x.T for x in features]


def gaussians(n: int, sizes: tuple[int, ...], seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.standard_normal((n, p)) for p in sizes]


def test_paper_estimator_is_equation_6() -> None:
    y, z = gaussians(8, (5, 7))
    expected = np.linalg.norm(z.T @ y) ** 2 / (np.linalg.norm(y.T @ y) * np.linalg.norm(z.T @ z))
    assert orm.orm_matrix(grams(y, z), "paper")[0, 1] == pytest.approx(expected)


def test_cka_estimator_is_the_paper_one_on_centred_features() -> None:
    y, z = gaussians(8, (5, 7))
    centred = grams(y - y.mean(axis=0), z - z.mean(axis=0))
    np.testing.assert_allclose(orm.orm_matrix(grams(y, z), "cka"), orm.orm_matrix(centred, "paper"))


def test_debiased_estimator_is_the_u_statistic_of_hsic() -> None:
    y, z = gaussians(9, (4, 6))

    def hsic1(k: np.ndarray, m: np.ndarray) -> float:
        """Song et al. 2012, equation 5."""
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        total = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
        return total / (n * (n - 3))

    k, m = grams(y, z)
    expected = hsic1(k, m) / np.sqrt(hsic1(k, k) * hsic1(m, m))
    assert orm.orm_matrix([k, m], "debiased")[0, 1] == pytest.approx(expected)


def test_independent_wide_layers_saturate_the_biased_estimator_only() -> None:
    pair = grams(*gaussians(64, (20_000, 20_000)))
    assert orm.orm_matrix(pair, "cka")[0, 1] > 0.99
    assert abs(orm.orm_matrix(pair, "debiased")[0, 1]) < 0.1


@pytest.mark.parametrize("estimator", orm.ESTIMATORS)
def test_the_matrix_is_symmetric_with_ones_and_ignores_scale_and_rotation(estimator: str) -> None:
    a, b, c = gaussians(16, (10, 20, 30))
    rotation, _ = np.linalg.qr(np.random.default_rng(5).standard_normal((20, 20)))
    matrix = orm.orm_matrix(grams(a, b, c), estimator)
    np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(np.diag(matrix), 1.0)
    np.testing.assert_allclose(orm.orm_matrix(grams(3 * a, b @ rotation, c), estimator), matrix)


@pytest.mark.parametrize("estimator", orm.ESTIMATORS)
def test_equal_layers_are_fully_dependent_and_get_equal_importance(estimator: str) -> None:
    a, b = gaussians(16, (10, 20))
    matrix = orm.orm_matrix(grams(a, a, b), estimator)
    assert matrix[0, 1] == pytest.approx(1.0)
    theta = orm.importance(matrix, beta=0.5)
    assert theta[0] == pytest.approx(theta[1])
    assert theta[2] > theta[0]


def test_a_constant_layer_is_orthogonal_instead_of_nan() -> None:
    constant, varying = np.ones((8, 3)), gaussians(8, (5,))[0]
    matrix = orm.orm_matrix(grams(constant, varying), "cka")
    np.testing.assert_array_equal(matrix, np.eye(2))


def test_equation_10_weighs_by_the_mean_of_the_tail() -> None:
    loss = orm.linear_loss(np.array([3.0, 1.0, 2.0]), (4, 8))
    np.testing.assert_allclose(loss, [[8, 0], [6, 0], [8, 0]])


def test_too_few_samples_and_unknown_estimators_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 4 samples"):
        orm.orm_matrix(grams(*gaussians(3, (5, 5))), "debiased")
    with pytest.raises(BadInput, match="unknown ORM estimator"):
        orm.orm_matrix(grams(*gaussians(8, (5, 5))), "other")
