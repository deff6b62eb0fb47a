"""Replace what is read from the shape of a tensor by its value, where that value is fixed.

Exporters with a symbolic batch compute head counts, scales and reshape targets from Shape nodes although all sizes but
the batch are known. Folding the entries that are known leaves the arithmetic on the batch alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from ompq_deploy.graph.index import GraphIndex, attributes
from ompq_deploy.passes.fixed_sizes import Shapes, fixed_sizes

UNKNOWN = -1


def fold_dimensions(model: ir.Model) -> bool:
    """Fold in place; True if anything changed. Gather and Slice of a Shape, and a Shape by itself, are looked at."""
    if not any(node.op_type == "Shape" for node in model.graph):
        return False
    proto = ir.to_proto(model)
    index, shapes = GraphIndex(proto), fixed_sizes(proto)
    changed = False
    for node in list(model.graph):
        value = _known_value(index, shapes, index.producer.get(node.outputs[0].name or ""))
        if value is None:
            continue
        constant = ir.node("Constant", [], {"value": ir.tensor(value)})
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [constant], node.outputs, constant.outputs)
        changed = True
    return changed


def _known_value(index: GraphIndex, shapes: Shapes, node: onnx.NodeProto | None) -> NDArray[np.int64] | None:
    """What a node that reads a shape returns, where all of it is fixed."""
    if node is None:
        return None
    if node.op_type in ("Gather", "Slice"):
        sizes = _sizes(shapes, index.producer.get(node.input[0]))
        if sizes is None or not all(index.is_constant(name) for name in node.input[1:] if name):
            return None
        if node.op_type == "Gather":
            taken = sizes[index.constant(node.input[1])]
        else:
            taken = sizes[_cut([int(index.constant(name)[0]) if name else None for name in node.input[1:]])]
    else:
        taken = _sizes(shapes, node)
    return None if taken is None or (taken == UNKNOWN).any() else np.asarray(taken, np.int64)


def _sizes(shapes: Shapes, node: onnx.NodeProto | None) -> NDArray[np.int64] | None:
    """The result of a Shape node, UNKNOWN for symbolic axes."""
    if node is None or node.op_type != "Shape":
        return None
    shape, settings = shapes.get(node.input[0]), attributes(node)
    if shape is None:
        return None
    sizes = np.array([UNKNOWN if size is None else size for size in shape], np.int64)
    return sizes[settings.get("start", 0) : settings.get("end")]


def _cut(settings: Sequence[int | None]) -> slice:
    """What Slice takes of one axis, by its inputs: start, end, axis and step."""
    start, end, _, step = (*settings, None, None)[:4]
    return slice(start, end, step)
