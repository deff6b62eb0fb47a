"""Fold BatchNorm and zero padding into the layer beside them, and MatMul + Add into Gemm.

The rewrite rules are onnxscript's; this file only says which of them the pipeline wants.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import rewriter
from onnxscript.rewriter.rules import common

RULES = (
    common.fuse_batchnorm_into_conv_rule,
    common.fuse_batchnorm_into_conv_transpose_rule,
    common.fuse_batchnorm_into_gemm_rule,
    common.normalize_pad_format_conv_rule,
    common.fuse_pad_into_conv_rule,
    common.matmul_add_to_gemm_rule,
    common.successive_relu_rule,
    common.successive_clip_rule,
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
