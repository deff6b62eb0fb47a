"""What every lowering function looks up: the graph, the layers' integers and the grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from ompq_deploy.artifacts import Grid, QuantizedGraph, QuantizedLayer
from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import grid_tensor, moves_values


@dataclass(frozen=True, kw_only=True)
class Scope:
    """`layers` maps node names to their layer; `grids` holds the grid of each tensor that has one of its own.

    Scales are the float32 values that the ONNX files hold. `arithmetic` is one of ARITHMETICS.
    """

    quantized: QuantizedGraph
    index: GraphIndex
    layers: Mapping[str, QuantizedLayer]
    grids: Mapping[str, Grid]
    arithmetic: str

    @classmethod
    def of(cls, quantized: QuantizedGraph, arithmetic: str) -> Scope:
        return cls(
            arithmetic=arithmetic,
            quantized=quantized,
            index=GraphIndex(quantized.graph.model),
            layers={node: layer for layer in quantized.layers for node in layer.layer.nodes},
            grids={name: _stored(grid) for name, grid in {**quantized.wide_grids, **quantized.grids}.items()},
        )

    def with_grids(self, grids: Mapping[str, Grid]) -> Scope:
        """The scope with further grid tensors."""
        return replace(self, grids={**self.grids, **grids})

    def shape(self, node: onnx.NodeProto) -> tuple[int | None, ...]:
        """The shape of a node's first input, None for a symbolic axis. Raises NotCovered where its rank is unknown."""
        shape = self.index.shapes.get(node.input[0])
        if shape is None:
            raise NotCovered(node, "the rank of its input is not known")
        return shape

    def sizes(self, node: onnx.NodeProto, axes: Sequence[int]) -> tuple[int, ...]:
        """The sizes of some axes of a node's first input. Raises NotCovered where one is not fixed."""
        shape = self.shape(node)
        found = tuple(size for size in (shape[axis] for axis in axes) if size is not None)
        if len(found) < len(axes):
            raise NotCovered(node, "it works along axes that are not all of fixed size")
        return found

    def constant_root(self, name: str) -> str:
        """The float constant that a tensor is, or whose values were moved to make it; "" where there is none."""
        while name not in self.index.initializers:
            node = self.index.producer.get(name)
            if node is None or name in self.grids or not moves_values(self.index, node):
                return ""
            name = node.input[0]
        return name if self.index.initializers[name].data_type == onnx.TensorProto.FLOAT else ""

    @property
    def layer_nodes(self) -> set[str]:
        return set(self.layers)

    def on_grid(self, name: str) -> bool:
        """Whether a tensor is a grid tensor, or one with its values moved."""
        return grid_tensor(self.index, self.grids, name) is not None

    def grid(self, name: str) -> Grid:
        """The grid of an integer tensor; KeyError where it is none."""
        tensor = grid_tensor(self.index, self.grids, name)
        if tensor is None:
            raise KeyError(name)
        return self.grids[tensor]


def _stored(grid: Grid) -> Grid:
    return replace(grid, scale=float(np.float32(grid.scale)))
