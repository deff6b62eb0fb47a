"""A quantized graph without the capture: scales from one onnxruntime run, weights rounded to nearest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ompq_deploy.artifacts import Grid, PreparedGraph, QuantizedGraph, QuantizedLayer
from ompq_deploy.graph_index import GraphIndex
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize import float_biases
from ompq_deploy.weight_scale import quantize_weight


def inputs(graph: PreparedGraph, count: int = 2, seed: int = 0, raw: bool = False) -> dict[str, np.ndarray]:
    """Seeded samples for every input, normal or (`raw`) uniform in 0..255; `count` where the batch is symbolic."""
    random = np.random.default_rng(seed)
    feeds = {}
    for value in graph.model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [d.dim_value if d.HasField("dim_value") else count for d in dims]
        x = random.uniform(0, 255, shape) if raw else random.standard_normal(shape)
        feeds[value.name] = x.astype(np.float32)
    return feeds


def quantize_graph(path: Path, bits: Mapping[str, int] | int = 8, *, raw: bool = False) -> QuantizedGraph:
    """`bits` per layer name, or one width for all."""
    graph = prepare(path)
    index = GraphIndex(graph.model)
    weights = graph.layer_weights()
    layers = []
    for layer in graph.layers:
        width = bits if isinstance(bits, int) else bits[layer.name]
        codes, scale = quantize_weight(weights[layer.name], width, layer.channel_axis)
        layers.append(
            QuantizedLayer(layer=layer, bits=width, codes=codes, scale=scale, biases=float_biases(index, layer))
        )
    return QuantizedGraph(graph=graph, layers=tuple(layers), grids=activation_grids(graph, raw))


def activation_grids(graph: PreparedGraph, raw: bool) -> dict[str, Grid]:
    exposed = type(graph.model)()
    exposed.CopyFrom(graph.model)
    have = {value.name for value in exposed.graph.output}
    for name in graph.activations:
        if name not in have and name not in graph.input_names:
            exposed.graph.output.add(name=name)
    feeds = inputs(graph, raw=raw)
    session = ort.InferenceSession(exposed.SerializeToString())
    values = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True)) | feeds
    largest = {name: max(np.abs(values[name]).max(), 1e-6) for name in graph.activations}
    return {name: Grid(scale=float(np.float32(value / 127))) for name, value in largest.items()}
