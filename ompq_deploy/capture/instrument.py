"""Add taps to a graph such that every tensor is reduced right after it is made, and freed soon after."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.capture.blocked import is_layout_copy
from ompq_deploy.capture.taps import CONTRIB_DOMAIN, Taps, View
from ompq_deploy.graph.index import GraphIndex, constant_bound
from ompq_deploy.graph.part import without_dead_nodes

LARGE = 1 << 17
"""Elements per sample from which on reading two samples first is cheaper than reading all."""

Reduction = Callable[[Taps, View], None]


def views(graph: PreparedGraph, tensors: Iterable[str], blocked: Mapping[str, str]) -> list[View]:
    """How to read each tensor; `blocked` names the copy in blocks where there is one."""
    index = GraphIndex(graph.model)
    channels = channels_last(graph)
    found = []
    for name in tensors:
        shape = index.shapes.get(name, ())
        in_blocks = name in blocked and len(shape) == 4 and shape[3] is not None
        found.append(
            View(
                name=name,
                source=blocked[name] if in_blocks else name,
                shape=shape,
                blocked=in_blocks,
                channels=channels.get(name),
                bounds=bounds(index, name) if math.prod(n or 0 for n in shape[1:]) >= LARGE else {},
            )
        )
    return found


def channels_last(graph: PreparedGraph) -> dict[str, int]:
    """Channel count of the tensors a MatMul or Gemm layer reads: their channels are the last axis.

    Every other tensor has its channels on axis 1. On a rank-2 tensor the two are the same axis.
    """
    return {
        tensor: layer.shape[1 - layer.channel_axis]
        for layer in graph.layers
        if layer.op in ("MatMul", "Gemm")
        for tensor in layer.inputs
    }


def bounds(index: GraphIndex, tensor: str) -> dict[str, float]:
    """Smallest and largest value that the node behind a tensor can return, where it sets a limit."""
    node = index.producer.get(tensor)
    if node is not None and node.op_type == "Relu":
        return {"min": 0.0}
    if node is None or node.op_type != "Clip" or not all(index.is_constant(name) for name in node.input[1:] if name):
        return {}
    limits = {"min": constant_bound(index, node, 1, -np.inf), "max": constant_bound(index, node, 2, np.inf)}
    return {kind: limit for kind, limit in limits.items() if np.isfinite(limit)}


def instrument(model: onnx.ModelProto, points: Iterable[tuple[View, Sequence[Reduction]]]) -> onnx.ModelProto:
    """A copy of `model` that returns the reductions of each view and nothing else, without dead nodes.

    A tensor's taps, and copies of a tensor in another layout, stand right behind the node that makes it.
    """
    taps = Taps()
    behind: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        if is_layout_copy(node):
            behind[node.input[0]].append(node)
    for view, reductions in points:
        start = len(taps.nodes)
        for reduction in reductions:
            reduction(taps, view)
        behind[view.source] += taps.nodes[start:]
    nodes = _placed(model, behind)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:], result.graph.output[:]
    result.graph.node.extend(without_dead_nodes(nodes, [value.name for value in taps.outputs]))
    result.graph.output.extend(taps.outputs)
    result.graph.initializer.extend(taps.constants.values())
    if all(opset.domain != CONTRIB_DOMAIN for opset in result.opset_import):
        result.opset_import.append(helper.make_opsetid(CONTRIB_DOMAIN, 1))
    return result


def _placed(model: onnx.ModelProto, behind: dict[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    """The model's nodes in order, each followed by the nodes that wait for one of its outputs."""
    placed: list[onnx.NodeProto] = []

    def release(tensors: Iterable[str]) -> None:
        for node in [waiting for tensor in tensors for waiting in behind.get(tensor, ())]:
            placed.append(node)
            release(node.output)

    release(value.name for value in model.graph.input)
    for node in model.graph.node:
        if not is_layout_copy(node):
            placed.append(node)
            release(node.output)
    return placed
