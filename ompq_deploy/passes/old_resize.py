"""Say of Resize nodes made from opset 10 and older what those meant: `asymmetric` coordinates, x(i) = i / scale.

ONNX's version converter leaves out the attribute, whose default is another since opset 11. Nearest neighbours were
x rounded down where an axis grows and up where it shrinks, as onnxruntime has it.
"""

from __future__ import annotations

import onnx
from onnx import helper

from ompq_deploy.graph.index import GraphIndex, attributes

LAST_WITHOUT = 10
"""The last opset whose Resize does not tell its coordinates; up to 9 it is called Upsample."""


def give_coordinates(model: onnx.ModelProto) -> None:
    """Add the attributes in place to every Resize of a model that was converted from such an opset."""
    index = GraphIndex(model)
    for node in model.graph.node:
        if node.op_type != "Resize" or "coordinate_transformation_mode" in (settings := attributes(node)):
            continue
        node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
        if settings.get("mode", "nearest") == "nearest":
            rounding = "ceil" if _shrinks(index, node) else "floor"
            node.attribute.append(helper.make_attribute("nearest_mode", rounding))


def _shrinks(index: GraphIndex, node: onnx.NodeProto) -> bool:
    scales = node.input[2] if len(node.input) > 2 else ""
    return index.is_constant(scales) and bool((index.constant(scales) < 1).any())
