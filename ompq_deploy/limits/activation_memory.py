"""How much memory the activations of one sample need: the most elements alive at once.

Alive is a tensor that is stored: one on an integer grid, or the result of an operator that moves values into a
tensor of another size (a pool, a slice). Tensors inside a fused group (Conv, Add, Relu) are never stored. A stored
tensor is alive from the step that makes it to the last step that reads it, fused nodes in between included:

    peak = max over steps t of  sum { elements(z) : made(z) <= t <= last_read(z) }

Every layer's buffers are counted as if reused perfectly; scratch memory of kernels is not counted.
"""

from __future__ import annotations

import math

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import moves_values


def peak_elements(graph: PreparedGraph) -> int | None:
    """The peak per sample, or None where a stored tensor's shape is not known."""
    index = GraphIndex(graph.model)
    stored = _stored(graph, index)
    sizes = {name: _elements(index, name) for name in stored}
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(known) < len(sizes):
        return None
    made = dict.fromkeys(graph.input_names, 0)
    made |= {name: t for t, node in enumerate(graph.model.graph.node, start=1) for name in node.output}
    last = {name: made[name] for name in stored}
    for name in [*stored, *graph.output_names]:
        for source in _sources(index, stored, name):
            last[source] = max(last[source], made[name])
    steps = sorted({made[name] for name in stored} | set(last.values()))
    return max(sum(known[name] for name in stored if made[name] <= t <= last[name]) for t in steps)


def _stored(graph: PreparedGraph, index: GraphIndex) -> set[str]:
    stored = set(graph.activations)
    for node in graph.model.graph.node:
        if moves_values(index, node) and node.input[0] in stored:
            size = _elements(index, node.input[0])
            stored.update(name for name in node.output if name and _elements(index, name) != size)
    return stored


def _sources(index: GraphIndex, stored: set[str], tensor: str) -> set[str]:
    """The stored tensors that the computation of `tensor` reads, through what is fused with it."""
    found: set[str] = set()
    seen: set[str] = set()
    pending = [tensor]
    while pending:
        node = index.producer.get(pending.pop())
        for name in index.activation_inputs(node) if node is not None else ():
            if name in stored:
                found.add(name)
            elif name not in seen:
                seen.add(name)
                pending.append(name)
    return found


def _elements(index: GraphIndex, tensor: str) -> int | None:
    """Elements of one sample: all axes but the first."""
    shape = index.shapes.get(tensor, (None, None))[1:]
    known = [extent for extent in shape if extent is not None]
    return math.prod(known) if len(known) == len(shape) else None
