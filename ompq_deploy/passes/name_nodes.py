"""Give every node a unique name that depends only on the graph, keeping the exporter's names where it can.

A node without a name, or with one already taken, is called after its operator and position: `Conv_12`.
"""

from __future__ import annotations

import onnx_ir as ir


def name_nodes(model: ir.Model) -> bool:
    """Name in place; True if any name changed."""
    taken: set[str] = set()
    changed = False
    for position, node in enumerate(model.graph):
        name = node.name
        if not name or name in taken:
            name = f"{node.op_type}_{position}"
            while name in taken:
                name += "_"
            node.name = name
            changed = True
        taken.add(name)
    return changed
