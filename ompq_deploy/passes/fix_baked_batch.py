"""Give a symbolic batch its real size where the exporter has baked one in.

Tracing `x.view(1, -1)` leaves a Reshape to a constant shape that starts with 1. Such a graph declares a symbolic batch
and runs with a batch of 1 only; once its inputs say so, every stage feeds it one sample at a time.
"""

from __future__ import annotations

import onnx

from ompq_deploy.graph.index import GraphIndex


def fix_baked_batch(model: onnx.ModelProto) -> bool:
    """Fix the first axis of all inputs and outputs in place; True if it was symbolic and is fixed now."""
    index = GraphIndex(model)
    batches = {
        int(index.constant(node.input[1])[0])
        for node in model.graph.node
        if node.op_type == "Reshape"
        and index.is_constant(node.input[1])
        and index.constant(node.input[1]).size > 1
        and not index.is_constant(node.input[0])
    }
    fixed = {size for size in batches if size > 0}
    axes = [
        value.type.tensor_type.shape.dim[0]
        for value in (*model.graph.input, *model.graph.output)
        if value.type.tensor_type.shape.dim
    ]
    if fixed != {1} or all(axis.HasField("dim_value") for axis in axes):
        return False
    for axis in axes:
        if not axis.HasField("dim_value"):
            axis.dim_value = 1
    return True
