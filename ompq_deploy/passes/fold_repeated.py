"""Replace what is computed from the batch size alone, and is alike for every sample, by a constant of one sample.

Encodings of positions made from a mask of ones (N, H, W), as in DETR and EdgeNeXt, depend on nothing but N. They are
run on one sample and on two; where the second gives the first twice, and only element-wise operators read it beside a
tensor of all samples, the first stands for it.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ompq_deploy.graph.index import GraphIndex, reads
from ompq_deploy.graph.part import without_dead_nodes
from ompq_deploy.passes.fixed_sizes import Shapes, fixed_sizes
from ompq_deploy.runtime.sessions import brief_options, start

MEASURES = frozenset(("Shape", "Size"))
BROADCASTING = frozenset(("Add", "Div", "Mul", "Sub"))
RANDOM = frozenset(("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"))
TOLERANCE = 1e-6


def fold_repeated(model: onnx.ModelProto) -> None:
    """Fold in place, where the batch is symbolic and all other sizes of the inputs are known."""
    shapes = fixed_sizes(model)
    if any(None in shapes.get(value.name, (None, None))[1:] for value in model.graph.input):
        return
    names = _found(GraphIndex(model), shapes)
    if not names:
        return
    one, two = (_run(model, names, batch) for batch in (1, 2))
    folded = [name for name in names if _repeats(one[name], two[name])]
    model.graph.initializer.extend(numpy_helper.from_array(one[name], name) for name in folded)
    for node in model.graph.node:
        node.output[:] = ["" if name in folded else name for name in node.output]
    _remove_unread(model)


def _found(index: GraphIndex, shapes: Shapes) -> list[str]:
    """The tensors (N, ...) made from sizes alone that element-wise operators read beside another tensor (N, ...)."""
    made: dict[str, None] = {}
    for node in index.graph.node:
        read = [name for name in reads(node) if not index.is_constant(name)]
        from_sizes = bool(read) and all(name in made for name in read) and node.op_type not in RANDOM
        if node.op_type in MEASURES or from_sizes:
            made |= dict.fromkeys(node.output)
    return [name for name in made if shapes.get(name, ())[:1] == (None,) and _joins(index, shapes, name, made)]


def _joins(index: GraphIndex, shapes: Shapes, name: str, made: Container[str]) -> bool:
    """Whether every reader is element-wise, with another tensor of the same shape, which is not made from sizes."""
    readers = [node for node in index.graph.node if name in reads(node)]
    others = [other for node in readers for other in node.input if other != name]
    return (
        bool(readers)
        and name not in index.outputs
        and all(node.op_type in BROADCASTING for node in readers)
        and all(shapes.get(other) == shapes[name] and other not in made for other in others)
    )


def _run(model: onnx.ModelProto, names: list[str], batch: int) -> dict[str, NDArray[Any]]:
    """The tensors for `batch` samples of zeros."""
    partial = onnx.ModelProto()
    partial.CopyFrom(model)
    del partial.graph.output[:]
    partial.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    _remove_unread(partial)
    feeds = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else batch for dim in tensor.shape.dim]
        feeds[value.name] = np.zeros(sizes, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return dict(zip(names, start(partial, brief_options()).run(names, feeds), strict=True))


def _repeats(one: NDArray[Any], two: NDArray[Any]) -> bool:
    """Whether the second holds the first, real numbers of one sample, twice."""
    fits = one.dtype == np.float32 and len(one) == 1 and two.shape == (2, *one.shape[1:])
    return fits and bool(np.allclose(two, one, TOLERANCE, TOLERANCE))


def _remove_unread(model: onnx.ModelProto) -> None:
    """Remove nodes and initializers that no output depends on."""
    outputs = [value.name for value in model.graph.output]
    nodes = without_dead_nodes(model.graph.node, outputs)
    read = set(outputs).union(*map(reads, nodes))
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
