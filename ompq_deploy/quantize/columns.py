"""A layer as a product of matrices, Y = W X + b, at chosen output positions.

Conv            x[g, (i, k), p] = input[n, g I + i, p * stride - pad + k * dilation]       (im2col; p runs over n too)
ConvTranspose   the Conv with the kernel flipped, pads dilation (k - 1) - pad, and an input with stride - 1 zeros
                between its elements: index r of that input is element r / stride of the real one, or zero
Gemm, MatMul    x[0, k, p] = input[n, p, k], p running over the axes between the first and the last, and over n too

Groups lead, and a column of W is a row here: weight (G, K, R), inputs (G, K, P), outputs (G, R, P). A layer of one
group and very many inputs is taken in parts of fewer, as if these were groups: (N, K / N, R) and (N, K / N, P).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.artifacts import Layer
from ompq_deploy.graph.index import attributes
from ompq_deploy.graph.pads import same_pads, transposed_pads

MOST_COLUMNS = 4608
"""A 3 x 3 kernel on 512 channels. The covariances of a first fully connected layer (9,216 inputs in AlexNet, 25,088 in
VGG) would take gigabytes each."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Which input elements an output position reads; `begins` are the leading pads, `spread` the input's step."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    spread: tuple[int, ...]


def window_of(layer: Layer, node: onnx.NodeProto, input_sizes: tuple[int, ...]) -> Window:
    """The window of a node of a Conv or ConvTranspose layer; pads follow from the sizes where the node leaves them to
    the runtime."""
    settings = attributes(node)
    kernel = layer.shape[2:]
    ones = (1,) * len(kernel)
    strides = tuple(settings.get("strides", ones))
    dilations = tuple(settings.get("dilations", ones))
    if layer.op == "ConvTranspose":
        begins, _ = transposed_pads(settings, input_sizes, kernel)
        flipped = tuple(d * (k - 1) - begin for d, k, begin in zip(dilations, kernel, begins, strict=True))
        return Window(kernel=kernel, strides=ones, dilations=dilations, begins=flipped, spread=strides)
    begins = tuple(settings.get("pads", [0] * len(kernel)))[: len(kernel)]
    automatic = settings.get("auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        begins, _ = same_pads(input_sizes, kernel, strides, dilations, upper=automatic == "SAME_UPPER")
    return Window(kernel=kernel, strides=strides, dilations=dilations, begins=begins, spread=ones)


def parts(layer: Layer) -> int:
    """The parts N of a layer's inputs, as few as keep each within `MOST_COLUMNS`; 1 for a layer of several groups."""
    columns = layer.numel // layer.channels
    if layer.groups > 1:
        return 1
    return next(n for n in range(1, columns + 1) if columns % n == 0 and columns // n <= MOST_COLUMNS)


def in_parts(layer: Layer, x: NDArray) -> NDArray:
    """A weight or inputs (G, K, ...) as (G N, K / N, ...)."""
    count = parts(layer)
    return x.reshape(len(x) * count, x.shape[1] // count, *x.shape[2:])


def weight_columns(layer: Layer, weight: NDArray) -> NDArray:
    """The weight as (G, K, R)."""
    if layer.op == "Conv":
        return weight.reshape(layer.groups, layer.shape[0] // layer.groups, -1).swapaxes(1, 2)
    if layer.op == "ConvTranspose":
        flipped = np.flip(weight, axis=tuple(range(2, weight.ndim)))
        per_group = flipped.reshape(layer.groups, -1, *flipped.shape[1:])
        return np.moveaxis(per_group, 2, -1).reshape(layer.groups, -1, layer.shape[1])
    return (weight if layer.channel_axis == 1 else weight.T)[np.newaxis]


def weight_from_columns(layer: Layer, columns: NDArray) -> NDArray:
    """The inverse of `weight_columns`."""
    if layer.op == "Conv":
        return columns.swapaxes(1, 2).reshape(layer.shape)
    if layer.op == "ConvTranspose":
        inputs = layer.shape[0] // layer.groups
        per_group = columns.reshape(layer.groups, inputs, *layer.shape[2:], layer.shape[1])
        flipped = np.moveaxis(per_group, -1, 2).reshape(layer.shape)
        return np.flip(flipped, axis=tuple(range(2, flipped.ndim)))
    return columns[0] if layer.channel_axis == 1 else columns[0].T


def output_positions(layer: Layer, output: NDArray) -> int:
    """How many positions one sample's output has."""
    return int(np.prod(output.shape[2:] if layer.op.startswith("Conv") else output.shape[1:-1]))


def output_rows(layer: Layer, output: NDArray, positions: NDArray[np.intp]) -> NDArray:
    """The layer's raw output at some positions, (G, R, P)."""
    if not layer.op.startswith("Conv"):
        return _rows(output, positions)
    batch, channels = output.shape[:2]
    taken = output.reshape(batch, channels, -1)[:, :, positions]
    return taken.reshape(batch, layer.groups, -1, positions.size).transpose(1, 2, 0, 3).reshape(
        layer.groups, channels // layer.groups, -1
    )  # fmt: skip


def input_columns(
    layer: Layer,
    node: onnx.NodeProto,
    x: NDArray,
    output_sizes: tuple[int, ...],
    positions: NDArray[np.intp],
    zero: int,
) -> NDArray:
    """What the layer multiplies at some output positions, (G, K, P), in the type of `x`; `zero` stands for padding."""
    if not layer.op.startswith("Conv"):
        return _rows(x, positions)
    window = window_of(layer, node, x.shape[2:])
    batch, channels, sizes = x.shape[0], x.shape[1], x.shape[2:]
    flat = x.reshape(batch, channels, -1)
    where = np.unravel_index(positions, output_sizes)
    taps = []
    for offsets in itertools.product(*map(range, window.kernel)):
        index, inside = np.zeros(positions.size, np.intp), np.ones(positions.size, bool)
        for axis, (size, offset) in enumerate(zip(sizes, offsets, strict=True)):
            r = where[axis] * window.strides[axis] - window.begins[axis] + offset * window.dilations[axis]
            element = r // window.spread[axis]
            inside &= (element >= 0) & (element < size) & (r % window.spread[axis] == 0)
            index = index * size + np.clip(element, 0, size - 1)
        values = flat[:, :, index]
        values[:, :, ~inside] = zero
        taps.append(values.reshape(batch, layer.groups, channels // layer.groups, positions.size))
    stacked = np.stack(taps, axis=3)
    return stacked.transpose(1, 2, 3, 0, 4).reshape(layer.groups, -1, batch * positions.size)


def _rows(x: NDArray, positions: NDArray[np.intp]) -> NDArray:
    """Positions of a tensor whose last axis is the channels, (1, K, P)."""
    taken = x.reshape(len(x), -1, x.shape[-1])[:, positions]
    return taken.reshape(-1, x.shape[-1]).T[np.newaxis]
