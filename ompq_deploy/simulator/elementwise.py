"""Sums, products, tables and concatenations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ompq_deploy.export.integer.program import IntegerConcat, IntegerProduct, IntegerSum, IntegerTable, Values
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


def look_up(table: IntegerTable, x: Values) -> Values:
    """The entry of every value."""
    return table.table[x - table.low]


def concatenate(concat: IntegerConcat, read: Mapping[str, Values]) -> Values:
    """The parts, each on the output's grid."""
    parts = [
        read[name] if rule is None else requantize(read[name].astype(np.int64), rule, read)
        for name, rule in zip(concat.inputs, concat.rescales, strict=True)
    ]
    return np.concatenate(parts, axis=concat.axis)
