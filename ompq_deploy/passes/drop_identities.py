"""Remove the nodes of the main graph that hand on what they read: Identity, and Pad by nothing.

Those in branches stay: there an Identity may be what makes a tensor of the graph around it the branch's result.
"""

from __future__ import annotations

import onnx_ir as ir


def drop_identities(model: ir.Model) -> bool:
    """Remove in place; True if anything changed. One between two values that both must keep their names stays."""
    changed = False
    for node in list(model.graph):
        if not _hands_on(node):
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or (result.is_graph_output() and _keeps_its_name(source)):
            continue
        name = result.name if result.is_graph_output() else source.name
        source.shape = source.shape or result.shape
        source.type = source.type or result.type
        ir.convenience.replace_all_uses_with(result, source, replace_graph_outputs=True)
        source.name = name
        model.graph.remove(node, safe=True)
        changed = True
    return changed


def _hands_on(node: ir.Node) -> bool:
    if node.op_type == "Pad" and not node.domain:
        pads = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        return pads is not None and not pads.numpy().any()
    return node.op_type == "Identity" and not node.domain


def _keeps_its_name(value: ir.Value) -> bool:
    return value.is_graph_input() or value.is_initializer() or value.is_graph_output()
