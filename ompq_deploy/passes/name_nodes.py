"""Give every node a unique name that depends only on the graph, keeping the exporter's names where it can.

Fusing replaces a layer and what follows it by one new node. It gets the layer's name back, since that is the name
people know: `origins` tells which layer an output tensor came from. A node that still has no name, or one already
taken, is called after its operator and position: `Conv_12`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import onnx_ir as ir

from ompq_deploy.graph.index import unused_name

FUSED_AFTER_A_LAYER = frozenset(("BatchNormalization", "Add"))
LAYERS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))


def layer_origins(model: ir.Model) -> dict[str, str]:
    """For each tensor a layer computes, alone or with the BatchNorm or Add behind it, the layer's node name."""
    origins: dict[str, str] = {}
    for node in model.graph:
        tensor, name = node.outputs[0].name, node.name
        if tensor is None:
            continue
        if node.op_type in LAYERS and name:
            origins[tensor] = name
        elif node.op_type in FUSED_AFTER_A_LAYER:
            found = [origins[value.name] for value in node.inputs if value is not None and value.name in origins]
            if len(found) == 1:
                origins[tensor] = found[0]
    return origins


def name_nodes(model: ir.Model, origins: Mapping[str, str] = MappingProxyType({})) -> bool:
    """Name in place; True if any name changed."""
    taken: set[str] = set()
    changed = False
    for position, node in enumerate(model.graph):
        name = origins.get(node.outputs[0].name or "", node.name) if node.op_type in LAYERS else node.name
        if not name or name in taken:
            name = unused_name(f"{node.op_type}_{position}", taken)
        changed |= name != node.name
        node.name = name
        taken.add(name)
    return changed
