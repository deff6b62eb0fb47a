"""The values that travel along the straight line. Frozen, keyword-only; this module imports no stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]

SYMMETRIC = 128
"""The zero-point of a symmetric grid."""
LARGEST_SYMMETRIC = 127
"""The largest value on a symmetric grid, in steps; the smallest is one further from zero."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """N samples, ready to be fed: one array per graph input, every first axis N long.

    `labels` is int64 (N,) where the data has any. `source` is what a person would call the data,
    `sha256` covers the bytes fed, so that a plan can name exactly what it was calibrated on. `layout` is NCHW or NHWC
    where the samples are images, fed to the one input.
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[np.int64] | None
    source: str
    sha256: str
    layout: str | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def batches(self, size: int) -> list[dict[str, NDArray[Any]]]:
        """Consecutive feeds of at most `size` samples."""
        return [
            {name: array[start : start + size] for name, array in self.inputs.items()}
            for start in range(0, len(self), size)
        ]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One quantizable layer: a weight and every node that reads it (more than one when shared).

    `nodes[0]` equals `name`. `output` is the layer's output as the ORM sees it: after bias, folded
    BatchNorm and activation. `inputs` are the activation tensors feeding the nodes, in the order of `nodes`.
    `channel_axis` is the axis of the weight that runs over output channels. `macs` are per sample.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    weight: str
    shape: tuple[int, ...]
    channel_axis: int
    groups: int
    inputs: tuple[str, ...]
    output: str
    macs: int

    @property
    def numel(self) -> int:
        return int(np.prod(self.shape))

    @property
    def channels(self) -> int:
        """Length of the per-channel scale: the weight's extent along `channel_axis`."""
        return self.shape[self.channel_axis]

    @property
    def depthwise(self) -> bool:
        return self.op == "Conv" and self.groups > 1 and self.shape[1] == 1


@dataclass(frozen=True, kw_only=True)
class PreparedGraph:
    """The canonical float graph: opset 21, constants, BatchNorm, Pad and Identity folded, nodes named.

    `activations` are the tensors that carry an integer grid, in topological order: every activation that
    reaches a layer, and those that must be integer for residual sums, concatenations and pools between
    layers. `wide` are those that carry one in the integer-only model alone. `batch` is None when the first input axis
    is symbolic, else its fixed size. `float_type` is that of the file, the graph is float32.
    """

    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    activations: tuple[str, ...]
    batch: int | None
    source: Path
    sha256: str
    float_bytes: int
    float_type: str = "float32"
    wide: tuple[str, ...] = ()

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.model.graph.input)

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.model.graph.output)

    def layer_weights(self) -> dict[str, Float32]:
        """The float weight of every layer, by layer name."""
        initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        return {layer.name: numpy_helper.to_array(initializers[layer.weight]) for layer in self.layers}


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of x over an even number of equal bins from -`limit` to `limit`; zero is the edge in the middle."""

    counts: NDArray[np.int64]
    limit: float

    @property
    def width(self) -> float:
        """The width of a bin."""
        return 2 * self.limit / self.counts.size

    @property
    def centres(self) -> Float64:
        """The middle of every bin."""
        return (np.arange(self.counts.size, dtype=np.float64) - self.counts.size / 2 + 0.5) * self.width

    @property
    def magnitudes(self) -> NDArray[np.int64]:
        """Counts of |x| over the bins from 0 to `limit`."""
        half = self.counts.size // 2
        return self.counts[half:] + self.counts[:half][::-1]


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What one pass over N samples leaves behind.

    `grams[layer]` is X X^T, float64 (N, N), of the layer's output flattened to X (N, C H W).
    `ranges[tensor]` is (min, max) and `means[tensor]` the mean per channel, float64 (C,), of each tensor in
    `PreparedGraph.activations`: the channel axis is the last one for a tensor that a MatMul or Gemm layer reads
    directly, and axis 1 for every other. `wide_ranges` is (min, max) of each of `PreparedGraph.wide`. `histograms` is
    empty unless a calibration method asked for it.
    """

    grams: Mapping[str, Float64]
    ranges: Mapping[str, tuple[float, float]]
    means: Mapping[str, Float64]
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    wide_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    count: int
    streamed: bool


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What each width of each layer costs under one metric; the solver minimizes the sum.

    `loss` is float64 (L, B), rows in the order of `PreparedGraph.layers`, columns in the order of `bits`;
    `importance` is the metric's own figure per layer, float64 (L,), for the report. `note` says where the metric
    had to fall back to another form.
    """

    metric: str
    bits: tuple[int, ...]
    loss: Float64
    importance: Float64
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The size limit in bytes, and what it is the size of: `file`, `weights`, `engine` or `paper`; further limits
    are None where there are none."""

    size_bytes: int
    size_of: str = "file"
    bops: int | None = None
    activation_bytes: int | None = None
    latency_ns: int | None = None


