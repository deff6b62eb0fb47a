"""Find the layers a residual block forces together: those whose outputs one Add sums and nothing else reads.

In a ResNet that is the downsample convolution and its block's last convolution, which the published lists give one
width. A shortcut that other layers read too, as between MobileNetV2's blocks, ties nothing.
"""

from __future__ import annotations

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.graph.index import GraphIndex


def residual_ties(graph: PreparedGraph) -> tuple[tuple[str, ...], ...]:
    """Groups of layer names, one per Add of two layers."""
    index = GraphIndex(graph.model)
    owner = {node: layer.name for layer in graph.layers for node in layer.nodes}
    ties = []
    for node in graph.model.graph.node:
        operands = index.activation_inputs(node) if node.op_type == "Add" else []
        layers = tuple(name for name in (_layer_before(index, tensor, owner) for tensor in operands) if name)
        if len(layers) == 2:
            ties.append(layers)
    return tuple(ties)


def _layer_before(index: GraphIndex, tensor: str, owner: dict[str, str]) -> str | None:
    """The layer that makes a tensor nobody else reads, seen through a constant Add, or None."""
    node = index.producer.get(tensor)
    if node is None or index.only_consumer(tensor) is None:
        return None
    if node.op_type == "Add" and len(index.activation_inputs(node)) == 1:
        return _layer_before(index, index.activation_inputs(node)[0], owner)
    return owner.get(node.name)
