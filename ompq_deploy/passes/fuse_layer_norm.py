"""Make one LayerNormalization node of what exporters before opset 17 write.

    gamma (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) + beta        mean over the last axis

The runtimes fuse these nodes anyway; as one node the integer-only model can compute it with integers.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter import pattern


class _LayerNorm(pattern.RewriteRuleClassBase):
    """The whole of it, gamma and beta being constant vectors."""

    def pattern(self, op, x, gamma, beta, epsilon):  # type: ignore[no-untyped-def]
        """The nodes to replace; Div may be written as Mul and Reciprocal, Pow as Mul."""
        mean = op.ReduceMean(x, [-1])
        centred = op.Sub(x, mean)
        squares = pattern.OrValue([op.Mul(centred, centred), op.Pow(centred, 2)])
        deviation = op.Sqrt(op.Add(op.ReduceMean(squares, [-1]), epsilon))
        normal = pattern.OrValue([op.Div(centred, deviation), op.Mul(centred, op.Reciprocal(deviation))])
        return op.Add(op.Mul(normal, gamma), beta)

    def check(self, context, x, gamma, beta, epsilon, **_):  # type: ignore[no-untyped-def, override]
        """Whether epsilon is a constant number, gamma and beta are constant vectors, and all is float32."""
        result = pattern.MatchResult()
        if x.dtype != ir.DataType.FLOAT:
            return result.fail("not float32", x)
        if epsilon.const_value is None or epsilon.const_value.size != 1:
            return result.fail("epsilon is no constant number", epsilon)
        for vector in (gamma, beta):
            if vector.const_value is None or len(vector.const_value.shape) != 1:
                return result.fail("gamma or beta is no constant vector", vector)
        return result

    def rewrite(self, op, x, gamma, beta, epsilon, **_):  # type: ignore[no-untyped-def]
        """The one node."""
        number = float(epsilon.const_value.numpy().reshape(()))
        return op.LayerNormalization(x, gamma, beta, axis=-1, epsilon=number)


def fuse_layer_norm(model: ir.Model) -> bool:
    """Fuse in place; True if anything changed."""
    before = len(model.graph)
    rewriter.rewrite(model, pattern_rewrite_rules=[_LayerNorm.rule()])
    return len(model.graph) != before
