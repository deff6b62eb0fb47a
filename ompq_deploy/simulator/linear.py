"""Convolutions and matrix products.

Sums of products of grid values and int8 weights stay below 2^53, so float64 matrix products are exact, and fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.export.integer.geometry import output_sizes, pad_widths, taps
from ompq_deploy.export.integer.program import IntegerConv, IntegerMatMul, IntegerTensorProduct, IntegerZeroInsertion
from ompq_deploy.export.integer.rules import Int64, Values
from ompq_deploy.numerics import along_axis
from ompq_deploy.simulator.rescale import requantize


def accumulate(layer: IntegerConv | IntegerMatMul, x: Values) -> Int64:
    """The sum of products of a layer, without its bias."""
    return convolve(layer, x) if isinstance(layer, IntegerConv) else multiply(layer, x)


def convolve(conv: IntegerConv, x: Values) -> Int64:
    """One matrix product per kernel element: (groups, C_out / g, C_in / g) @ (N, groups, C_in / g, positions)."""
    padded = np.pad(x.astype(np.float64), pad_widths(conv.window, x.ndim))
    channels, inputs = conv.weights.shape[:2]
    weights = conv.weights.astype(np.float64).reshape(conv.groups, channels // conv.groups, *conv.weights.shape[1:])
    total = np.zeros(1)
    for element, view in taps(padded, conv.window):
        columns = view.reshape(len(x), conv.groups, inputs, -1)
        total = total + _tap(weights, element) @ columns
    return total.reshape(len(x), channels, *output_sizes(conv.window, x.shape[2:])).astype(np.int64)


def multiply(matmul: IntegerMatMul, x: Values) -> Int64:
    """x @ weights."""
    return (x.astype(np.float64) @ matmul.weights.astype(np.float64)).astype(np.int64)


def add_bias(layer: IntegerConv | IntegerMatMul, total: Int64) -> Int64:
    """An accumulator and the bias of its channels."""
    if isinstance(layer, IntegerMatMul):
        return total + layer.bias
    return total + along_axis(layer.bias, layer.weights.ndim - 1, 0)


def multiply_tensors(product: IntegerTensorProduct, read: Mapping[str, Values]) -> Values:
    """left @ right, both computed, requantized."""
    left, right = (read[name].astype(np.int64) for name in product.inputs)
    return requantize(left @ right, product.requantize, read)


def insert_zeros(insertion: IntegerZeroInsertion, x: Values) -> Values:
    """Every element of x at a multiple of the strides, zeros elsewhere."""
    sizes = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], insertion.strides, strict=True)]
    spread = np.zeros((*x.shape[:2], *sizes), x.dtype)
    places: tuple[Any, ...] = tuple(slice(None, None, stride) for stride in insertion.strides)
    spread[(..., *places)] = x
    return spread


def _tap(weights: NDArray[np.float64], element: tuple[Any, ...]) -> NDArray[np.float64]:
    """The weights of one kernel element, (groups, C_out / g, C_in / g)."""
    return weights[(..., *element)]
