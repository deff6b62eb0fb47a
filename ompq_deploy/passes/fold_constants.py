"""Evaluate everything that depends on constants only, shape arithmetic included.

onnxscript's optimizer does the work. By default it leaves alone ConstantOfShape and what reads more than 8,192 numbers.
Here both must go: exporters build the pads of a shortcut and look up relative positions that way, and whatever is left
counts as an activation.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnxscript import optimizer

SEVERAL_OUTPUTS = ("Split", "LayerNormalization")
LARGEST_FOLDED = 1 << 26
"""Numbers in the largest tensor that is folded, unless what it is made from is larger."""


def fold_constants(model: ir.Model) -> bool:
    """Fold in place; True if anything changed."""
    before = len(model.graph)
    several = _fold_several_outputs(model)
    result = optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=sys.maxsize,
        output_size_limit=LARGEST_FOLDED,
        should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None,
    )
    optimizer.remove_unused_nodes(model)
    return several or bool(result.modified) or len(model.graph) != before


def _fold_several_outputs(model: ir.Model) -> bool:
    """Fold what the optimizer leaves alone, nodes that may have several outputs: a Split of the weights that an
    attention projects by, the LayerNormalization of learned queries."""
    changed = False
    for node in [node for node in model.graph if node.op_type in SEVERAL_OUTPUTS and not node.domain]:
        if any(output.is_graph_output() for output in node.outputs):
            continue
        constants = {str(x.name): ir.convenience.get_const_tensor(x) for x in node.inputs if x is not None}
        feeds = {name: tensor.numpy() for name, tensor in constants.items() if tensor is not None}
        if len(feeds) < len(constants):
            continue
        opset = model.graph.opset_imports[""]
        found = ReferenceEvaluator(ir.to_proto(node), opsets={"": opset}).run(None, feeds)
        values = [ir.node("Constant", [], {"value": ir.tensor(np.asarray(value))}) for value in found]
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], values, node.outputs, [value.outputs[0] for value in values]
        )
        changed = True
    return changed
