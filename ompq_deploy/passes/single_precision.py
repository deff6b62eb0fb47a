"""Bring a network of float16, bfloat16 or float64, or with parts of one, to float32.

float32 holds the numbers of the first two exactly, those of float64 rounded; finite ones beyond its range become its
largest. Inputs and outputs become float32 too. Casts between them change nothing then, and `fuse_linear.py` drops them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ompq_deploy.graph.index import branches

OTHERS = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}
LARGEST = np.finfo(np.float32).max
TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype")
"""Attributes of standard operators that name the type of a result."""


def single_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself where nothing in it is of another precision, branches included; else a float32 copy."""
    if float_type(model) == "float32":
        return model
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for graph in _graphs(single.graph):
        _convert(graph)
    return single


def float_type(model: onnx.ModelProto) -> str:
    """The first of OTHERS that an input, an output, a constant or a Cast of the model has, else "float32"."""
    found: set[int] = set()
    for graph in _graphs(model.graph):
        found.update(tensor.data_type for tensor in graph.initializer)
        found.update(value.type.tensor_type.elem_type for value in (*graph.input, *graph.output))
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            found.update((attribute.t.data_type, attribute.i if attribute.name in TYPE_ATTRIBUTES else 0))
    return next((name for kind, name in OTHERS.items() if kind in found), "float32")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and all branches below it."""
    yield graph
    for node in graph.node:
        yield from branches(node)


def _convert(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _convert_tensor(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in OTHERS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.name in TYPE_ATTRIBUTES and attribute.i in OTHERS:
            attribute.i = TensorProto.FLOAT
        _convert_tensor(attribute.t)


def _convert_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in OTHERS:
        values = numpy_helper.to_array(tensor).astype(np.float64)
        within = np.where(np.isinf(values), values, np.clip(values, -LARGEST, LARGEST))
        tensor.CopyFrom(numpy_helper.from_array(within.astype(np.float32), tensor.name))
