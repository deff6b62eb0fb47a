"""Write the Q/DQ model for onnxruntime: opset 21, weights stored at their planned width.

Every tensor t of `graph.activations` becomes

    t -> QuantizeLinear -> t_q (uint8, its own zero-point) -> DequantizeLinear -> t_d -> readers

A symmetric grid, int8 with zero-point 0, is stored as uint8 with zero-point 128: the same integers, for which
onnxruntime has much faster kernels. Every tensor has a zero-point initializer of its own, shared or not, so that the
size of the file does not depend on the grids. Weights and int32 biases go through DequantizeLinear per channel; a bias
grid is the product of the input's and the weight's scales, computed in the graph to save file bytes, and constants
whose numbers repeat are looked up in the graph (`lookup.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ompq_deploy.artifacts import Grid, Layer, PreparedGraph, QuantizedGraph, QuantizedLayer
from ompq_deploy.export import storage
from ompq_deploy.export.lookup import find_lookup
from ompq_deploy.export.qdq_names import QdqNames
from ompq_deploy.graph.index import GraphIndex, made_in_branches, reads
from ompq_deploy.graph.placement import layer_grid

PRODUCER = "ompq-deploy"


def qdq_model(quantized: QuantizedGraph) -> onnx.ModelProto:
    """The Q/DQ model of a quantized graph; inputs, outputs and layers keep the names of the float model."""
    graph = quantized.graph
    index = GraphIndex(graph.model)
    by_node = {node: layer for layer in quantized.layers for node in layer.layer.nodes}
    writer = _Writer(QdqNames(graph), quantized.grids)
    names = writer.names

    for layer in quantized.layers:
        writer.store_weight(layer)
    for name in graph.input_names:
        writer.put_on_grid(name)
    for position, node in enumerate(graph.model.graph.node):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        _read_elsewhere(copy, writer.read)
        copy.output[:] = [names.tensor(name) for name in node.output]
        if node.name in by_node:
            layer = by_node[node.name]
            copy.input[1] = names.dequantized(layer.layer.weight)
            grid = layer_grid(index, graph.activations, node.input[0])
            if grid != node.input[0] and (node.op_type == "MatMul" or _is_flattened(index, node.input[0])):
                copy.input[0] = writer.repeat_grid(node.input[0], grid)
            writer.add_layer(copy, layer, grid)
        else:
            copy.name = f"n{position}"
            writer.nodes.append(copy)
        for name in node.output:
            writer.put_on_grid(name)

    used = {name for node in writer.nodes for name in reads(node)}
    stored = {tensor.name for tensor in writer.initializers}
    constants, lookups = _kept_constants(graph, names, used - stored)
    result = helper.make_graph(
        [*lookups, *writer.nodes],
        "ompq",
        graph.model.graph.input,
        graph.model.graph.output,
        [*constants, *writer.initializers],
    )
    widths = sorted({layer.bits for layer in quantized.layers if storage.needs_function(layer.bits)})
    functions = [helper.make_opsetid(storage.FUNCTION_DOMAIN, 1)] if widths else []
    return helper.make_model(
        result,
        opset_imports=[*graph.model.opset_import, *functions],
        functions=[storage.unpack_function(bits) for bits in widths],
        producer_name=PRODUCER,
        ir_version=graph.model.ir_version,
    )


def _is_flattened(index: GraphIndex, tensor: str) -> bool:
    return index.producer[tensor].op_type == "Flatten"


def _read_elsewhere(node: onnx.NodeProto, name_of: Callable[[str], str], inner: frozenset[str] = frozenset()) -> None:
    """Have a node, and its branches, read other tensors in place of those of the graph; `inner` are not the graph's."""
    node.input[:] = [name if name in inner else name_of(name) for name in node.input]
    inner |= made_in_branches(node)
    for branch in (attribute.g for attribute in node.attribute if attribute.HasField("g")):
        for other in branch.node:
            _read_elsewhere(other, name_of, inner)


def layer_bytes(layers: Sequence[Layer], bits: Sequence[int]) -> np.ndarray:
    """Bytes the codes of each layer add to the file at each width, int64 (L, B)."""
    return np.array([[_code_bytes(i, layer, width) for width in bits] for i, layer in enumerate(layers)], np.int64)


def fixed_bytes(smallest: onnx.ModelProto, graph: PreparedGraph, bits: Sequence[int], allowed: Sequence[int]) -> int:
    """Bytes of a Q/DQ file that do not depend on the plan.

    `smallest` is the model written with the widths `bits`, one per layer; `allowed` are the widths a plan may
    use: the unpacking functions of all of them are counted, since any plan may need them.
    """
    codes = sum(_code_bytes(i, layer, width) for i, (layer, width) in enumerate(zip(graph.layers, bits, strict=True)))
    present = set(bits)
    absent = [width for width in allowed if storage.needs_function(width) and width not in present]
    functions = sum(storage.framed_bytes(storage.unpack_function(width)) for width in absent)
    domain = FUNCTION_IMPORT_BYTES if absent and not any(map(storage.needs_function, present)) else 0
    return int(smallest.ByteSize()) - codes + functions + domain + FRAMING_SLACK


