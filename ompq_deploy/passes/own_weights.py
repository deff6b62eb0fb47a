"""Give every layer a weight that it alone reads, along one axis.

Layers that read a weight in the same way share its integers and are one layer. A tied autoencoder reads it along two
axes, and an embedding also looks rows up in it: each such use gets a copy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable

import onnx

from ompq_deploy.graph.index import GraphIndex, reads, unused_name
from ompq_deploy.graph.layers import is_layer, weight_use

WEIGHT = 1


def own_weights(model: onnx.ModelProto) -> bool:
    """Copy in place; True if anything changed."""
    index = GraphIndex(model)
    uses: dict[str, dict[Hashable, list[onnx.NodeProto]]] = defaultdict(lambda: defaultdict(list))
    for node in model.graph.node:
        layer = is_layer(index, node)
        if layer:
            uses[node.input[WEIGHT]][weight_use(node)].append(node)
        others = {name for place, name in enumerate(node.input) if not (layer and place == WEIGHT)}
        for name in others | (reads(node) - set(node.input)):
            uses[name][None].append(node)
    taken = {name for node in model.graph.node for name in node.output} | set(index.initializers)
    changed = False
    for weight, by_use in uses.items():
        layers = [nodes for use, nodes in by_use.items() if use is not None]
        for nodes in layers if None in by_use else layers[1:]:
            _copy(model, index.initializers[weight], nodes, taken)
            changed = True
    return changed


def _copy(model: onnx.ModelProto, weight: onnx.TensorProto, nodes: list[onnx.NodeProto], taken: set[str]) -> None:
    """A copy of a weight for some of the nodes that read it."""
    copy = model.graph.initializer.add()
    copy.CopyFrom(weight)
    copy.name = unused_name(f"{weight.name}_of_{nodes[0].name}", taken)
    taken.add(copy.name)
    for node in nodes:
        node.input[WEIGHT] = copy.name
