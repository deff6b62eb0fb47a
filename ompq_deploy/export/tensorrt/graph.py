"""The strongly typed graph that TensorRT builds from.

    INT8 layer    x -> QuantizeLinear -> DequantizeLinear -> Conv <- DequantizeLinear <- int8 codes, scale per channel
    weight-only   x ---------------------------------------> Conv <- DequantizeLinear <- int4 or int8 codes

Layers of 4 bits or fewer are weight-only INT4: TensorRT refuses an INT4 convolution whose activation is quantized.
Depthwise layers are weight-only as well: quantizing their activation adds a constant of {1, C, 3, H, W} bytes to the
engine. Q/DQ pairs stand on the edges into the nodes that compute in integers, after operators that only move values,
so the other readers of a tensor never see its grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ompq_deploy.artifacts import QuantizedGraph, QuantizedLayer
from ompq_deploy.export.tensorrt.half import to_half
from ompq_deploy.graph.index import GraphIndex, reads
from ompq_deploy.graph.placement import CLAMPS, RESCALES, grid_tensor, place_activations
from ompq_deploy.numerics import pack_bits

INTEGER_OPS = frozenset(("Add",)) | CLAMPS | RESCALES
"""Operators that read quantized activations when their own result is wanted quantized."""


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What the graph asks of TensorRT for one layer: `storage` of the weights is "INT4" or "INT8", and
    `quantized_input` says whether the activation carries Q/DQ. `note` gives the reason for an exception."""

    layer: QuantizedLayer
    storage: str
    quantized_input: bool
    note: str = ""


def treat(layer: QuantizedLayer) -> Treatment:
    """The form a layer takes in the TensorRT graph, from its width and kind alone."""
    if layer.bits <= 4 and layer.layer.numel % 2 == 0:
        return Treatment(layer=layer, storage="INT4", quantized_input=False)
    note = f"{layer.layer.numel} weights: TensorRT packs INT4 in pairs only, stored as INT8" if layer.bits <= 4 else ""
    if layer.layer.depthwise:
        note = "; ".join(filter(None, (note, "depthwise: weight-only, Q/DQ would add a constant to the engine")))
    return Treatment(layer=layer, storage="INT8", quantized_input=not layer.layer.depthwise, note=note)


def tensorrt_graph(quantized: QuantizedGraph, *, high_precision: str = "fp32") -> onnx.ModelProto:
    """The prepared graph, opset 21, with Q/DQ on what computes in INT8 and DequantizeLinear on every layer's weight.

    Node names are kept. Activations have one scale per tensor, that of `quantized.symmetric_grids`, and zero-point 0,
    which TensorRT demands; weights have one scale per channel.
    `high_precision`, "fp32" or "fp16", is the type of everything else; inputs and outputs stay float32.
    """
    if high_precision not in ("fp32", "fp16"):
        raise ValueError(f"high_precision is 'fp32' or 'fp16', not {high_precision!r}")
    model = onnx.ModelProto()
    model.CopyFrom(quantized.graph.model)
    writer = _Writer(quantized)
    del model.graph.node[:]
    model.graph.node.extend(writer.nodes())
    used = {name for node in model.graph.node for name in reads(node)} | set(quantized.graph.output_names)
    kept = [t for t in model.graph.initializer if t.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *writer.initializers.values()])
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return to_half(model) if high_precision == "fp16" else model


def quantized_edges(
    index: GraphIndex, layers: Iterable[QuantizedLayer], scales: Mapping[str, float]
) -> dict[tuple[str, str], str]:
    """(node name, tensor it reads) -> the tensor whose scale the Q/DQ pair on that edge takes.

    Every edge into an INT8 layer, and those into sums, clamps, concatenations and pools whose result some INT8
    layer wants; only tensors that have a scale count.
    """
    int8_layers = [layer.layer for layer in layers if treat(layer).quantized_input]
    wanted = {name for name in place_activations(index, int8_layers) if name in scales}
    int8_nodes = {name for layer in int8_layers for name in layer.nodes}
    edges: dict[tuple[str, str], str] = {}
    for node in index.graph.node:
        if node.name in int8_nodes:
            operands = [node.input[0]]
        elif node.op_type in INTEGER_OPS and _result(index, node) in wanted:
            operands = index.activation_inputs(node)
        else:
            continue
        for name in operands:
            if (root := grid_tensor(index, wanted, name)) is not None:
                edges[node.name, name] = root
    return edges


