"""Which further tensors carry an integer grid in the integer-only model alone, and that grid.

    s = (1 + 2 HEADROOM) (b - a) / (2^16 - 1)      a = min(0, smallest seen),  b = max(0, largest seen)

Between the tensors of `placement.py` the Q/DQ model computes in floating point: the inputs of SiLU and GELU, gates,
residual sums of transformers, what normalizations and Softmax read. A model without floating point keeps them on a
16-bit grid, so fine that the next 8-bit tensor hardly notices, and wide enough that no value is clipped. What is
computed and read inside one integer operation (`groups.py`) needs no grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Grid, Layer
from ompq_deploy.graph.groups import trace_group
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import moves_values

WIDE_BITS = 16
HEADROOM = 0.5
"""On either side, as a share of the range seen: other samples leave it, and what is clipped here is not clipped in the
Q/DQ model, while a bit of the sixteen costs next to nothing."""


def place_wide(index: GraphIndex, layers: Iterable[Layer], activations: Iterable[str]) -> tuple[str, ...]:
    """Names of the tensors that need a wide grid, graph inputs first, then in topological order."""
    layer_nodes = {name for layer in layers for name in layer.nodes}
    grids = set(activations)
    needed = set(grids)
    placed: set[str] = set()
    for node in reversed(index.graph.node):
        for output in node.output:
            if output not in needed:
                continue
            if output not in grids:
                if moves_values(index, node):
                    needed.add(node.input[0])
                    continue
                if output not in index.float_tensors:
                    continue
                placed.add(output)
                grids.add(output)
            needed.update(trace_group(index, output, layer_nodes, grids).reads)
        if node.name in layer_nodes:
            needed.add(node.input[0])
    given = [value.name for value in index.graph.input if value.name in needed - grids]
    order = [name for name in given if name in index.float_tensors]
    return tuple(order + [name for node in index.graph.node for name in node.output if name in placed])


def wide_grids(ranges: Mapping[str, tuple[float, float]]) -> dict[str, Grid]:
    """The grid of every wide tensor, from the (min, max) seen of each; none for a range that is not finite."""
    return {name: wide_grid(*ends) for name, ends in ranges.items() if all(map(math.isfinite, ends))}


def wide_grid(low: float, high: float) -> Grid:
    """A 16-bit grid with headroom around [`low`, `high`], zero on it. One-sided ranges stay one-sided.

    A tensor that was always zero gets 8 bits and scale 1, as such an activation does: 16 bits of any scale may be out
    of proportion to what it is added to.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return Grid(scale=1.0)
    margin = HEADROOM * (high - low)
    low, high = low - margin * (low < 0), high + margin * (high > 0)
    steps = (1 << WIDE_BITS) - 1
    scale = float(np.maximum(np.float32((high - low) / steps), np.finfo(np.float32).tiny))
    return Grid(scale=scale, zero_point=min(round(-low / scale), steps), bits=WIDE_BITS)


def constant_grid(values: NDArray[np.floating]) -> Grid:
    """The 16-bit grid around zero that holds the largest magnitude of a constant exactly."""
    middle = 1 << (WIDE_BITS - 1)
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    scale = float(np.maximum(np.float32(largest / (middle - 1)), np.finfo(np.float32).tiny))
    return Grid(scale=scale, zero_point=middle, bits=WIDE_BITS)
