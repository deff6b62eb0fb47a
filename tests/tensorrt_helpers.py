"""Networks and a QuantizedGraph straight from absolute maxima, for the TensorRT tests, which need no calibration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime as ort

from ompq_deploy.artifacts import Grid, Layer, PreparedGraph, QuantizedGraph, QuantizedLayer
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.numerics import along_axis, signed_range
from tests.models import GraphBuilder


def sample(graph: PreparedGraph, count: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded normal inputs in the graph's shapes; `count` samples where the batch is free."""
    shapes = GraphIndex(graph.model).shapes
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal([size or count for size in shapes[name]]).astype(np.float32)
        for name in graph.input_names
    }


def run(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray], names: list[str] | None = None, *, optimize: bool = False
) -> list[np.ndarray]:
    """onnxruntime's answer on the CPU, for the named tensors or the graph's outputs.

    Without its fusions, which are not under test: before 1.24 they break a Gemm with a scale per channel.
    """
    options = ort.SessionOptions()
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, feeds)


def quantize_plainly(graph: PreparedGraph, bits: Callable[[Layer], int] | int = 8) -> QuantizedGraph:
    """Every layer at `bits` (a number, or a function of the layer), scales from absolute maxima."""
    width = bits if callable(bits) else lambda layer: bits
    index = GraphIndex(graph.model)
    return QuantizedGraph(
        graph=graph,
        layers=tuple(_layer(index, layer, width(layer)) for layer in graph.layers),
        grids={name: Grid(scale=s) for name, s in _scales(graph).items()},
    )


def branching_network(batch: int | str = "N") -> onnx.ModelProto:
    """Pools, Concat, Split, a sum of two layers, grouped and transposed convolutions, Flatten, Gemm with and
    without bias, MatMul, and one layer with an odd number of weights; 3 x 16 x 16 in, 5 out."""
    g = GraphBuilder(1)

    def bare(name: str, *shape: int) -> str:
        return g.constant((g.random.standard_normal(shape) * 0.2).astype(np.float32), name)

    pooled = g.node("MaxPool", [_conv_relu(g, "x", "stem", 3, 8)], "max", kernel_shape=[2, 2], strides=[2, 2])
    left = _conv_relu(g, pooled, "left", 8, 8)
    right = _conv_relu(g, pooled, "right", 8, 8, kernel=1)
    mean = g.node("AveragePool", [pooled], "mean", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    joined = g.node("Concat", [left, right, g.conv(mean, "after_mean", 8, 8, kernel=1), pooled], "join", axis=1)
    halves = g.constant(np.array([16, 16], np.int64), "halves")
    g.nodes.append(onnx.helper.make_node("Split", [joined, halves], ["upper", "lower"], axis=1, name="split"))
    total = g.node("Add", [g.conv("upper", "grouped", 16, 16, groups=2), g.conv("lower", "dense", 16, 16)], "sum")
    total = g.node("Relu", [total], "sum_relu")
    weight = bare("up_weight", 16, 3, 2, 2)
    wider = g.node("ConvTranspose", [total, weight], "up", strides=[2, 2], kernel_shape=[2, 2], group=2)
    wider = g.node("Relu", [wider], "up_relu")
    wider = g.node("ConvTranspose", [wider, bare("up2_weight", 6, 5, 2, 2)], "up2", strides=[2, 2], kernel_shape=[2, 2])
    small = g.node("MaxPool", [wider], "max2", kernel_shape=[16, 16], strides=[16, 16])
    odd = g.conv(small, "odd", 5, 1, kernel=1)
    flat = g.node("Flatten", [g.node("Concat", [small, odd], "join2", axis=1)], "flatten")
    hidden = g.node("Relu", [g.gemm(flat, "fc1", 24, 12)], "fc1_relu")
    product = g.node("MatMul", [hidden, bare("product_weight", 12, 10)], "product")
    return g.model([batch, 3, 16, 16], g.node("Gemm", [product, bare("last_weight", 10, 5)], "last"), [batch, 5])


def _conv_relu(g: GraphBuilder, x: str, name: str, c_in: int, c_out: int, kernel: int = 3) -> str:
    return g.node("Relu", [g.conv(x, name, c_in, c_out, kernel)], f"{name}_relu")


def _layer(index: GraphIndex, layer: Layer, bits: int) -> QuantizedLayer:
    weight = index.constant(layer.weight)
    others = tuple(axis for axis in range(weight.ndim) if axis != layer.channel_axis)
    low, high = signed_range(bits)
    scale = np.maximum(np.abs(weight).max(axis=others), 1e-6) / high
    codes = np.clip(np.rint(weight / along_axis(scale, weight.ndim, layer.channel_axis)), low, high)
    return QuantizedLayer(
        layer=layer, bits=bits, codes=codes.astype(np.int8), scale=scale.astype(np.float32), biases={}
    )


def _scales(graph: PreparedGraph) -> dict[str, float]:
    feeds = sample(graph)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    known = {value.name for value in model.graph.output}
    inner = [name for name in graph.activations if name not in feeds and name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    names = [name for name in graph.activations if name not in feeds]
    values = {**feeds, **dict(zip(names, run(model, feeds, names) if names else [], strict=True))}
    return {name: max(float(np.abs(values[name]).max()), 1e-6) / 127 for name in graph.activations}
