"""Fold BatchNorm and zero padding into the layer beside them, and MatMul + Add into Gemm where the sum is with one
constant per column. What else a Gemm of a constant matrix adds is added behind it:

    Gemm(A, B, C) = Gemm(A, B) + C

The other rewrite rules are onnxscript's; this file says which of them the pipeline wants.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter import pattern
from onnxscript.rewriter.rules import common


class _MatMulAdd(pattern.RewriteRuleClassBase):
    def pattern(self, op, a, b, c):  # type: ignore[no-untyped-def]
        """The nodes to replace."""
        return op.Add(op.MatMul(a, b), c)

    def check(self, context, a, b, c):  # type: ignore[no-untyped-def]
        """Whether it is a layer with a bias."""
        result = pattern.MatchResult()
        if any(x.shape is None or len(x.shape) != 2 for x in (a, b)) or not _is_constant(b):
            return result.fail("it is no product of a matrix and a constant one", b)
        return result if _is_bias(c, columns=b.shape[1]) else result.fail("it adds more than a bias", c)

    def rewrite(self, op, a, b, c):  # type: ignore[no-untyped-def]
        """The layer."""
        return op.Gemm(a, b, c)


class _GemmSum(pattern.RewriteRuleClassBase):
    def pattern(self, op, a, b, c):  # type: ignore[no-untyped-def]
        """The node to replace, with any settings."""
        return op.Gemm(a, b, c, _allow_other_attributes=True, _outputs=["y"])

    def check(self, context, a, b, c, y):  # type: ignore[no-untyped-def]
        """Whether only C keeps the Gemm from being a layer with a bias."""
        result, settings = pattern.MatchResult(), y.producer().attributes
        if c is None or not _is_constant(b) or ("beta" in settings and settings["beta"].as_float() != 1):
            return result.fail("it is no layer anyway, or has no sum", y)
        transposed = "transB" in settings and settings["transB"].as_int()
        return result.fail("its sum is a bias", c) if _is_bias(c, columns=b.shape[0 if transposed else 1]) else result

    def rewrite(self, op, a, b, c, y):  # type: ignore[no-untyped-def]
        """The product, under the node's name, and the sum behind it."""
        product = op.Gemm(a, b, **y.producer().attributes)
        product.producer().name = y.producer().name
        return op.Add(product, c)


def _is_constant(value: ir.Value) -> bool:
    return ir.convenience.get_const_tensor(value) is not None


def _is_bias(value: ir.Value, *, columns: int) -> bool:
    """Whether what is added to a matrix is a constant with one number per column, or one in all."""
    shapes = ((), (1,), (columns,), (1, 1), (1, columns))
    return _is_constant(value) and value.shape is not None and tuple(value.shape) in shapes


RULES = (
    _GemmSum.rule(),
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
