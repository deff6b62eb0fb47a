"""Sums, products, tables and concatenations."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from ompq_deploy.export.integer.program import (
    IntegerConcat,
    IntegerExtreme,
    IntegerProduct,
    IntegerQuotient,
    IntegerSum,
    IntegerTable,
)
from ompq_deploy.export.integer.rules import Values
from ompq_deploy.simulator.rescale import requantize, shift_and_clamp


def add(addition: IntegerSum, read: Mapping[str, Values]) -> Values:
    """Every term times its multiplier, rounded once."""
    terms = zip(addition.inputs, addition.multipliers, strict=True)
    total = sum((read[name].astype(np.int64) * multiplier for name, multiplier in terms), start=addition.constant)
    return shift_and_clamp(total, addition.clamp)


def multiply_elements(product: IntegerProduct, read: Mapping[str, Values]) -> Values:
    """left * right, broadcast, requantized."""
    left, right = (read[name].astype(np.int64) for name in product.inputs)
    return requantize(left * right, product.requantize, read)


def divide(quotient: IntegerQuotient, read: Mapping[str, Values]) -> Values:
    """x / y in fixed point, rounded to nearest, requantized."""
    x, y = (read[name].astype(np.int64) for name in quotient.inputs)
    divisor = np.maximum(np.maximum(np.abs(y), np.abs(x) // quotient.saturating), 1)
    dividend = np.where(y >= 0, x, -x) << quotient.bits
    return requantize((dividend + divisor // 2) // divisor, quotient.requantize, read)


def extreme(operation: IntegerExtreme, read: Mapping[str, Values]) -> Values:
    """The largest or smallest of the inputs, each on the output's grid."""
    choose = np.maximum if operation.op == "Max" else np.minimum
    return functools.reduce(choose, _brought(operation, read))


def look_up(table: IntegerTable, x: Values) -> Values:
    """The entry of every value."""
    return table.table[x - table.low]


def concatenate(concat: IntegerConcat, read: Mapping[str, Values]) -> Values:
    """The parts, each on the output's grid."""
    return np.concatenate(_brought(concat, read), axis=concat.axis)


def _brought(operation: IntegerConcat | IntegerExtreme, read: Mapping[str, Values]) -> list[Values]:
    return [
        read[name] if rule is None else requantize(read[name].astype(np.int64), rule, read)
        for name, rule in zip(operation.inputs, operation.rescales, strict=True)
    ]
