"""Cut a graph into blocks whose outputs can be reconstructed one after the other (Li et al., "BRECQ", ICLR 2021).

A block is a run of consecutive nodes [p, q). With L(p) the tensors alive in front of node p,

    region     the shortest run that holds a layer, hands on one tensor and keeps no more alive than it found:
                   |L(q) - L(p)| = 1,  |L(q)| <= |L(p)|
               a residual block, an attention or feed-forward branch with its Add, a layer in a chain
    layer      where no region of at most MOST_LAYERS layers begins: one layer with what follows it
    expansion  single layers in a chain are joined while the tensor between them is larger than the one they began
               with, at most JOINED of them: an inverted residual without its Add, a depthwise
               layer and its pointwise one

A cut needs every live tensor to be a float one with the samples on axis 0, so shapes that are computed stay inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.evaluate.head_search import compared_tensors
from ompq_deploy.graph.index import GraphIndex, reads
from ompq_deploy.graph.part import without_dead_nodes

MOST_LAYERS = 12
JOINED = 4


@dataclass(frozen=True, kw_only=True)
class Block:
    """`layers` are indices into `graph.layers`, of the weights first used here; `inputs` the tensors alive in front of
    the block that it reads, `outputs` those it makes that later nodes read or that are compared at the end, `inside`
    every tensor it makes."""

    name: str
    layers: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    inside: frozenset[str]


def find_blocks(graph: PreparedGraph) -> tuple[Block, ...]:
    """The blocks of a prepared graph in order; every layer is in exactly one. Nodes behind the head are left out."""
    cuts = _Cuts(graph)
    bounds = [0]
    while bounds[-1] < cuts.count:
        start = bounds[-1]
        bounds.append(cuts.region(start) or cuts.layer(start))
    return tuple(cuts.block(start, stop) for start, stop in _joined(cuts, bounds))


def _joined(cuts: _Cuts, bounds: Sequence[int]) -> list[tuple[int, int]]:
    """Runs between bounds, expansions joined with what shrinks them again."""
    runs = []
    first = 0
    while first < len(bounds) - 1:
        last = first + 1
        if cuts.expands(bounds[first], bounds[last]):
            ends = [last]
            while ends[-1] < len(bounds) - 1 and cuts.chained(bounds[first], bounds[ends[-1] + 1]):
                ends.append(ends[-1] + 1)
                if not cuts.expands(bounds[first], bounds[ends[-1]]):
                    break
            last = min(ends, key=lambda end: cuts.handed_on(bounds[end]))
        runs.append((bounds[first], bounds[last]))
        first = last
    return runs


class _Cuts:
    """What is alive between the nodes of a graph."""

    def __init__(self, graph: PreparedGraph) -> None:
        index = GraphIndex(graph.model)
        self._index = index
        self._batch = graph.batch
        self._returned = compared_tensors(graph)
        self._nodes = without_dead_nodes(index.graph.node, self._returned)
        self.count = len(self._nodes)
        layer_of = {node: i for i, layer in enumerate(graph.layers) for node in layer.nodes}
        self._layer = [layer_of.get(node.name) for node in self._nodes]
        last_read = {name: i for i, node in enumerate(self._nodes) for name in reads(node)}
        made = {name: i for i, node in enumerate(self._nodes) for name in node.output if name}
        made |= dict.fromkeys(graph.input_names, -1)
        self.live: list[frozenset[str]] = [
            frozenset(name for name, i in made.items() if i < p <= last_read.get(name, -1))
            for p in range(self.count + 1)
        ]
        self._allowed = [
            all(name in index.float_tensors and self._samples_first(name) for name in live) for live in self.live
        ]

    def region(self, start: int) -> int | None:
        """Where the region that begins at `start` ends, or None."""
        before = self.live[start]

        def ends(p: int) -> bool:
            live = self.live[p]
            return self._allowed[p] and len(live - before) <= 1 and len(live) <= len(before)

        stop = next((p for p in range(start + 1, self.count + 1) if self._layers(start, p) and ends(p)), None)
        if stop is None or self._layers(start, stop) > MOST_LAYERS:
            return None
        return self._end(stop, ends)

    def layer(self, start: int) -> int:
        """The end of a run of as few layers as can be cut off."""
        stop = next(p for p in range(start + 1, self.count + 1) if self._layers(start, p) and self._allowed[p])
        fewest = min(len(self.live[p] - self.live[start]) for p in self._tail(stop) if self._allowed[p])
        return self._end(stop, lambda p: self._allowed[p] and len(self.live[p] - self.live[start]) == fewest)

    def chained(self, start: int, stop: int) -> bool:
        """Whether a run has one tensor at either end and few enough layers to be joined."""
        return len(self.live[start]) == len(self.live[stop]) == 1 and self._layers(start, stop) <= JOINED

    def expands(self, start: int, stop: int) -> bool:
        """Whether a chained run hands on more numbers than it takes."""
        return self.chained(start, stop) and self.handed_on(stop) > self.handed_on(start)

    def handed_on(self, p: int) -> int:
        """Numbers per sample alive in front of node `p`; an axis of unknown length counts once."""
        return sum(map(self._index.numbers, self.live[p]))

    def block(self, start: int, stop: int) -> Block:
        nodes = self._nodes[start:stop]
        made = [name for node in nodes for name in node.output if name]
        read = {name for node in nodes for name in reads(node)}
        earlier = {i for i in self._layer[:start] if i is not None}
        layers = [i for i in self._layer[start:stop] if i is not None and i not in earlier]
        kept = self.live[stop] | set(self._returned)
        return Block(
            name=nodes[-1].name,
            layers=tuple(dict.fromkeys(layers)),
            inputs=tuple(sorted(self.live[start] & read)),
            outputs=tuple(name for name in made if name in kept),
            inside=frozenset(made),
        )

    def _end(self, stop: int, ends: Callable[[int], bool]) -> int:
        """The last of the places behind a run's last layer where the most numbers are handed on; a pool comes later,
        since what it sums up tells less about the weights. The end of the graph where no layer follows."""
        tail = self._tail(stop)
        if tail[-1] == self.count:
            return self.count
        return max((p for p in tail if ends(p)), key=lambda p: (self.handed_on(p), p))

    def _tail(self, stop: int) -> range:
        """Places from `stop` to the next layer, or to the end."""
        following = next((p for p in range(stop, self.count) if self._layer[p] is not None), self.count)
        return range(stop, following + 1)

    def _layers(self, start: int, stop: int) -> int:
        return sum(i is not None for i in self._layer[start:stop])

    def _samples_first(self, name: str) -> bool:
        shape = self._index.shapes.get(name, ())
        return len(shape) > 0 and shape[0] == self._batch
