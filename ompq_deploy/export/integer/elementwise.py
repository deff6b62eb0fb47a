"""Lower sums, clamps, affine functions, products, quotients and extremes of integer tensors, and Concat.

q = clip((sum_k x_k M_k + constant + 2^(shift-1)) >> shift, low, high),   M_k / 2^shift ~ factor_k s_k / s_out
q = clip((x y M + 2^(shift-1)) >> shift, low, high),                      M / 2^shift ~ s_x s_y / s_out
q = clip((p M + 2^(shift-1)) >> shift, low, high),    p ~ 2^bits x / y,   M / 2^shift ~ s_x / (2^bits s_y s_out)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from ompq_deploy.artifacts import Float64, Grid
from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.export.integer.program import (
    IntegerConcat,
    IntegerExtreme,
    IntegerProduct,
    IntegerQuotient,
    IntegerSum,
    Operation,
)
from ompq_deploy.export.integer.rescale import clamp_codes, requantize, share_shift, shift_clamp, sum_steps
from ompq_deploy.export.integer.rules import Requantize
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph.groups import Group, is_clamp
from ompq_deploy.graph.index import attributes
from ompq_deploy.numerics import along_axis

LARGEST_QUOTIENT = 1 << 16
"""No 16-bit tensor divided by one step of another is larger."""
QUOTIENT_BITS = 12
QUOTIENT_BIT_RANGE = (4, 28)


@dataclass(frozen=True, kw_only=True)
class Affine:
    """sum_k factors[k] inputs[k] + constant, in real numbers; factors and constant broadcast against the inputs."""

    inputs: tuple[str, ...]
    factors: tuple[Float64 | float, ...]
    constant: Float64 | float = 0.0


def lower_sum(scope: Scope, group: Group) -> IntegerSum:
    """Add of integer tensors and a constant, Relu or Clip after it; or Relu or Clip by itself."""
    head = group.head
    if head.op_type == "Clip" and not is_clamp(scope.index, head):
        raise NotCovered(head, "its bounds are computed")
    constant = _real(scope, head, group.constant) if group.constant else 0.0
    affine = Affine(inputs=group.reads, factors=(1.0,) * len(group.reads), constant=constant)
    return affine_sum(scope, affine, head.name, group.output, group.low, group.high)


def lower_arithmetic(scope: Scope, group: Group) -> Operation:
    """Sub, Mul and Div of two integer tensors, or of one and a constant."""
    node = group.head
    constants = [name for name in node.input if scope.index.is_constant(name)]
    if not constants:
        if node.op_type == "Mul":
            return _product(scope, group)
        if node.op_type == "Div":
            return _quotient(scope, group)
        affine = Affine(inputs=group.inputs, factors=(1.0, -1.0))
    else:
        affine = _with_constant(node, group.inputs[0], _real(scope, node, constants[0]))
    return affine_sum(scope, affine, node.name, group.output)


def lower_batch_norm(scope: Scope, group: Group) -> IntegerSum:
    """BatchNormalization that no layer could absorb: (x - mean) gamma / sqrt(var + epsilon) + beta per channel."""
    node = group.head
    rank = len(scope.shape(node))
    gamma, beta, mean, variance = (along_axis(_real(scope, node, name), rank - 1, 0) for name in node.input[1:5])
    factor = gamma / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    affine = Affine(inputs=group.inputs, factors=(factor,), constant=beta - mean * factor)
    return affine_sum(scope, affine, node.name, group.output)


def lower_prelu(scope: Scope, group: Group) -> tuple[Operation, ...]:
    """PRelu with a slope per channel: what is above zero and what is below, each with its own factor."""
    x, node = group.inputs[0], group.head
    parts = f"{group.output}_above", f"{group.output}_below"
    grid = scope.grid(x)
    split = tuple(
        affine_sum(scope, Affine(inputs=(x,), factors=(1.0,)), node.name, part, *ends, out=grid)
        for part, ends in zip(parts, ((0.0, math.inf), (-math.inf, 0.0)), strict=True)
    )
    inner = scope.with_grids(dict.fromkeys(parts, grid))
    affine = Affine(inputs=parts, factors=(1.0, _real(scope, node, node.input[1])))
    return (*split, affine_sum(inner, affine, node.name, group.output))


def affine_sum(
    scope: Scope,
    affine: Affine,
    name: str,
    output: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    out: Grid | None = None,
) -> IntegerSum:
    """An affine function, then a clamp, on the grid of `output`, or `out`."""
    grid_out = out or scope.grids[output]
    grids = [scope.grid(tensor) for tensor in affine.inputs]
    ratios = [factor * grid.scale / grid_out.scale for factor, grid in zip(affine.factors, grids, strict=True)]
    bounds = [grid.largest for grid in grids]
    reached = sum_steps(ratios, bounds)
    enough = grid_out.largest + reached
    constant = np.clip(np.asarray(affine.constant) / grid_out.scale, -enough, enough)
    multipliers, shift = share_shift(ratios, reached + np.abs(constant))
    added = np.rint(np.ldexp(constant, np.asarray(shift, np.int32))).astype(np.int64)
    terms = zip(multipliers, bounds, strict=True)
    return IntegerSum(
        name=name,
        inputs=affine.inputs,
        multipliers=multipliers,
        constant=added,
        output=output,
        clamp=shift_clamp(name, terms, shift, clamp_codes(low, high, grid_out), added),
    )


def lower_concat(scope: Scope, group: Group) -> IntegerConcat:
    """Concat, every input on the output's grid."""
    return IntegerConcat(
        name=group.head.name,
        inputs=group.inputs,
        rescales=tuple(rescale(scope, group.head.name, name, scope.grids[group.output]) for name in group.inputs),
        output=group.output,
        axis=attributes(group.head)["axis"],
    )


