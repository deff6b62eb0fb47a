"""What every lowering function looks up: the graph, the layers' integers and the grids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ompq_deploy.artifacts import QuantizedGraph, QuantizedLayer
from ompq_deploy.graph_index import GraphIndex
from ompq_deploy.placement import grid_tensor


@dataclass(frozen=True, kw_only=True)
class Scope:
    """`layers` maps node names to their layer; `grids` maps each tensor with a grid of its own to its scale.

    Scales are the float32 values that the ONNX files hold.
    """

    quantized: QuantizedGraph
    index: GraphIndex
    layers: Mapping[str, QuantizedLayer]
    grids: Mapping[str, float]

    @classmethod
    def of(cls, quantized: QuantizedGraph) -> Scope:
        return cls(
            quantized=quantized,
            index=GraphIndex(quantized.graph.model),
            layers={node: layer for layer in quantized.layers for node in layer.layer.nodes},
            grids={name: float(np.float32(quantized.grids[name].scale)) for name in quantized.graph.activations},
        )

    @property
    def layer_nodes(self) -> set[str]:
        return set(self.layers)

    def on_grid(self, name: str) -> bool:
        """Whether a tensor is a grid tensor, or one with its values moved."""
        return grid_tensor(self.index, self.grids, name) is not None

    def scale(self, name: str) -> float:
        """The scale of an integer tensor; KeyError where it is none."""
        grid = grid_tensor(self.index, self.grids, name)
        if grid is None:
            raise KeyError(name)
        return self.grids[grid]
