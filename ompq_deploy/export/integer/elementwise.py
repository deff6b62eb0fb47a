"""Lower Add, Relu and Clip on integer tensors, and Concat.

q = clip((sum_k x_k M_k + constant + 2^(shift-1)) >> shift, low, high),   M_k / 2^shift ~ s_k / s_out
"""

from __future__ import annotations

import numpy as np

from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.export.integer.groups import Group
from ompq_deploy.export.integer.program import Int64, IntegerConcat, IntegerSum, Requantize
from ompq_deploy.export.integer.rescale import (
    HIGHEST,
    LARGEST,
    LOWEST,
    clamp_codes,
    requantize,
    share_shift,
    shift_clamp,
)
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph_index import attributes


def lower_sum(scope: Scope, group: Group) -> IntegerSum:
    """Add of integer tensors and a constant, Relu or Clip after it; or Relu or Clip by itself."""
    inputs = group.reads
    scale_out = scope.grids[group.output]
    multipliers, shift = share_shift([scope.scale(name) / scale_out for name in inputs])
    constant = _constant(scope, group, scale_out, shift)
    terms = [(multiplier, LARGEST) for multiplier in multipliers]
    clamp = clamp_codes(group.low, group.high, scale_out)
    return IntegerSum(
        name=group.head.name,
        inputs=inputs,
        multipliers=multipliers,
        constant=constant,
        output=group.output,
        clamp=shift_clamp(group.head.name, terms, shift, clamp, constant),
    )


def lower_concat(scope: Scope, group: Group) -> IntegerConcat:
    """Concat, every input on the output's grid."""
    if any(scope.index.is_constant(name) for name in group.head.input):
        raise NotCovered(group.head, "it concatenates a constant")
    return IntegerConcat(
        name=group.head.name,
        inputs=group.inputs,
        rescales=tuple(_rescale(scope, name, scope.grids[group.output]) for name in group.inputs),
        output=group.output,
        axis=attributes(group.head)["axis"],
    )


def _rescale(scope: Scope, name: str, scale_out: float) -> Requantize | None:
    scale = scope.scale(name)
    return None if scale == scale_out else requantize(name, scale / scale_out, LARGEST, (LOWEST, HIGHEST))


def _constant(scope: Scope, group: Group, scale_out: float, shift: Int64) -> Int64:
    """The added constant in units of 2^-shift output steps; beyond +-512 steps the clamp hides the rest."""
    if not group.constant:
        return np.zeros((), np.int64)
    steps = np.clip(scope.index.constant(group.constant).astype(np.float64) / scale_out, -512, 512)
    return np.rint(np.ldexp(steps, np.asarray(shift, np.int32))).astype(np.int64)
