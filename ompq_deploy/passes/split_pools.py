"""Write LpPool and GlobalLpPool as operators that every stage knows.

    y = (sum |x|^p)^(1/p)        over a window, whose pads count as zeros, or over all positions of a channel

A window's sum is its mean times the window's size. With `ceil_mode` windows hang over the padded edge, where runtimes
divide by fewer; such a node stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter import pattern

from ompq_deploy.passes.node_settings import number
from ompq_deploy.passes.plain_pools import plain_pools
from ompq_deploy.passes.split_norms import KnownRank

WINDOW = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")


class _LpPool(pattern.RewriteRuleClassBase):
    def pattern(self, op, x):  # type: ignore[no-untyped-def]
        """The node to replace, with any settings."""
        return op.LpPool(x, _allow_other_attributes=True, _outputs=["y"])

    def check(self, context, x, y):  # type: ignore[no-untyped-def]
        """Whether every window lies within the padded input."""
        result, settings = pattern.MatchResult(), y.producer().attributes
        hangs_over = number(settings, "ceil_mode")
        return result.fail("its windows may hang over the edge", y) if hangs_over else result

    def rewrite(self, op, x, y):  # type: ignore[no-untyped-def]
        """The formula, by AveragePool."""
        settings = y.producer().attributes
        window = {name: settings[name].value for name in WINDOW if name in settings}
        mean = op.AveragePool(_powers(op, x, _p(settings)), count_include_pad=1, **window)
        size = math.prod(window["kernel_shape"])
        return _root(op, op.Mul(mean, op.Constant(value_float=float(size))), _p(settings))


class _GlobalLpPool(KnownRank):
    def pattern(self, op, x):  # type: ignore[no-untyped-def]
        """The node to replace, with any p."""
        return op.GlobalLpPool(x, _allow_other_attributes=True, _outputs=["y"])

    def rewrite(self, op, x, y):  # type: ignore[no-untyped-def]
        """The formula, by ReduceSum."""
        p = _p(y.producer().attributes)
        axes = op.Constant(value_ints=list(range(2, len(x.shape))))
        return _root(op, op.ReduceSum(_powers(op, x, p), axes, keepdims=1), p)


def _p(settings: Mapping[str, ir.Attr]) -> int:
    return int(number(settings, "p", 2))


def _powers(op: Any, x: ir.Value, p: int) -> ir.Value:
    """|x|^p."""
    if p == 2:
        return op.Mul(x, x)
    return op.Abs(x) if p == 1 else op.Pow(op.Abs(x), op.Constant(value_float=float(p)))


def _root(op: Any, x: ir.Value, p: int) -> ir.Value:
    """x^(1/p)."""
    if p == 2:
        return op.Sqrt(x)
    return x if p == 1 else op.Pow(x, op.Constant(value_float=1 / p))


def split_pools(model: ir.Model) -> bool:
    """Rewrite in place, other pools in plain form; True if anything changed."""
    split = rewriter.RewriteRuleSet([_LpPool.rule(), _GlobalLpPool.rule()]).apply_to_model(model) > 0
    return plain_pools(model) | split
