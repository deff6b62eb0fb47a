"""Second-order rounding of every layer, each with the inputs that the layers before it, already quantized, produce.

Two streams walk through the graph side by side, the float one and the quantized one. In front of each layer

    X' = input of the quantized stream        Y = output of the float layer
    W' = argmin ||Y - W' X' - b'||^2          Q, s = second_order_codes(W')        b = mean Y - s Q mean X'

(`gptq.py`, with W' as fitted by `target.py` and the covariance of X' shrunk as `shrinkage.py` says), then the quantized
stream goes on with s Q and b.
A layer of very many inputs is rounded in parts of fewer (`columns.parts`), and W' is W there.
The bias is the measured form of bias correction; it also takes out what the prefix and zero padding shift. Few images
are repeated, flipped and shifted: that fills covariances where the feature map is small. Where gradients are to be had
(`fisher.py`), positions of the output are weighted by what they matter to the network's, and the channels of a layer
rounded together (`kronecker.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ompq_deploy.artifacts import Float32, Grid, Layer, PreparedGraph, QuantizedLayer, Samples
from ompq_deploy.augment import with_copies
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import layer_grid
from ompq_deploy.numerics import along_axis
from ompq_deploy.quantize import columns
from ompq_deploy.quantize.biases import float_biases, least_scales
from ompq_deploy.quantize.covariance import MAX_POSITIONS, Accumulator, Moments, draw_positions
from ompq_deploy.quantize.rounding_problem import Halves, rounding_problem
from ompq_deploy.quantize.stream import Head, Stream, pieces
from ompq_deploy.runtime.timing import Listener, counted


@dataclass(frozen=True, kw_only=True)
class OutputWeights:
    """How much errors in the layers' outputs matter to the network's.

    `positions`: by node, float32 (rows, positions) of mean 1. `channels`: by layer, mean g g^T of the gradients g,
    (C, C) of mean diagonal 1, for even and for odd samples. Where a node or layer is left out all count the same.
    """

    positions: Mapping[str, Float32] = field(default_factory=dict)
    channels: Mapping[str, Halves] = field(default_factory=dict)


Weigh = Callable[[Samples], OutputWeights]


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """`bias_correction` lets biases absorb the mean error; without it they stay as they are. Images are taken `copies`
    times, augmented as `augment` says (`augment.with_copies`)."""

    bias_correction: bool = True
    copies: int = 1
    augment: str = "none"
    seed: int = 0
    threads: int = 0


def refine(
    graph: PreparedGraph,
    samples: Samples,
    bits: Mapping[str, int],
    grids: Mapping[str, Grid],
    settings: RefineSettings,
    weigh: Weigh | None = None,
    tell: Listener | None = None,
) -> tuple[QuantizedLayer, ...]:
    """The layers of `graph` at the widths `bits`, on the activation grids `grids`. `tell` hears how far it
    has come.

    `weigh` gets all samples and copies.
    """
    index = GraphIndex(graph.model)
    weights = graph.layer_weights()
    by_node = {node: layer for layer in graph.layers for node in layer.nodes}
    rows = with_copies(samples, settings.copies, settings.seed, settings.augment)
    mattering = weigh(rows) if weigh else OutputWeights()
    exact, quantized = (Stream(graph, rows, simulated, settings.threads) for simulated in ({}, grids))
    done: dict[str, QuantizedLayer] = {}
    for piece in counted(pieces(graph), "rounding, part", tell):
        layer = by_node.get(piece[0].name) if piece else None
        if layer is None:
            exact.step()
            quantized.step()
            continue
        node = piece[0]
        positions = mattering.positions.get(node.name)
        halves = measure(exact, quantized, layer, node, grids, len(samples), settings.seed, positions)
        moments = reduce(Moments.merged, halves)
        q = done.get(layer.name)
        if q is None:
            biases = float_biases(index, layer)
            least = least_scales(index, layer, biases, grids)
            kept = None if settings.bias_correction else biases.get(layer.name, 0.0)
            channels = mattering.channels.get(layer.name)
            problem = rounding_problem(layer, weights[layer.name], moments, halves, kept, settings.seed, channels)
            ((codes, scale),) = problem.codes([bits[layer.name]], least)
            q = QuantizedLayer(layer=layer, bits=bits[layer.name], codes=codes, scale=scale, biases=biases)
        if settings.bias_correction:
            q = replace(q, biases={**q.biases, node.name: _mean_matching_bias(q, moments)})
        done[layer.name] = q
        quantized.step(head_of(node, q, grids[layer_grid(index, grids, node.input[0])]))
    return tuple(done[layer.name] for layer in graph.layers)


def measure(
    exact: Stream,
    quantized: Stream,
    layer: Layer,
    node: onnx.NodeProto,
    grids: Mapping[str, Grid],
    samples: int,
    seed: int,
    weights: Float32 | None = None,
) -> tuple[Moments, ...]:
    """Moments of a node's quantized inputs and float outputs, of even and odd samples where there are two, each with
    its copies, the positions weighted by `weights`; takes the float stream one step further. Without `cross` where that
    has no use: the inputs are exact, or the layer is taken in parts."""
    random = np.random.default_rng([seed, len(node.name), *node.name.encode()])
    grid = grids.get(node.input[0])
    zero = 0 if grid is None else grid.zero_point
    cross = exact is not quantized and columns.parts(layer) == 1
    sums = (Accumulator(cross=cross), Accumulator(cross=cross))

    def watch(batch: int, output: NDArray) -> None:
        share = MAX_POSITIONS // (len(quantized) * len(output))
        positions = draw_positions(columns.output_positions(layer, output), share, random)
        place = quantized.first_row(batch) + np.arange(len(output))
        for parity, half in enumerate(sums):
            rows = place % samples % 2 == parity
            x, y = quantized.value(batch, node.input[0])[rows], output[rows]
            if len(y) == 0:
                continue
            inputs = columns.input_columns(layer, node, x, y.shape[2:], positions, zero)
            if grid is not None:
                inputs = (inputs.astype(np.float32) - zero) * np.float32(grid.scale)
            counts = None if weights is None else weights[place[rows]][:, positions].reshape(-1)
            half.add(columns.in_parts(layer, inputs), columns.output_rows(layer, y, positions), counts)

    exact.step(tap=node.output[0], watch=watch)
    return tuple(half.moments() for half in sums if half)


def _mean_matching_bias(q: QuantizedLayer, moments: Moments) -> Float32:
    values = columns.weight_columns(q.layer, _values(q)).astype(np.float64)
    mean = np.einsum("gkr,gk->gr", values, moments.input_mean.reshape(values.shape[:2]))
    return (moments.output_mean - mean).reshape(-1).astype(np.float32)


def head_of(node: onnx.NodeProto, q: QuantizedLayer, grid: Grid) -> Head:
    """A node of a layer with the values that its integers stand for, the bias on its int32 grid; `grid` is that of the
    node's input. MatMul has no bias input and gets an Add, which stays in floating point."""
    weight_name, bias_name = f"{node.name}:weight", f"{node.name}:bias"
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[1] = weight_name
    bias = q.biases.get(node.name)
    if bias is None:
        return Head(nodes=(copy,), constants={weight_name: _values(q)})
    if node.op_type == "MatMul":
        copy.output[0] = f"{node.name}:unbiased"
        add = helper.make_node("Add", [copy.output[0], bias_name], [node.output[0]])
        return Head(nodes=(copy, add), constants={weight_name: _values(q), bias_name: bias})
    del copy.input[2:]
    copy.input.append(bias_name)
    stored = (q.bias_codes(node.name, grid.scale) * q.bias_scale(grid.scale)).astype(np.float32)
    return Head(nodes=(copy,), constants={weight_name: _values(q), bias_name: stored})


def _values(q: QuantizedLayer) -> Float32:
    return q.codes * along_axis(q.scale, q.codes.ndim, q.layer.channel_axis)
