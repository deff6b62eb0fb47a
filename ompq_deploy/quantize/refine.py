"""Second-order rounding of every layer, each with the inputs that the layers before it, already quantized, produce.

Two streams walk through the graph side by side, the float one and the quantized one. In front of each layer

    X' = input of the quantized stream        Y = output of the float layer
    W' = argmin ||Y - W' X' - b'||^2          Q, s = second_order_codes(W')        b = mean Y - s Q mean X'

(`gptq.py`, with W' as fitted by `target.py` and the covariance of X' shrunk as `shrinkage.py` says), then the quantized
stream goes on with s Q and b.
A layer of very many inputs is rounded in parts of fewer (`columns.parts`), and W' is W there.
The bias is the measured form of bias correction; it also takes out what the prefix and zero padding shift. Few images
are repeated, flipped and shifted: that fills covariances where the feature map is small. `--effort extensive` weights
positions of the output by what they matter to the network's (`reconstruct/fisher.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from ompq_deploy.quantize import columns, gptq
from ompq_deploy.quantize.biases import float_biases, least_scales
from ompq_deploy.quantize.covariance import MAX_POSITIONS, Accumulator, Moments, draw_positions
from ompq_deploy.quantize.shrinkage import STEPS, best_shrinkage, shrunk
from ompq_deploy.quantize.stream import Head, Stream, pieces
from ompq_deploy.quantize.target import fitted_target
from ompq_deploy.runtime.timing import Listener, counted

DAMPING = 0.01

Weigh = Callable[[Samples], Mapping[str, Float32]]


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

    `weigh`, of all samples and copies, gives by node how much the positions of its output count, float32 (rows,
    positions) of mean 1; they count the same in nodes that it leaves out.
    """
    index = GraphIndex(graph.model)
    weights = graph.layer_weights()
    by_node = {node: layer for layer in graph.layers for node in layer.nodes}
    rows = with_copies(samples, settings.copies, settings.seed, settings.augment)
    weights_of = weigh(rows) if weigh else {}
    exact, quantized = (Stream(graph, rows, simulated, settings.threads) for simulated in ({}, grids))
    done: dict[str, QuantizedLayer] = {}
    for piece in counted(pieces(graph), "rounding, part", tell):
        layer = by_node.get(piece[0].name) if piece else None
        if layer is None:
            exact.step()
            quantized.step()
            continue
        node = piece[0]
        halves = measure(exact, quantized, layer, node, grids, len(samples), settings.seed, weights_of.get(node.name))
        moments = reduce(Moments.merged, halves)
        q = done.get(layer.name)
        if q is None:
            biases = float_biases(index, layer)
            least = least_scales(index, layer, biases, grids)
            problem = rounding_problem(layer, weights[layer.name], moments, halves, biases, settings)
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


@dataclass(frozen=True, kw_only=True)
class RoundingProblem:
    """One layer's W' (G, K, R) and damped H (G, K, K), as `gptq.py` takes them."""

    layer: Layer
    target: NDArray
    hessian: NDArray

    def codes(self, widths: Sequence[int], least: Float32) -> list[tuple[NDArray[np.int8], Float32]]:
        """At each width codes of the weight's shape and scales per channel, none below `least`."""
        groups, _, rows = self.target.shape
        count, shared = len(widths), groups * rows > self.layer.channels
        floor = np.broadcast_to(least.reshape(-1, rows), (groups, rows))
        found, scale = gptq.second_order_codes(
            np.tile(self.target, count), self.hessian, np.repeat(widths, rows), np.tile(floor, count), shared=shared
        )
        found = found.reshape(self.layer.groups, -1, found.shape[2])  # parts joined
        return [
            (
                np.ascontiguousarray(columns.weight_from_columns(self.layer, codes)),
                scales[0] if shared else scales.reshape(-1),
            )
            for codes, scales in zip(np.split(found, count, axis=2), np.split(scale, count, axis=1), strict=True)
        ]


def rounding_problem(
    layer: Layer,
    weight: Float32,
    moments: Moments,
    halves: tuple[Moments, ...],
    biases: Mapping[str, Float32],
    settings: RefineSettings,
) -> RoundingProblem:
    """The problem that the `moments` of all samples pose; `halves` are those of either half."""
    if not settings.bias_correction:
        bias = np.asarray(biases.get(layer.name, 0.0), np.float64)
        rows = np.broadcast_to(bias, moments.output_mean.size).reshape(moments.output_mean.shape)
        moments = moments.around_zero(rows)
        halves = tuple(half.around_zero(rows) for half in halves)
    target = columns.in_parts(layer, columns.weight_columns(layer, weight))
    random = np.random.default_rng(settings.seed)
    if moments.cross.size:
        target = fitted_target(target, moments, halves, random)
    r = STEPS[0]  # one sample does not tell what varies by chance
    if len(halves) == 2:
        r = best_shrinkage((halves[0].hessian, halves[1].hessian), DAMPING, random)
    hessian = gptq.damped(shrunk(moments.hessian, r), DAMPING)
    return RoundingProblem(layer=layer, target=target, hessian=hessian)


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
