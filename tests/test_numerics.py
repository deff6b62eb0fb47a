"""Integer arithmetic: dyadic multipliers are as close as 31 bits allow, and never overflow int64."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from ompq_deploy.numerics import MAX_SHIFT, dyadic, dyadic_shift, signed_range


@pytest.mark.parametrize("bits", range(2, 9))
def test_signed_range_has_two_to_the_bits_codes(bits: int) -> None:
    low, high = signed_range(bits)
    assert high - low + 1 == 2**bits
    assert low == -high - 1


def test_dyadic_is_exact_to_its_mantissa() -> None:
    ratios = np.exp(np.random.default_rng(1).uniform(np.log(1e-6), np.log(8.0), 500))
    multiplier, shift = dyadic(ratios)
    for ratio, m, s in zip(ratios, multiplier.tolist(), shift.tolist(), strict=True):
        assert abs(Fraction(m, 2**s) / Fraction(ratio) - 1) <= Fraction(1, 2**31)
        assert 2**30 <= m <= 2**31


def test_tiny_ratios_keep_the_shift_within_int64() -> None:
    assert dyadic_shift(np.array([1e-12])).tolist() == [MAX_SHIFT]
    assert (256 << MAX_SHIFT) + 2**62 < 2**63


def test_a_shared_shift_is_honoured() -> None:
    multiplier, shift = dyadic(np.array([0.3, 0.003]), np.array([20, 20]))
    assert shift.tolist() == [20, 20]
    assert multiplier.tolist() == [round(0.3 * 2**20), round(0.003 * 2**20)]
