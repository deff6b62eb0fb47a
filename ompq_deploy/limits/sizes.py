"""What a size budget counts, as a table of bytes per layer and width.

file      model.qdq.onnx on disk: packed codes, scales, biases, graph; exact to the byte's framing
weights   packed codes + 4 bytes of scale and 4 of bias per output channel
engine    the engine's constants as TensorRT stores them; `engine_fit.py` accounts for the rest by building it
paper     (weights + 2 C_out of BatchNorm, or the bias of a fully connected layer) * b / 8, as OMPQ and
          HAWQ-V3 count; no scales
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from ompq_deploy.artifacts import Grid, Layer, PreparedGraph, QuantizedGraph, QuantizedLayer, SizeTable
from ompq_deploy.errors import BadInput
from ompq_deploy.export import qdq
from ompq_deploy.limits.engine_fit import stored_constants
from ompq_deploy.numerics import packed_bytes

SIZES = ("file", "weights", "engine", "paper")


def size_table(graph: PreparedGraph, bits: Sequence[int], size_of: str) -> SizeTable:
    """Bytes of every layer and width under one counting rule."""
    if size_of == "file":
        least = [min(bits)] * len(graph.layers)
        fixed = qdq.fixed_bytes(_placeholder(graph, least), graph, least, bits)
        return SizeTable(fixed=fixed, bytes=qdq.layer_bytes(graph.layers, bits))
    if size_of == "weights":
        per_layer = [[packed_bytes(layer.numel, b) + 8 * layer.channels for b in bits] for layer in graph.layers]
        return SizeTable(fixed=0, bytes=np.array(per_layer, np.int64))
    if size_of == "engine":
        per_layer = [[stored_constants(layer.numel, layer.channels, b) for b in bits] for layer in graph.layers]
        return SizeTable(fixed=0, bytes=np.array(per_layer, np.int64))
    if size_of == "paper":
        per_layer = [[packed_bytes(paper_count(layer), b) for b in bits] for layer in graph.layers]
        return SizeTable(fixed=0, bytes=np.array(per_layer, np.int64))
    raise BadInput(f"unknown kind of size {size_of!r}", where="--size-of", fix=f"choose one of {', '.join(SIZES)}")


def paper_count(layer: Layer) -> int:
    """Parameters the paper counts: a convolution's BatchNorm has two per channel, a linear layer one bias."""
    return layer.numel + (2 if layer.op in ("Conv", "ConvTranspose") else 1) * layer.channels


def _placeholder(graph: PreparedGraph, bits: Sequence[int]) -> ModelProto:
    """A Q/DQ model as large as any plan with these widths: zero codes, and a bias on every node."""
    layers = []
    for layer, width in zip(graph.layers, bits, strict=True):
        outputs = layer.channels * (layer.groups if layer.op == "ConvTranspose" else 1)
        layers.append(
            QuantizedLayer(
                layer=layer,
                bits=width,
                codes=np.zeros(layer.shape, np.int8),
                scale=np.ones(layer.channels, np.float32),
                biases={name: np.zeros(outputs, np.float32) for name in layer.nodes},
            )
        )
    grids = dict.fromkeys(graph.activations, Grid(scale=1.0))
    return qdq.qdq_model(QuantizedGraph(graph=graph, layers=tuple(layers), grids=grids))