def lower_extreme(scope: Scope, group: Group) -> IntegerExtreme:
    """Max and Min of several tensors, every one on the output's grid."""
    name, out = group.head.name, scope.grids[group.output]
    return IntegerExtreme(
        name=name,
        op=group.head.op_type,
        inputs=group.inputs,
        rescales=tuple(rescale(scope, name, tensor, out) for tensor in group.inputs),
        output=group.output,
    )


def rescale(scope: Scope, name: str, tensor: str, out: Grid) -> Requantize | None:
    """What brings an integer tensor to the grid `out`; None where it lies there."""
    grid = scope.grid(tensor)
    return None if grid == out else requantize(name, grid.scale / out.scale, grid.largest, (out.low, out.high))


def rescaled(
    scope: Scope, name: str, tensor: str, grid: Grid, output: str, constant: Float64 | float = 0.0
) -> IntegerSum:
    """A tensor that lies on `grid`, and a real constant added, brought to the grid of `output`."""
    inner = scope.with_grids({tensor: grid})
    return affine_sum(inner, Affine(inputs=(tensor,), factors=(1.0,), constant=constant), name, output)


def _with_constant(node: onnx.NodeProto, variable: str, value: Float64) -> Affine:
    """Sub, Mul or Div of a tensor and a constant."""
    first = node.input[0] == variable
    if node.op_type == "Mul":
        return Affine(inputs=(variable,), factors=(value,))
    if node.op_type == "Sub":
        return Affine(inputs=(variable,), factors=(1.0 if first else -1.0,), constant=-value if first else value)
    if not first:
        raise NotCovered(node, "its divisor is computed")
    return Affine(inputs=(variable,), factors=(1 / value,))


def _product(scope: Scope, group: Group) -> IntegerProduct:
    left, right = (scope.grid(name) for name in group.inputs)
    out = scope.grids[group.output]
    ratio = left.scale * right.scale / out.scale
    return IntegerProduct(
        name=group.head.name,
        inputs=(group.inputs[0], group.inputs[1]),
        output=group.output,
        requantize=requantize(group.head.name, ratio, left.largest * right.largest, (out.low, out.high)),
    )


def _quotient(scope: Scope, group: Group) -> IntegerQuotient:
    """`bits` of a quotient leave 12 behind a step of the output; `saturating` is a step beyond the output's grid."""
    left, right = (scope.grid(name) for name in group.inputs)
    out = scope.grids[group.output]
    ratio = left.scale / (right.scale * out.scale)
    saturating = int(np.clip(math.ceil((out.largest + 1) / ratio), 1, LARGEST_QUOTIENT))
    bits = int(np.clip(QUOTIENT_BITS + math.ceil(math.log2(ratio)), *QUOTIENT_BIT_RANGE))
    reach = (2 * min(saturating, left.largest) << bits) + 1
    return IntegerQuotient(
        name=group.head.name,
        inputs=(group.inputs[0], group.inputs[1]),
        output=group.output,
        saturating=saturating,
        bits=bits,
        reach=reach,
        requantize=requantize(group.head.name, math.ldexp(ratio, -bits), reach, (out.low, out.high)),
    )


def _real(scope: Scope, node: onnx.NodeProto, constant: str) -> Float64:
    """A constant that a node reads. Raises NotCovered where it is none."""
    if not scope.index.is_constant(constant):
        raise NotCovered(node, "its parameters are computed")
    return scope.index.constant(constant).astype(np.float64)
