"""The float biases of a layer's nodes, and the weight scales at which they fit into int32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ompq_deploy.artifacts import Float32, Grid, Layer
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import layer_grid

BIAS_LIMIT = 2.0**30
"""Bias codes stay below this, which leaves half of int32 for the products; bias correction moves them little."""


def float_biases(index: GraphIndex, layer: Layer) -> dict[str, Float32]:
    """The bias of each node of a layer that has one, float32 per output channel, by node name."""
    biases = {}
    for name in layer.nodes:
        node = index.nodes[name]
        if len(node.input) > 2 and node.input[2]:
            bias = index.constant(node.input[2]).astype(np.float32).reshape(-1)
            biases[name] = np.broadcast_to(bias, (layer.channels,)) if bias.size == 1 else bias
    return biases


def least_scales(index: GraphIndex, layer: Layer, biases: Mapping[str, Float32], grids: Mapping[str, Grid]) -> Float32:
    """The smallest weight scale per channel, float32 (C,), at which every node's bias is an int32 below BIAS_LIMIT."""
    least = np.zeros(layer.channels, np.float32)
    for node, bias in biases.items():
        tensor = layer.inputs[layer.nodes.index(node)]
        step = grids[layer_grid(index, grids, tensor)].scale
        largest = np.abs(bias).reshape(-1, layer.channels).max(axis=0)
        least = np.maximum(least, largest / (step * BIAS_LIMIT))
    return least.astype(np.float32)
