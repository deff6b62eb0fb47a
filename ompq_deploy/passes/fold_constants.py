"""Evaluate everything that depends on constants only, shape arithmetic included.

onnxscript's optimizer does the work. By default it leaves alone ConstantOfShape and what reads more than 8,192 numbers.
Here both must go: exporters build the pads of a shortcut and look up relative positions that way, and whatever is left
counts as an activation.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import optimizer

LARGEST_FOLDED = 1 << 26
"""Numbers in the largest tensor that is folded, unless what it is made from is larger."""


def fold_constants(model: ir.Model) -> bool:
    """Fold in place; True if anything changed."""
    before = len(model.graph)
    split = _fold_splits(model)
    result = optimizer.fold_constants(
        model,
        onnx_shape_inference=True,
        input_size_limit=sys.maxsize,
        output_size_limit=LARGEST_FOLDED,
        should_fold=lambda node: True if node.op_type == "ConstantOfShape" else None,
    )
    optimizer.remove_unused_nodes(model)
    return split or bool(result.modified) or len(model.graph) != before


def _fold_splits(model: ir.Model) -> bool:
    """Fold the Split nodes of constants, as of the weights that an attention projects by; the optimizer leaves nodes of
    several outputs alone."""
    changed = False
    for node in [node for node in model.graph if node.op_type == "Split" and not node.domain]:
        parts = _parts(node)
        if parts is None:
            continue
        constants = [ir.node("Constant", [], {"value": ir.tensor(part)}) for part in parts]
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], constants, node.outputs, [constant.outputs[0] for constant in constants]
        )
        changed = True
    return changed


def _parts(node: ir.Node) -> list[NDArray[Any]] | None:
    """What a Split makes of a constant; None where it reads anything else."""
    value, *rest = (ir.convenience.get_const_tensor(x) if x is not None else None for x in node.inputs)
    if value is None:
        return None
    array, axis = value.numpy(), node.attributes.get_int("axis", 0)
    if rest:
        if rest[0] is None:
            return None
        ends = np.cumsum(rest[0].numpy())
    else:
        step = -(-array.shape[axis] // len(node.outputs))
        ends = np.arange(1, len(node.outputs) + 1) * step
    return np.split(array, ends[:-1], axis)