@dataclass(frozen=True, kw_only=True)
class SizeTable:
    """What the budget counts: `fixed` bytes whatever the plan, and int64 (L, B) `bytes` per layer and width."""

    fixed: int
    bytes: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A quantity a plan uses: `fixed` whatever the plan, plus int64 (L, C) `cost` per layer and choice; `limit`
    is None where there is none. Names: "size", "bops", "latency", "activation memory"."""

    name: str
    cost: NDArray[np.int64]
    fixed: int = 0
    limit: int | None = None

    def used(self, choice: NDArray[np.int64]) -> int:
        """What a plan uses, one column per layer."""
        return self.fixed + int(self.cost[np.arange(len(choice)), choice].sum())


@dataclass(frozen=True, kw_only=True)
class SolverRecord:
    """How the plan was found. `bound` is a proven lower bound of `objective`; equal when OPTIMAL."""

    name: str
    status: str
    objective: float
    bound: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """One row of the plan. `bytes` are the bytes this layer adds to what the budget counts."""

    name: str
    op: str
    weight_bits: int
    activation_bits: int
    numel: int
    bytes: int
    score: float


@dataclass(frozen=True, kw_only=True)
class BitPlan:
    """A width for every layer, keeping the budget: `size_bytes` <= `budget.size_bytes`, and so on for the other
    limits. What a run did not count is None."""

    layers: tuple[PlannedLayer, ...]
    budget: Budget
    size_bytes: int
    metric: str
    solver: SolverRecord
    bops: int | None = None
    activation_bytes: int | None = None
    latency_ns: int | None = None

    def bits(self) -> dict[str, int]:
        """Weight width per layer name."""
        return {layer.name: layer.weight_bits for layer in self.layers}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid of an activation: value = scale * (code - zero_point), codes 0 to 2^bits - 1.

    `scale` is positive and exact in float32. Zero-point 128 is symmetric int8, stored with an offset. A wide grid, of
    more than 8 bits, exists in the integer-only model alone.
    """

    scale: float
    zero_point: int = SYMMETRIC
    bits: int = 8

    @property
    def wide(self) -> bool:
        """Whether codes need more than 8 bits."""
        return self.bits > 8

    @property
    def low(self) -> int:
        """The smallest value, in steps."""
        return -self.zero_point

    @property
    def high(self) -> int:
        """The largest value, in steps."""
        return (1 << self.bits) - 1 - self.zero_point

    @property
    def largest(self) -> int:
        """The largest magnitude, in steps: 128 where the grid is symmetric, 255 where it has one side only."""
        return max(-self.low, self.high)

    def as_symmetric(self) -> Grid:
        """This grid if its zero-point is 128, else the finest one with zero-point 128 that reaches as far."""
        if self.zero_point == SYMMETRIC:
            return self
        return Grid(scale=float(np.float32(self.scale * self.largest / LARGEST_SYMMETRIC)))

    def steps(self, x: NDArray[np.floating]) -> NDArray[np.floating]:
        """The nearest value in steps, code - zero_point: float32 division, ties to even (ONNX QuantizeLinear)."""
        return np.clip(np.rint(x / np.float32(self.scale)), self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The graph as it is to be quantized, and the samples that calibrate it. `further` ones, where there are any, are
    of the same data: they decide between plans, and weights are rounded by them too. `smoothing` is what was done to
    the graph on account of the samples, exponents per channel by tensor (`passes/smooth.py`)."""

    graph: PreparedGraph
    samples: Samples
    further: Samples | None = None
    smoothing: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """A layer's integers: value = scale * code, `codes` int8 in the weight's shape, within `bits` bits.

    `scale` is float32 (C,) along `layer.channel_axis`. `biases` holds, for each node of the layer that has
    one (all of them after bias correction), a bias per output channel, float32, or float64 where read from a file.
    """

    layer: Layer
    bits: int
    codes: NDArray[np.int8]
    scale: Float32
    biases: Mapping[str, Float32 | Float64]

    def bias_scale(self, activation_scale: float) -> Float32:
        """The grid of the int32 bias and of the accumulator, activation_scale * scale, one per output channel."""
        repeats = self.layer.groups if self.layer.op == "ConvTranspose" else 1
        return np.tile(np.float32(activation_scale) * self.scale, repeats)

    def bias_codes(self, node: str, activation_scale: float) -> Int32:
        """The bias of one of the layer's nodes on that grid, int32, saturated."""
        limits = np.iinfo(np.int32)
        codes = np.rint(self.biases[node].astype(np.float64) / self.bias_scale(activation_scale))
        return np.clip(codes, limits.min, limits.max).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class QuantizedGraph:
    """The prepared graph with integers chosen: one `QuantizedLayer` per layer, in the graph's order, and one grid per
    tensor in `graph.activations`.

    `calibrated_symmetric` are the grids calibrated for runtimes that know zero-point 128 only; empty where `grids` are
    of that kind, or not from a calibration. `wide_grids` are those of `graph.wide`, which only the integer-only model
    has. `note` tells what the rounding went without, empty where it had everything.
    """

    graph: PreparedGraph
    layers: tuple[QuantizedLayer, ...]
    grids: Mapping[str, Grid]
    calibrated_symmetric: Mapping[str, Grid] = field(default_factory=dict)
    wide_grids: Mapping[str, Grid] = field(default_factory=dict)
    note: str = ""

    @property
    def symmetric_grids(self) -> Mapping[str, Grid]:
        """A grid with zero-point 128 for every tensor: the calibrated one, else one that reaches as far as its own."""
        return {name: grid.as_symmetric() for name, grid in self.grids.items()} | dict(self.calibrated_symmetric)