def _result(index: GraphIndex, node: onnx.NodeProto) -> str:
    """A node's output, or that of the clamp which alone reads it and fuses with it."""
    reader = index.only_consumer(node.output[0])
    return reader.output[0] if reader is not None and reader.op_type in CLAMPS else node.output[0]


class _Writer:
    """Copies the nodes in order and puts Q/DQ in front of the first reader of each quantized value."""

    def __init__(self, quantized: QuantizedGraph) -> None:
        self.index = GraphIndex(quantized.graph.model)
        self.scales = {name: grid.scale for name, grid in quantized.symmetric_grids.items()}
        self.layers = {name: layer for layer in quantized.layers for name in layer.layer.nodes}
        self.edges = quantized_edges(self.index, quantized.layers, self.scales)
        self.initializers: dict[str, TensorProto] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._written: set[str] = set()

    def nodes(self) -> list[onnx.NodeProto]:
        for original in self.index.graph.node:
            node = onnx.NodeProto()
            node.CopyFrom(original)
            for position, name in enumerate(original.input):
                if root := self.edges.get((original.name, name)):
                    node.input[position] = self._activation(name, root)
            layer = self.layers.get(node.name)
            if layer is None:
                self._nodes.append(node)
            else:
                self._layer(node, layer)
        return self._nodes

    def _activation(self, tensor: str, root: str) -> str:
        """The dequantized copy of an activation, int8 between its Q and DQ, scale of `root`."""
        dequantized = f"{tensor}/dequantized"
        if dequantized not in self._written:
            self._written.add(dequantized)
            scale = self._constant(f"{root}/scale", np.float32(self.scales[root]))
            zero = self._constant("int8_zero", np.int8(0))
            codes = f"{tensor}/codes"
            self._nodes += [
                helper.make_node("QuantizeLinear", [tensor, scale, zero], [codes], name=f"{tensor}/quantize"),
                helper.make_node("DequantizeLinear", [codes, scale, zero], [dequantized], name=f"{tensor}/dequantize"),
            ]
        return dequantized

    def _layer(self, node: onnx.NodeProto, layer: QuantizedLayer) -> None:
        node.input[1] = self._weight(layer)
        bias = layer.biases.get(node.name)
        if bias is None:
            self._nodes.append(node)
            return
        bias_name = self._constant(f"{node.name}/bias", bias.astype(np.float32))
        if node.op_type != "MatMul":
            del node.input[2:]
            node.input.append(bias_name)
            self._nodes.append(node)
            return
        output = node.output[0]
        node.output[0] = f"{output}/product"
        add = helper.make_node("Add", [node.output[0], bias_name], [output], name=f"{node.name}/add_bias")
        self._nodes += [node, add]

    def _weight(self, layer: QuantizedLayer) -> str:
        """The dequantized weight; nodes that share it share its DequantizeLinear."""
        name = layer.layer.weight
        dequantized = f"{name}/dequantized"
        if dequantized not in self._written:
            self._written.add(dequantized)
            codes = codes_tensor(layer, f"{name}/codes")
            self.initializers[codes.name] = codes
            scale = self._constant(f"{name}/scale", layer.scale.astype(np.float32))
            self._nodes.append(
                helper.make_node(
                    "DequantizeLinear",
                    [codes.name, scale],
                    [dequantized],
                    name=f"{name}/dequantize",
                    axis=layer.layer.channel_axis,
                )
            )
        return dequantized

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def codes_tensor(layer: QuantizedLayer, name: str) -> TensorProto:
    """A layer's codes as an ONNX INT4 tensor (two per byte, the first in the low nibble) or an INT8 one."""
    if treat(layer).storage == "INT4":
        packed = pack_bits(layer.codes, 4).tobytes()
        return helper.make_tensor(name, TensorProto.INT4, layer.layer.shape, packed, raw=True)
    return numpy_helper.from_array(layer.codes, name)