def _code_bytes(position: int, layer: Layer, bits: int) -> int:
    """Bytes the codes of the layer at `position` take, whose name in the file is w<position>."""
    return storage.stored_bytes(layer, bits, f"w{position}")


FUNCTION_IMPORT_BYTES = 16
FRAMING_SLACK = 8
"""The graph's own length prefix can grow by a few bytes with its content."""


class _Writer:
    """Collects what the new graph consists of, in order."""

    def __init__(self, names: QdqNames, grids: Mapping[str, Grid]) -> None:
        self.names = names
        self.grids = grids
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._paired: set[str] = set()

    def read(self, name: str) -> str:
        """What a node reads in place of a tensor of the prepared graph."""
        return self.names.dequantized(name) if name in self.grids else self.names.tensor(name)

    def put_on_grid(self, name: str) -> None:
        """Follow an activation that has a grid with its Q/DQ pair."""
        if name not in self.grids:
            return
        grid, scale, zero_point = self.grids[name], self.names.scale(name), self.names.zero_point(name)
        self.initializers.append(numpy_helper.from_array(np.array(grid.scale, np.float32), scale))
        self.initializers.append(numpy_helper.from_array(np.array(grid.zero_point, np.uint8), zero_point))
        self._add_pair(name, name)

    def repeat_grid(self, name: str, grid: str) -> str:
        """A tensor whose values were moved from the one named `grid`, behind a Q/DQ pair of its own.

        The pair changes no value, but onnxruntime computes a layer in integers only where its input comes from one. It
        carries the pair behind Reshape and Transpose by itself, and not behind Flatten, Pad or Slice; there it rounds
        the input of a MatMul once more (its MatMulNBits).
        """
        if self.names.dequantized(name) not in self._paired:
            self._add_pair(name, grid)
        return self.names.dequantized(name)

    def _add_pair(self, name: str, grid: str) -> None:
        steps = [self.names.scale(grid), self.names.zero_point(grid)]
        integers, real = self.names.quantized(name), self.names.dequantized(name)
        self.nodes.append(helper.make_node("QuantizeLinear", [self.names.tensor(name), *steps], [integers]))
        self.nodes.append(helper.make_node("DequantizeLinear", [integers, *steps], [real]))
        self._paired.add(real)

    def store_weight(self, layer: QuantizedLayer) -> None:
        """The codes, the scale and the DequantizeLinear of one weight."""
        weight = layer.layer.weight
        scale = self.names.scale(weight)
        stored = storage.store_weight(layer.layer, layer.codes, layer.bits, self.names.tensor(weight))
        self.initializers += [*stored.initializers, numpy_helper.from_array(layer.scale, scale)]
        dequantize = helper.make_node(
            "DequantizeLinear",
            [stored.codes, scale, *stored.zero_points],
            [self.names.dequantized(weight)],
            axis=layer.layer.channel_axis,
        )
        self.nodes += [*stored.nodes, dequantize]

    def add_layer(self, node: onnx.NodeProto, layer: QuantizedLayer, grid: str) -> None:
        """A layer's node with its bias as int32 codes; MatMul has no bias input and gets an Add."""
        bias = layer.biases.get(node.name)
        if bias is None:
            self.nodes.append(node)
            return
        name = self.names.bias(node.name)
        if node.op_type == "MatMul":
            output, node.output[0] = node.output[0], f"{name}_x"
            self.initializers.append(numpy_helper.from_array(bias, name))
            self.nodes += [node, helper.make_node("Add", [node.output[0], name], [output])]
            return
        del node.input[2:]
        node.input.append(f"{name}_d")
        self.initializers.append(numpy_helper.from_array(layer.bias_codes(node.name, self.grids[grid].scale), name))
        if node.op_type == "ConvTranspose" and layer.layer.groups > 1:
            scale = layer.bias_scale(self.grids[grid].scale)
            self.initializers.append(numpy_helper.from_array(scale, f"{name}_s"))
        else:
            factors = [self.names.scale(grid), self.names.scale(layer.layer.weight)]
            self.nodes.append(helper.make_node("Mul", factors, [f"{name}_s"]))
        self.nodes += [helper.make_node("DequantizeLinear", [name, f"{name}_s"], [f"{name}_d"], axis=0), node]


def _kept_constants(
    graph: PreparedGraph, names: QdqNames, used: set[str]
) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    """The constants that nodes of the Q/DQ model still read, under their new names, and the nodes that look some up."""
    kept: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    indices: dict[bytes, str] = {}
    for tensor in graph.model.graph.initializer:
        name = names.tensor(tensor.name)
        if name not in used:
            continue
        lookup = find_lookup(numpy_helper.to_array(tensor))
        if lookup is None:
            kept.append(onnx.TensorProto())
            kept[-1].CopyFrom(tensor)
            kept[-1].name = name
            continue
        places = numpy_helper.from_array(lookup.places)
        if (same := places.SerializeToString()) not in indices:
            places.name, indices[same] = f"{name}_p", f"{name}_i"
            kept.append(places)
            nodes.append(helper.make_node("Cast", [places.name], [indices[same]], to=onnx.TensorProto.INT32))
        kept.append(numpy_helper.from_array(lookup.table, f"{name}_t"))
        nodes.append(helper.make_node("Gather", [f"{name}_t", indices[same]], [name], axis=lookup.axis))
    return kept, nodes
