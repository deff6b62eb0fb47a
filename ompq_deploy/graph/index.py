"""Who makes and who reads each tensor of an ONNX graph: the look-ups every stage needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


class GraphIndex:
    """A read-only index of one main graph. Build it again after changing the graph."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes = {node.name: node for node in model.graph.node}
        self.producer = {name: node for node in model.graph.node for name in node.output if name}
        self.outputs = {value.name for value in model.graph.output}
        self._consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in reads(node):
                self._consumers[name].append(node)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that read `tensor`, in order, those of which only a branch does included."""
        return self._consumers.get(tensor, [])

    def only_consumer(self, tensor: str) -> onnx.NodeProto | None:
        """The one node that reads `tensor`, or None where there are more, or the graph returns it."""
        readers = self.consumers(tensor)
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def is_constant(self, tensor: str) -> bool:
        return tensor in self.initializers

    def constant(self, tensor: str) -> NDArray[Any]:
        """The value of an initializer; KeyError where the tensor is none."""
        return numpy_helper.to_array(self.initializers[tensor])

    def activation_inputs(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of a node that are not constants, in order."""
        return [name for name in node.input if name and not self.is_constant(name)]

    def numbers(self, tensor: str) -> int:
        """Numbers per sample in a tensor, sizes that are not known counted as 1."""
        return prod(size or 1 for size in self.shapes.get(tensor, ())[1:])

    @cached_property
    def computed_numbers(self) -> int:
        """Numbers per sample in all tensors that nodes make and whose shape is known."""
        return sum(self.numbers(name) for name in self.producer if name in self.shapes)

    @cached_property
    def positions(self) -> dict[str, int]:
        """The place in the graph of the node that makes each tensor."""
        return {name: place for place, node in enumerate(self.graph.node) for name in node.output if name}

    @cached_property
    def values(self) -> dict[str, onnx.ValueInfoProto]:
        """What is known of the types of computed and given tensors."""
        return {value.name: value for value in (*self.graph.value_info, *self.graph.input, *self.graph.output)}

    @cached_property
    def float_tensors(self) -> set[str]:
        """The computed and given tensors known to be float32."""
        floats = onnx.TensorProto.FLOAT
        return {name for name, value in self.values.items() if value.type.tensor_type.elem_type == floats}

    @cached_property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes by tensor name, None for a symbolic axis; from value_info, inputs, outputs and initializers."""
        found: dict[str, tuple[int | None, ...]] = {}
        for name, value in self.values.items():
            if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                found[name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
        for name, tensor in self.initializers.items():
            found[name] = tuple(tensor.dims)
        return found


def reads(node: onnx.NodeProto) -> set[str]:
    """Names a node reads, those that its branches take from outside included."""
    names = set(node.input)
    for attribute in node.attribute:
        made = {name for other in attribute.g.node for name in other.output}
        made.update(tensor.name for tensor in attribute.g.initializer)
        names.update(*(reads(other) - made for other in attribute.g.node))
    return names - {""}


def branches(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs in a node's attributes, and all below them."""
    for branch in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
        yield branch
        for other in branch.node:
            yield from branches(other)


def unused_name(name: str, taken: Container[str]) -> str:
    """`name`, made longer until it is not among `taken`."""
    while name in taken:
        name += "_"
    return name


def made_in_branches(node: onnx.NodeProto) -> set[str]:
    """Names of all tensors that the branches of a node hold: inputs, constants and results."""
    names: set[str] = set()
    for branch in branches(node):
        names.update(tensor.name for tensor in (*branch.input, *branch.initializer))
        names.update(name for other in branch.node for name in other.output)
    return names - {""}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes as plain Python values (strings decoded)."""
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def constant_bound(index: GraphIndex, node: onnx.NodeProto, position: int, default: float) -> float:
    """A scalar constant input of a node, such as the bounds of Clip, or `default` where it is absent."""
    if len(node.input) <= position or not node.input[position]:
        return default
    return float(np.asarray(index.constant(node.input[position])).reshape(()))
