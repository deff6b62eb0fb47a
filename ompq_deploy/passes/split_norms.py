"""Write GroupNormalization, RMSNormalization and LRN as operators that every stage knows.

    GroupNormalization    y = gamma[c] (x - mean) / sqrt(var + eps) + beta[c]     over a group's channels and all axes
    RMSNormalization      y = gamma x / sqrt(mean(x^2) + eps)                     over the axes from `axis` on
    LRN                   y = x (bias + alpha mean(x^2))^-beta                    over `size` neighbouring channels,
                                                                                  zeros beyond the first and the last

onnx 1.23 infers no shapes behind the first, and the integer-only model computes the parts.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter import pattern

from ompq_deploy.passes.node_settings import number

DEFAULT_EPSILON = 1e-5
LRN_DEFAULTS = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}


class KnownRank(pattern.RewriteRuleClassBase):
    """A rule that needs the rank of its first input."""

    def check(self, context, x, **_):  # type: ignore[no-untyped-def, override]
        """Whether the rank of the input is known."""
        result = pattern.MatchResult()
        return result if x.shape is not None else result.fail("its rank is not known", x)


class _GroupNorm(KnownRank):
    def pattern(self, op, x, gamma, beta):  # type: ignore[no-untyped-def]
        """The node to replace, with any settings."""
        return op.GroupNormalization(x, gamma, beta, _allow_other_attributes=True, _outputs=["y"])

    def rewrite(self, op, x, gamma, beta, y):  # type: ignore[no-untyped-def]
        """InstanceNormalization with the groups as its channels."""
        settings = y.producer().attributes
        groups, epsilon = settings["num_groups"].as_int(), _epsilon(settings)
        ones, zeros = (op.Constant(value_floats=[value] * groups) for value in (1.0, 0.0))
        grouped = op.Reshape(x, op.Constant(value_ints=[0, groups, -1]))
        sizes = [size for size in x.shape[1:] if isinstance(size, int)]
        target = op.Constant(value_ints=[0, *sizes]) if len(sizes) == len(x.shape) - 1 else op.Shape(x)
        normal = op.Reshape(op.InstanceNormalization(grouped, ones, zeros, epsilon=epsilon), target)
        per_channel = op.Constant(value_ints=[-1] + [1] * (len(x.shape) - 2))
        return op.Add(op.Mul(normal, op.Reshape(gamma, per_channel)), op.Reshape(beta, per_channel))


class _RootMeanSquareNorm(KnownRank):
    def pattern(self, op, x, gamma):  # type: ignore[no-untyped-def]
        """The node to replace, with any settings."""
        return op.RMSNormalization(x, gamma, _allow_other_attributes=True, _outputs=["y"])

    def rewrite(self, op, x, gamma, y):  # type: ignore[no-untyped-def]
        """The formula."""
        settings, rank = y.producer().attributes, len(x.shape)
        first = int(number(settings, "axis", -1))
        axes = op.Constant(value_ints=list(range(first % rank, rank)))
        mean = op.ReduceMean(op.Mul(x, x), axes, keepdims=1)
        deviation = op.Sqrt(op.Add(mean, op.Constant(value_float=_epsilon(settings))))
        return op.Mul(op.Mul(x, op.Reciprocal(deviation)), gamma)


class _LocalResponseNorm(KnownRank):
    def pattern(self, op, x):  # type: ignore[no-untyped-def]
        """The node to replace, with any settings."""
        return op.LRN(x, _allow_other_attributes=True, _outputs=["y"])

    def rewrite(self, op, x, y):  # type: ignore[no-untyped-def]
        """The formula; the channels become an axis that AveragePool slides along."""
        settings = y.producer().attributes
        size = settings["size"].as_int()
        alpha, beta, bias = (number(settings, name, default) for name, default in LRN_DEFAULTS.items())
        others = [0] * (len(x.shape) - 2)
        mean = op.AveragePool(
            op.Unsqueeze(op.Mul(x, x), op.Constant(value_ints=[1])),
            kernel_shape=[size] + [1] * len(others),
            pads=[(size - 1) // 2, *others, size // 2, *others],
            count_include_pad=1,
        )
        mean = op.Mul(op.Squeeze(mean, op.Constant(value_ints=[1])), op.Constant(value_float=alpha))
        return op.Mul(x, op.Pow(op.Add(mean, op.Constant(value_float=bias)), op.Constant(value_float=-beta)))


def _epsilon(settings: Mapping[str, ir.Attr]) -> float:
    return number(settings, "epsilon", DEFAULT_EPSILON)


def split_norms(model: ir.Model) -> bool:
    """Rewrite in place; True if anything changed."""
    rules = [_GroupNorm.rule(), _RootMeanSquareNorm.rule(), _LocalResponseNorm.rule()]
    return rewriter.RewriteRuleSet(rules).apply_to_model(model) > 0
