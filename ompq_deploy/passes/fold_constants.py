"""Evaluate everything that depends on constants only, shape arithmetic included.

onnxscript's optimizer does the work. It leaves ConstantOfShape alone by default because the result can be
large; here it must go too, since exporters build the pads of a shortcut that way.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import optimizer

LARGEST_FOLDED_BYTES = 1 << 24


def fold_constants(model: ir.Model) -> bool:
    """Fold in place; True if anything changed."""
    before = len(model.graph)
    result = optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        output_size_limit=LARGEST_FOLDED_BYTES,
        should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None,
    )
    optimizer.remove_unused_nodes(model)
    return bool(result.modified) or len(model.graph) != before
