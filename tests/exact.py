"""Evaluate an integer program a third way, from docs/integer-spec.md: whole numbers without a width.

Python integers cannot overflow. Sums of products of 8-bit values are float64 products of whole windows, exact below
2^53. Moves and settings are onnx's own reference operators. Slow: for small graphs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper
from onnx.reference import ReferenceEvaluator

from ompq_deploy.export.integer import program as p

Whole = np.ndarray
"""An array of Python integers."""

_clamp = np.frompyfunc(lambda value, low, high: min(max(value, low), high), 3, 1)


def whole(values: Any) -> Whole:
    """Any array of integers as Python integers."""
    return np.asarray(np.frompyfunc(int, 1, 1)(np.asarray(values)), object)


def run_exactly(program: p.IntegerProgram, feeds: Mapping[str, np.ndarray]) -> dict[str, Whole]:
    """Every integer tensor of a run, by name."""
    known: dict[str, Any] = {}
    for name in program.inputs:
        grid = program.grids[name]
        quotients = feeds[name].astype(np.float32) / np.float32(grid.scale)
        codes = np.frompyfunc(lambda x: round(float(x)), 1, 1)(quotients)
        known[name] = _clamp(whole(codes), grid.low, grid.high)
    for operation in program.operations:
        if isinstance(operation, p.IntegerSetting):
            known[operation.output] = setting(operation, known)
        elif p.leaves_integers(operation):
            known[operation.output] = evaluate(operation, known)
    return {name: value for name, value in known.items() if name in program.grids}


def evaluate(operation: Any, known: Mapping[str, Any]) -> Whole:
    """The integers that one operation computes."""
    return EVALUATIONS[type(operation)](operation, known)


def shift_clamp(total: Whole, rule: p.ShiftClamp) -> Whole:
    """Nearest multiple of 2^shift, ties up, divided by it, and held between low and high."""
    power = np.frompyfunc(lambda s: 2 ** int(s), 1, 1)(rule.shift)
    return np.asarray(_clamp((2 * total + power) // (2 * power), rule.low, rule.high), object)


def requantize(total: Whole, rule: p.Requantize | p.FloatRescale, known: Mapping[str, Any]) -> Whole:
    scaled = total if rule.multiplier is None else total * whole(rule.multiplier)
    if rule.skip_multiplier is not None:
        scaled = scaled + known[rule.skip] * whole(rule.skip_multiplier)
    return float_rescale(scaled, rule) if isinstance(rule, p.FloatRescale) else shift_clamp(scaled, rule.clamp)


def float_rescale(total: Whole, rule: p.FloatRescale) -> Whole:
    """The product of two float32 numbers is exact in float64, so it is rounded once, to float32; Python's round takes
    ties to even."""
    rounded = total.astype(np.float32).astype(np.float64) * rule.scale.astype(np.float64)
    steps = np.frompyfunc(lambda x: round(float(x)), 1, 1)(rounded.astype(np.float32))
    return np.asarray(_clamp(steps, rule.low, rule.high), object)


def windows(x: np.ndarray, window: p.Window, fill: float) -> np.ndarray:
    """(N, C, positions..., kernel...): what lies under the window at every position."""
    rank = len(window.kernel)
    pads = [(0, 0), (0, 0), *zip(window.pads[:rank], window.pads[rank:], strict=True)]
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(window.kernel, window.dilations, strict=True)]
    padded = np.pad(x, pads, constant_values=fill)
    view = sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    steps = [slice(None), slice(None), *(slice(None, None, stride) for stride in window.strides)]
    return view[(*steps, *(slice(None, None, dilation) for dilation in window.dilations))]


def conv(operation: p.IntegerConv, known: Mapping[str, Any]) -> Whole:
    assert operation.requantize is not None
    view = windows(known[operation.input].astype(np.float64), operation.window, 0.0)
    rank = len(operation.window.kernel)
    groups = operation.groups
    outputs, inputs = operation.weights.shape[0] // groups, operation.weights.shape[1]
    parts = []
    for group in range(groups):
        weights = operation.weights[group * outputs : (group + 1) * outputs].astype(np.float64)
        under = view[:, group * inputs : (group + 1) * inputs]
        kernel = list(range(2 + rank, 2 + 2 * rank))
        part = np.tensordot(under, weights, axes=([1, *kernel], list(range(1, 2 + rank))))
        parts.append(np.moveaxis(part, -1, 1))
    bias = whole(operation.bias).reshape(-1, *[1] * rank)
    total = whole(np.concatenate(parts, axis=1)) + bias
    return requantize(total, operation.requantize, known)


def matmul(operation: p.IntegerMatMul, known: Mapping[str, Any]) -> Whole:
    assert operation.requantize is not None
    total = np.tensordot(known[operation.input], whole(operation.weights), axes=1)
    return requantize(total + whole(operation.bias), operation.requantize, known)


def tensor_product(operation: p.IntegerTensorProduct, known: Mapping[str, Any]) -> Whole:
    left, right = (known[name] for name in operation.inputs)
    total = (left[..., :, :, None] * right[..., None, :, :]).sum(axis=-2)
    return requantize(total, operation.requantize, known)


def product(operation: p.IntegerProduct, known: Mapping[str, Any]) -> Whole:
    left, right = (known[name] for name in operation.inputs)
    return requantize(left * right, operation.requantize, known)


def quotient(operation: p.IntegerQuotient, known: Mapping[str, Any]) -> Whole:
    def divide(x: int, y: int) -> int:
        divisor = max(abs(y), abs(x) // operation.saturating, 1)
        found = ((x if y >= 0 else -x) * 2**operation.bits + divisor // 2) // divisor
        assert abs(found) <= operation.reach
        return found

    found = np.frompyfunc(divide, 2, 1)(*(known[name] for name in operation.inputs))
    return requantize(np.asarray(found, object), operation.requantize, known)


def extreme(operation: p.IntegerExtreme, known: Mapping[str, Any]) -> Whole:
    choose = np.frompyfunc(max if operation.op == "Max" else min, 2, 1)
    return np.asarray(functools.reduce(choose, _brought(operation, known)), object)


def norm(operation: p.IntegerNorm, known: Mapping[str, Any]) -> Whole:
    squares = np.asarray(np.sum(known[operation.input] ** 2, axis=operation.axes, keepdims=operation.keep_axes), object)
    roots = np.frompyfunc(math.isqrt, 1, 1)(squares * 4**operation.root_shift + 1)
    return requantize(np.asarray(roots, object), operation.requantize, known)


def weighted_sum(operation: p.IntegerSum, known: Mapping[str, Any]) -> Whole:
    total = whole(operation.constant)
    for name, multiplier in zip(operation.inputs, operation.multipliers, strict=True):
        total = total + known[name] * whole(multiplier)
    return shift_clamp(total, operation.clamp)


def table(operation: p.IntegerTable, known: Mapping[str, Any]) -> Whole:
    entries = dict(enumerate(operation.table.tolist(), start=operation.low))
    return np.asarray(np.frompyfunc(lambda q: entries[q], 1, 1)(known[operation.input]), object)


def concat(operation: p.IntegerConcat, known: Mapping[str, Any]) -> Whole:
    return np.concatenate(_brought(operation, known), axis=operation.axis)


def _brought(operation: p.IntegerConcat | p.IntegerExtreme, known: Mapping[str, Any]) -> list[Whole]:
    parts = zip(operation.inputs, operation.rescales, strict=True)
    return [known[name] if rule is None else requantize(known[name], rule, known) for name, rule in parts]


def average_pool(operation: p.IntegerAveragePool, known: Mapping[str, Any]) -> Whole:
    view = windows(known[operation.input].astype(np.float64), operation.window, 0.0)
    total = view.sum(axis=tuple(range(-len(operation.window.kernel), 0)))
    return requantize(whole(total), operation.requantize, known)


def max_pool(operation: p.IntegerMaxPool, known: Mapping[str, Any]) -> Whole:
    view = windows(known[operation.input].astype(np.float64), operation.window, -math.inf)
    return whole(view.max(axis=tuple(range(-len(operation.window.kernel), 0))))


def mean(operation: p.IntegerMean, known: Mapping[str, Any]) -> Whole:
    total = np.sum(known[operation.input], axis=operation.axes, keepdims=operation.keep_axes)
    return requantize(np.asarray(total, object), operation.requantize, known)


def zero_insertion(operation: p.IntegerZeroInsertion, known: Mapping[str, Any]) -> Whole:
    x = known[operation.input]
    for axis, stride in enumerate(operation.strides, start=2):
        places = [i * stride for i in range(x.shape[axis])]
        spread = np.full((*x.shape[:axis], places[-1] + 1, *x.shape[axis + 1 :]), 0, object)
        for i, place in enumerate(places):
            spread.swapaxes(0, axis)[place] = x.swapaxes(0, axis)[i]
        x = spread
    return x


def normalization(operation: p.IntegerNormalization, known: Mapping[str, Any]) -> Whole:
    """Slice by slice, in the letters of the specification."""
    x = known[operation.input]
    z = np.empty(x.shape, object)
    n, kept = operation.count, [axis for axis in range(x.ndim) if axis not in operation.axes]
    for place in itertools.product(*(range(x.shape[axis]) for axis in kept)):
        index: list[Any] = [slice(None)] * x.ndim
        for axis, i in zip(kept, place, strict=True):
            index[axis] = i
        values = x[tuple(index)]
        s = int(values.sum())
        m = (2 * s + n) // (2 * n)
        r = s - n * m
        v = sum((int(q) - m) ** 2 for q in values.reshape(-1)) - r * r // n
        shift = 4**operation.root_shift
        root = math.isqrt(v * shift - r * r % n * shift // n + operation.epsilon)
        numerators = (n * (values - m) - r) * 2**operation.quotient_shift
        quotients = (numerators + root // 2) // root
        assert np.abs(quotients).max() <= operation.reach
        z[tuple(index)] = quotients
    return shift_clamp(z * whole(operation.multiplier) + whole(operation.constant), operation.clamp)


def softmax(operation: p.IntegerSoftmax, known: Mapping[str, Any]) -> Whole:
    rows = np.moveaxis(known[operation.input], operation.axis, -1)
    shares = np.empty(rows.shape, object)
    last = operation.exponentials.size - 1
    for place in np.ndindex(*rows.shape[:-1]):
        largest = max(rows[place])
        powers = [int(operation.exponentials[min(largest - q, last)]) for q in rows[place]]
        total = sum(powers)
        shares[place] = [(power * 2**30 + total // 2) // total for power in powers]
    return requantize(np.moveaxis(shares, -1, operation.axis), operation.requantize, known)


def interpolation(operation: p.IntegerInterpolation, known: Mapping[str, Any]) -> Whole:
    """Every combination of elements times the product of their weights."""
    x = known[operation.input]
    total: Any = 0
    for taps in itertools.product(*(range(len(weights)) for weights in operation.weights)):
        part, weight = x, whole(1)
        for t, axis, indices, weights in zip(taps, operation.axes, operation.indices, operation.weights, strict=True):
            part = np.take(part, indices[t], axis)
            weight = weight * whole(weights[t])
        total = total + part * weight
    return requantize(total, operation.requantize, known)


def move(operation: p.IntegerMove, known: Mapping[str, Any]) -> Whole:
    values = {"x": known[operation.input].astype(np.int64)}
    names = ["x"]
    for position, constant in enumerate(operation.constants):
        names.append("" if constant is None else f"setting{position}")
        if constant is not None:
            values[names[-1]] = known[constant] if isinstance(constant, str) else constant
    node = helper.make_node(operation.op, names, ["y"], **operation.attributes)
    return whole(_first(ReferenceEvaluator(node).run(None, {name: values[name] for name in names if name})))


def setting(operation: p.IntegerSetting, known: Mapping[str, Any]) -> np.ndarray:
    values = {name: operation.constants.get(name, known.get(name)) for name in operation.node.input if name}
    return np.asarray(_first(ReferenceEvaluator(operation.node).run(None, values)))


def _first(results: Any) -> Any:
    return results[0]


EVALUATIONS: dict[type, Callable[[Any, Mapping[str, Any]], Whole]] = {
    p.IntegerConv: conv,
    p.IntegerMatMul: matmul,
    p.IntegerTensorProduct: tensor_product,
    p.IntegerProduct: product,
    p.IntegerSum: weighted_sum,
    p.IntegerTable: table,
    p.IntegerConstant: lambda operation, known: whole(operation.values),
    p.IntegerQuotient: quotient,
    p.IntegerExtreme: extreme,
    p.IntegerNorm: norm,
    p.IntegerConcat: concat,
    p.IntegerAveragePool: average_pool,
    p.IntegerMaxPool: max_pool,
    p.IntegerMean: mean,
    p.IntegerZeroInsertion: zero_insertion,
    p.IntegerNormalization: normalization,
    p.IntegerSoftmax: softmax,
    p.IntegerInterpolation: interpolation,
    p.IntegerMove: move,
}
