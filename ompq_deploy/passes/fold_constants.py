"""Evaluate everything that depends on constants only, shape arithmetic included.

onnxscript's optimizer does the work. By default it leaves alone ConstantOfShape and what reads more than 8,192 numbers.
Here both must go: exporters build the pads of a shortcut and look up relative positions that way, and whatever is left
counts as an activation.
"""

from __future__ import annotations

import sys

import onnx_ir as ir
from onnxscript import optimizer

LARGEST_FOLDED = 1 << 26
"""Numbers in the largest tensor that is folded, unless what it is made from is larger."""


def fold_constants(model: ir.Model) -> bool:
    """Fold in place; True if anything changed."""
    before = len(model.graph)
    result = optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=sys.maxsize,
        output_size_limit=LARGEST_FOLDED,
        should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None,
    )
    optimizer.remove_unused_nodes(model)
    return bool(result.modified) or len(model.graph) != before
