"""Fold BatchNorm and zero padding into the layer beside them, and MatMul + Add into Gemm where the sum is with one
constant per column. The other rewrite rules are onnxscript's; this file says which of them the pipeline wants.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter import pattern
from onnxscript.rewriter.rules import common

from ompq_deploy.passes.plain_products import is_bias, is_constant


class _MatMulAdd(pattern.RewriteRuleClassBase):
    def pattern(self, op, a, b, c):  # type: ignore[no-untyped-def]
        """The nodes to replace."""
        return op.Add(op.MatMul(a, b), c)

    def check(self, context, a, b, c):  # type: ignore[no-untyped-def]
        """Whether it is a layer with a bias."""
        result = pattern.MatchResult()
        if any(x.shape is None or len(x.shape) != 2 for x in (a, b)) or not is_constant(b):
            return result.fail("it is no product of a matrix and a constant one", b)
        return result if is_bias(c, columns=b.shape[1]) else result.fail("it adds more than a bias", c)

    def rewrite(self, op, a, b, c):  # type: ignore[no-untyped-def]
        """The layer."""
        return op.Gemm(a, b, c)


RULES = (
    common.fuse_batchnorm_into_conv_rule,
    common.fuse_batchnorm_into_conv_transpose_rule,
    common.fuse_batchnorm_into_gemm_rule,
    common.normalize_pad_format_conv_rule,
    common.fuse_pad_into_conv_rule,
    _MatMulAdd.rule(),
    common.successive_relu_rule,
    common.no_op_cast_rule,
    common.no_op_transpose_rule,
    common.transpose_transpose_rule,
    common.reshape_reshape_rule,
)


def fuse_linear(model: ir.Model) -> bool:
    """Fuse in place; True if anything changed."""
    before = [node.op_type for node in model.graph]
    rewriter.rewrite(model, pattern_rewrite_rules=list(RULES))
    return before != [node.op_type for node in model.graph]
