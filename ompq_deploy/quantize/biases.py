"""The float biases of a layer's nodes."""

from __future__ import annotations

import numpy as np

from ompq_deploy.artifacts import Float32, Layer
from ompq_deploy.graph_index import GraphIndex


def float_biases(index: GraphIndex, layer: Layer) -> dict[str, Float32]:
    """The bias of each node of a layer that has one, float32 per output channel, by node name."""
    biases = {}
    for name in layer.nodes:
        node = index.nodes[name]
        if len(node.input) > 2 and node.input[2]:
            bias = index.constant(node.input[2]).astype(np.float32).reshape(-1)
            biases[name] = np.broadcast_to(bias, (layer.channels,)) if bias.size == 1 else bias
    return biases
