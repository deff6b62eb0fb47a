"""Which layers share one importance: the paper's layer, block, stage and net (its Table 2), read off the graph.

block   Layers between two places where a single tensor is alive. A residual block has its branches alive inside,
        so it is one block; neighbouring layers outside of residual blocks form one while the resolution stays.
stage   Consecutive layers whose outputs have the same height and width.
net     All layers.

A group stands in the ORM matrix with the output of its last layer. Its layers share theta; the solver may still
give them different widths, since their sizes and weight errors differ.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.errors import BadInput
from ompq_deploy.graph.index import GraphIndex

GRANULARITIES = ("layer", "block", "stage", "net")


def groups(graph: PreparedGraph, granularity: str) -> list[int]:
    """The group of every layer, numbered from 0 in order."""
    count = len(graph.layers)
    if granularity == "layer":
        return list(range(count))
    if granularity == "block":
        return _numbered(_blocks(graph))
    if granularity == "stage":
        return _numbered(_resolutions(graph))
    if granularity == "net":
        return [0] * count
    raise BadInput(
        f"unknown granularity {granularity!r}",
        where="--orm-granularity",
        fix=f"choose one of {', '.join(GRANULARITIES)}",
    )


def _numbered(keys: Sequence[Hashable]) -> list[int]:
    """0 for the first layer, one more wherever the key changes."""
    numbers = [0]
    for before, after in pairwise(keys):
        numbers.append(numbers[-1] + (before != after))
    return numbers


def _resolutions(graph: PreparedGraph) -> list[tuple[int | None, ...]]:
    """Height and width of every layer's output; empty where it has none."""
    shapes = GraphIndex(graph.model).shapes
    return [
        shapes.get(layer.output, ())[2:4] if len(shapes.get(layer.output, ())) == 4 else () for layer in graph.layers
    ]


def _blocks(graph: PreparedGraph) -> list[tuple[Hashable, ...]]:
    """A key per layer: its residual block, or its resolution where it stands in no such block."""
    segments = _segments(graph)
    resolutions = _resolutions(graph)
    branching = {s for s in segments if segments.count(s) > 1}
    return [
        ("branch", segment) if segment in branching else ("straight", resolution)
        for segment, resolution in zip(segments, resolutions, strict=True)
    ]


def _segments(graph: PreparedGraph) -> list[int]:
    """For every layer, how many places before it in the graph have a single tensor alive."""
    index = GraphIndex(graph.model)
    last_reader: dict[str, int] = {}
    nodes = list(index.graph.node)
    for step, node in enumerate(nodes):
        if node.op_type != "Shape":
            last_reader.update(dict.fromkeys(node.input, step))
    alive = set(graph.input_names)
    cuts = 0
    segment: dict[str, int] = {}
    for step, node in enumerate(nodes):
        segment[node.name] = cuts
        if alive.isdisjoint(node.input) or node.op_type == "Shape":
            continue
        alive |= {name for name in node.output if last_reader.get(name, -1) > step}
        alive -= {name for name in node.input if last_reader.get(name) == step}
        cuts += len(alive) <= 1
    return [segment[layer.name] for layer in graph.layers]
