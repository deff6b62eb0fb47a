"""Judge grids of an activation by the error they cause in the outputs of the layers that read it.

    error(g) = sum over layers l reading x of  ||W_l (Q_g(x) - x)||^2 / ||W_l x||^2

Both norms are around their means over positions, since a bias takes means out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Float64, Grid, Layer, PreparedGraph, Samples
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import layer_grid
from ompq_deploy.quantize import columns
from ompq_deploy.quantize.covariance import draw_positions
from ompq_deploy.quantize.stream import Stream, pieces

POSITIONS = 2048


def output_errors(
    graph: PreparedGraph,
    samples: Samples,
    candidates: Sequence[Mapping[str, Grid]],
    *,
    seed: int = 0,
    threads: int = 0,
) -> dict[str, Float64]:
    """The relative output error of every candidate, float64 (candidates,) by activation tensor, summed over the layers
    that read the tensor; zeros where none does. The network runs once."""
    index = GraphIndex(graph.model)
    weights = graph.layer_weights()
    by_node = {node: layer for layer in graph.layers for node in layer.nodes}
    stream = Stream(graph, samples, {}, threads)
    random = np.random.default_rng(seed)
    errors = {name: np.zeros(len(candidates)) for name in candidates[0]}
    for piece in pieces(graph):
        layer = by_node.get(piece[0].name) if piece else None
        if layer is None:
            stream.step()
            continue
        tensor = layer_grid(index, errors, piece[0].input[0])
        sums = _Errors(layer, weights[layer.name], [grids[tensor] for grids in candidates])
        _watch(stream, layer, piece[0], sums, random)
        errors[tensor] += sums.relative()
    return errors


def _watch(stream: Stream, layer: Layer, node: onnx.NodeProto, sums: _Errors, random: np.random.Generator) -> None:
    """Take the stream one step further, showing `sums` what the layer multiplies."""

    def watch(batch: int, output: NDArray) -> None:
        x = stream.value(batch, node.input[0])
        share = POSITIONS // (len(stream) * len(output))
        positions = draw_positions(columns.output_positions(layer, output), share, random)
        sums.add(columns.input_columns(layer, node, x, output.shape[2:], positions, 0))

    stream.step(tap=node.output[0], watch=watch)


class _Errors:
    """Adds up, batch by batch, the error in one layer's output under each candidate grid of its input."""

    def __init__(self, layer: Layer, weight: Float32, candidates: Sequence[Grid]) -> None:
        self._weight = columns.weight_columns(layer, weight).swapaxes(1, 2)
        self._candidates = candidates
        self._squares = np.zeros(len(candidates) + 1)
        self._means: list[Float64] = [np.zeros(0)] * (len(candidates) + 1)
        self._count = 0

    def add(self, x: Float32) -> None:
        """Inputs at some positions, (G, K, P)."""
        for i, grid in enumerate((*self._candidates, None)):
            change = x if grid is None else grid.steps(x) * np.float32(grid.scale) - x
            output = self._weight @ change
            self._squares[i] += np.square(output).sum(dtype=np.float64)
            total = output.sum(axis=2, dtype=np.float64)
            self._means[i] = self._means[i] + total if self._means[i].size else total
        self._count += x.shape[2]

    def relative(self) -> Float64:
        """Variance of the error over that of the output, one per candidate."""
        spread = self._squares - [np.square(total).sum() / self._count for total in self._means]
        return spread[:-1] / max(spread[-1], np.finfo(np.float64).tiny)
