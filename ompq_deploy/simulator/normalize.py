"""Normalizations and Softmax, in int64."""

from __future__ import annotations

import numpy as np

from ompq_deploy.export.integer.program import PROBABILITY_BITS, IntegerNorm, IntegerNormalization, IntegerSoftmax
from ompq_deploy.export.integer.rules import Int64, Values
from ompq_deploy.simulator.rescale import requantize, shift_and_clamp


def normalize(norm: IntegerNormalization, x: Values) -> Values:
    """(x - mean) / sqrt(var + epsilon), times the multiplier, plus the constant."""
    q, n = x.astype(np.int64), norm.count
    total = q.sum(axis=norm.axes, keepdims=True)
    mean = (2 * total + n) // (2 * n)
    centred, rest = q - mean, total - n * mean
    variance = np.square(centred).sum(axis=norm.axes, keepdims=True) - rest**2 // n
    fraction = (rest**2 % n << (2 * norm.root_shift)) // n
    root = square_root((variance << (2 * norm.root_shift)) - fraction + norm.epsilon)
    quotient = (((n * centred - rest) << norm.quotient_shift) + root // 2) // root
    return shift_and_clamp(quotient * norm.multiplier + norm.constant, norm.clamp)


def softmax(operation: IntegerSoftmax, x: Values) -> Values:
    """Shares of the exponentials of what lies below the largest value."""
    distance = x.max(axis=operation.axis, keepdims=True) - x
    powers = operation.exponentials[np.minimum(distance, operation.exponentials.size - 1)].astype(np.int64)
    total = powers.sum(axis=operation.axis, keepdims=True)
    return requantize(((powers << PROBABILITY_BITS) + total // 2) // total, operation.requantize, {})


def norm(operation: IntegerNorm, x: Values) -> Values:
    """The root of the sum of squares."""
    q = x.astype(np.int64)
    total = np.asarray(np.square(q).sum(axis=operation.axes, keepdims=operation.keep_axes))
    return requantize(square_root((total << (2 * operation.root_shift)) + 1), operation.requantize, {})


def square_root(x: Int64) -> Int64:
    """floor(sqrt(x)) for 0 <= x < 2^62: the float64 root is off by one at most."""
    root = np.sqrt(x.astype(np.float64)).astype(np.int64)
    root -= root * root > x
    return np.asarray(root + ((root + 1) ** 2 <= x))
