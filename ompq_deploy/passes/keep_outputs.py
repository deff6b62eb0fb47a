"""Have a node make every graph output, also those that turned out to be constants, such as a detector's anchors."""

from __future__ import annotations

import onnx
from onnx import helper

from ompq_deploy.graph.index import GraphIndex


def keep_outputs(model: onnx.ModelProto) -> None:
    """Put an Identity behind each constant, in place, that the graph returns."""
    index = GraphIndex(model)
    for name in [value.name for value in model.graph.output if index.is_constant(value.name)]:
        source = f"{name}_constant"
        index.initializers[name].name = source
        for node in index.consumers(name):
            node.input[:] = [source if read == name else read for read in node.input]
        model.graph.node.insert(0, helper.make_node("Identity", [source], [name], name=f"{name}_Identity"))
