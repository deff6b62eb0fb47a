"""A quantized graph without the capture: grids from one onnxruntime run, weights rounded to nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ompq_deploy.artifacts import PreparedGraph, QuantizedGraph, QuantizedLayer
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.wide_grids import wide_grids
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize.activations import activation_grid
from ompq_deploy.quantize.biases import float_biases, least_scales
from ompq_deploy.weight_scale import quantize_weight, widen_for_bias


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
    ranges = float_ranges(graph, raw)
    grids = {name: activation_grid(ranges[name], None, "minmax") for name in graph.activations}
    weights = graph.layer_weights()
    layers = []
    for layer in graph.layers:
        weight, width = weights[layer.name], bits if isinstance(bits, int) else bits[layer.name]
        codes, scale = quantize_weight(weight, width, layer.channel_axis)
        biases = float_biases(index, layer)
        least = least_scales(index, layer, biases, grids)
        codes, scale = widen_for_bias(weight, codes, scale, least, width, layer.channel_axis)
        layers.append(QuantizedLayer(layer=layer, bits=width, codes=codes, scale=scale, biases=biases))
    wide = wide_grids({name: ranges[name] for name in graph.wide})
    return QuantizedGraph(graph=graph, layers=tuple(layers), grids=grids, wide_grids=wide)


def float_ranges(graph: PreparedGraph, raw: bool) -> dict[str, tuple[float, float]]:
    """(min, max) of every tensor that carries a grid, from one run of the float model."""
    tensors = (*graph.activations, *graph.wide)
    exposed = type(graph.model)()
    exposed.CopyFrom(graph.model)
    have = {value.name for value in exposed.graph.output}
    for name in tensors:
        if name not in have and name not in graph.input_names:
            exposed.graph.output.add(name=name)
    feeds = inputs(graph, raw=raw)
    session = ort.InferenceSession(exposed.SerializeToString())
    values = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True)) | feeds
    return {name: (float(values[name].min()), float(values[name].max())) for name in tensors}


def with_zero_points(quantized: QuantizedGraph, zero_points: Sequence[int]) -> QuantizedGraph:
    """The graph with these zero-points, in turn, on grids that reach as far as before on the longer side."""
    grids = {}
    for i, (name, grid) in enumerate(quantized.grids.items()):
        moved = replace(grid, zero_point=zero_points[i % len(zero_points)])
        grids[name] = replace(moved, scale=float(np.float32(grid.scale * grid.largest / moved.largest)))
    return replace(quantized, grids=grids)
