"""Replace what is computed from the batch size alone, and is alike for every sample, by a constant of one sample.

Encodings of positions made from a mask of ones (N, H, W), as in DETR and EdgeNeXt, depend on nothing but N. They are
run on one sample and on two; where the second gives the first twice, and only operators that broadcast read it beside a
tensor of all samples, the first stands for it. So it is with masks of all samples, and with queries that are learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
BROADCASTING = frozenset(("Add", "Div", "MatMul", "Mul", "Sub"))
RANDOM = frozenset(("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"))
TOLERANCE = 1e-6
OF_ONE = "_of_one"
"""Added to a tensor's name for its value of one sample."""


def fold_repeated(model: onnx.ModelProto) -> None:
    """Fold in place, where the batch is symbolic and all other sizes of the inputs are known."""
    shapes = fixed_sizes(model)
    if any(None in shapes.get(value.name, (None, None))[1:] for value in model.graph.input):
        return
    joins = list(_joins(GraphIndex(model), shapes))
    names = list(dict.fromkeys(join.tensor for join in joins))
    if not names:
        return
    one, two = (_run(model, names, batch) for batch in (1, 2))
    constants: dict[str, onnx.TensorProto] = {}
    for join in joins:
        name, value = join.tensor, one[join.tensor]
        if value.ndim == join.rank and _repeats(value, two[name]):
            constants.setdefault(name, numpy_helper.from_array(value, f"{name}{OF_ONE}"))
            join.reader.input[:] = [f"{name}{OF_ONE}" if read == name else read for read in join.reader.input]
    model.graph.initializer.extend(constants.values())
    _remove_unread(model)


@dataclass(frozen=True)
class _Join:
    """A tensor made from sizes alone, and a node that broadcasts it to another tensor (N, ...) of some rank."""

    tensor: str
    reader: onnx.NodeProto
    rank: int


def _joins(index: GraphIndex, shapes: Shapes) -> Iterator[_Join]:
    made: set[str] = set()
    for node in index.graph.node:
        read = [name for name in reads(node) if not index.is_constant(name)]
        from_sizes = bool(read) and made.issuperset(read) and node.op_type not in RANDOM
        if node.op_type in MEASURES or from_sizes:
            made.update(node.output)
        elif node.op_type in BROADCASTING and len(made.intersection(read)) == 1:
            (name,) = made.intersection(read)
            shape = shapes.get(next(other for other in node.input if other != name), ())
            if len(shape) > (2 if node.op_type == "MatMul" else 0) and shape[0] is None:
                yield _Join(name, node, len(shape))


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
