"""Weight scales minimize the error they claim to, and bias correction removes the mean it claims to."""

from __future__ import annotations

import numpy as np
import pytest

from ompq_deploy.artifacts import Layer
from ompq_deploy.numerics import along_axis, signed_range
from ompq_deploy.quantize.bias_correction import mean_output_error
from ompq_deploy.weight_scale import quantize_weight, widen_for_bias


def error(weight: np.ndarray, bits: int, scale: np.ndarray, axis: int) -> np.ndarray:
    low, high = signed_range(bits)
    s = along_axis(scale, weight.ndim, axis)
    squared = (np.clip(np.rint(weight / s), low, high) * s - weight) ** 2
    return np.moveaxis(squared, axis, 0).reshape(weight.shape[axis], -1).sum(axis=1)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("axis", [0, 1])
def test_no_scale_on_a_fine_grid_is_much_better(bits: int, axis: int) -> None:
    weight = np.random.default_rng(bits).standard_normal((6, 6, 20, 20)).astype(np.float32)
    codes, scale = quantize_weight(weight, bits, axis)
    low, high = signed_range(bits)
    assert low <= codes.min()
    assert codes.max() <= high
    largest = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)).max(axis=1)
    grid = [error(weight, bits, (largest * a / high).astype(np.float32), axis) for a in np.linspace(0.2, 1.2, 400)]
    assert (error(weight, bits, scale, axis) <= 1.1 * np.min(grid, axis=0)).all()


def test_clipping_beats_the_full_range_at_four_bits() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 4096)).astype(np.float32)
    _, scale = quantize_weight(weight, 4, 0)
    full = np.abs(weight).max(axis=1) / 7
    assert (error(weight, 4, scale, 0) < 0.7 * error(weight, 4, full, 0)).all()


def test_weights_already_on_a_grid_are_kept() -> None:
    codes = np.random.default_rng(0).integers(-7, 8, (3, 50)).astype(np.float32)
    codes[:, 0] = 7
    found, scale = quantize_weight(codes * np.float32(0.25), 4, 0)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(scale, 0.25)


def test_a_channel_of_zeros_stays_zero() -> None:
    codes, scale = quantize_weight(np.array([[0.0] * 9, [1e-44] * 9], np.float32), 4, 0)
    assert not codes.any()
    assert (scale > 0).all()


def layer(op: str, shape: tuple[int, ...], axis: int, groups: int = 1) -> Layer:
    return Layer(
        name="l", op=op, nodes=("l",), weight="w", shape=shape, channel_axis=axis, groups=groups, inputs=("x",),
        output="y", macs=0,
    )  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_mean_error_of_a_convolution_over_constant_channels(groups: int) -> None:
    random = np.random.default_rng(groups)
    change = random.standard_normal((8, 4 // groups, 3, 3))
    means = random.standard_normal(4)
    expected = np.zeros(8)
    for out in range(8):
        first = out // (8 // groups) * (4 // groups)
        for k in range(4 // groups):
            expected[out] += change[out, k].sum() * means[first + k]
    np.testing.assert_allclose(mean_output_error(layer("Conv", change.shape, 0, groups), change, means), expected)


def test_mean_error_of_linear_layers() -> None:
    random = np.random.default_rng(0)
    change, means = random.standard_normal((5, 3)), random.standard_normal(3)
    np.testing.assert_allclose(mean_output_error(layer("Gemm", (5, 3), 0), change, means), change @ means)
    np.testing.assert_allclose(mean_output_error(layer("Gemm", (3, 5), 1), change.T, means), change @ means)
    np.testing.assert_allclose(mean_output_error(layer("MatMul", (3, 5), 1), change.T, means), change @ means)


def test_mean_error_of_a_transposed_convolution_spreads_over_the_stride() -> None:
    change = np.ones((2, 3, 4, 4))
    found = mean_output_error(layer("ConvTranspose", change.shape, 1), change, np.array([1.0, 2.0]), strides=(2, 2))
    np.testing.assert_allclose(found, [(1 + 2) * 16 / 4] * 3)


def test_a_channel_too_small_for_its_bias_gets_a_grid_that_holds_it() -> None:
    weight = np.random.default_rng(0).standard_normal((3, 4, 1, 1)).astype(np.float32)
    weight[1] *= 1e-20
    codes, scale = quantize_weight(weight, 8, 0)
    least = np.array([0, 1e-9, 0], np.float32)
    wide_codes, wide_scale = widen_for_bias(weight, codes, scale, least, 8, 0)
    assert wide_scale[1] == least[1]
    assert not wide_codes[1].any()
    np.testing.assert_array_equal(wide_codes[[0, 2]], codes[[0, 2]])
    np.testing.assert_array_equal(wide_scale[[0, 2]], scale[[0, 2]])
