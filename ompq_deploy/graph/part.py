"""A part of a graph: what some of its tensors are made by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from ompq_deploy.graph.index import reads


def returning(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` whose outputs are `tensors`, without the nodes that none of them needs."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:], result.graph.node[:]
    result.graph.node.extend(without_dead_nodes(model.graph.node, tensors))
    known = {value.name: value for value in (*model.graph.output, *model.graph.value_info, *model.graph.input)}
    result.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in tensors)
    return result


def without_dead_nodes(nodes: Iterable[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes, in order, that some of `outputs` depends on; `nodes` are in topological order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(list(nodes)):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted |= reads(node)
    return kept[::-1]
