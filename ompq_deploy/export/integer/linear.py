"""Lower Conv, ConvTranspose, Gemm and MatMul with constant weights.

acc[c] = sum x w[c] + bias[c],   bias[c] = round(b[c] / (s_in s_w[c])),   ratio[c] = s_in s_w[c] / s_out

Under the arithmetic `tensorrt` they are rescaled in float32, see `in_float.py`.

The bias is limited to what keeps the accumulator inside int32 for every input; only channels whose weights are all
but zero ever reach that limit.

ConvTranspose is the convolution of its input, zeros inserted between neighbours, with the kernel turned round.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Float64, QuantizedLayer
from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.export.integer.geometry import transposed_window, window_of
from ompq_deploy.export.integer.in_float import rescaled_in_float
from ompq_deploy.export.integer.program import TENSORRT, IntegerConv, IntegerMatMul, IntegerZeroInsertion
from ompq_deploy.export.integer.rescale import accumulator_limit, check_accumulator, clamp_codes, requantize
from ompq_deploy.export.integer.rules import Int64, Requantize
from ompq_deploy.export.integer.scope import Scope
from ompq_deploy.graph.groups import Group
from ompq_deploy.graph.index import attributes
from ompq_deploy.numerics import along_axis

CONVOLUTIONS = ("Conv", "ConvTranspose")
Linear = IntegerConv | IntegerMatMul | IntegerZeroInsertion


def lower_layer(scope: Scope, group: Group) -> tuple[Linear, ...]:
    """The integer layer of a group, requantized to the grid of the group's output."""
    node, layer = group.head, scope.layers[group.head.name]
    grid = accumulator_scale(scope, node)
    weights = _channels_first(layer)
    bias, bound = _bias(scope, node, group.constant, weights, grid)
    grid_out = scope.grids[group.output]
    skip = scope.grid(group.skip) if group.skip else grid_out
    scale, largest = _for_accumulator(grid, layer), _for_accumulator(bound, layer)
    clamp = clamp_codes(group.low, group.high, grid_out)
    result = requantize(
        node.name,
        scale.astype(np.float64) / grid_out.scale,
        largest,
        clamp,
        skip=group.skip,
        skip_ratio=skip.scale / grid_out.scale,
        skip_bound=skip.largest,
    )
    *opening, last = _operation(scope, node, group.output, bias, result)
    if scope.arithmetic == TENSORRT and not isinstance(last, IntegerZeroInsertion):
        last = rescaled_in_float(scope, group, last, scale, largest, clamp)
    return (*opening, last)


def lower_accumulator(scope: Scope, node: onnx.NodeProto, constant: str, output: str) -> tuple[Linear, ...]:
    """The integer layer whose int32 accumulator, `constant` ("" for none) included, is dequantized to `output`."""
    layer = scope.layers[node.name]
    if scope.grid(node.input[0]).wide:
        raise NotCovered(node, "its accumulator of 16-bit inputs is returned, and has more than 32 bits")
    bias, _ = _bias(scope, node, constant, _channels_first(layer), accumulator_scale(scope, node))
    return _operation(scope, node, output, bias, None)


def accumulator_scale(scope: Scope, node: onnx.NodeProto) -> Float32:
    """s_in s_w[c], float32 (C,), positive also where the product underflows."""
    grid = scope.layers[node.name].bias_scale(scope.grid(node.input[0]).scale)
    return np.maximum(grid, np.finfo(np.float32).tiny)


def is_per_channel(scope: Scope, node: onnx.NodeProto, constant: str) -> bool:
    """Whether an added constant has one value per output channel of a layer, or one in all."""
    shape = tuple(scope.index.initializers[constant].dims)
    layer = scope.layers[node.name].layer
    rank = len(layer.shape) if layer.op in CONVOLUTIONS else len(scope.index.shapes.get(node.output[0], (0, 0)))
    axis = 1 if layer.op in CONVOLUTIONS else rank - 1
    aligned = (1,) * (rank - len(shape)) + shape
    return len(shape) <= rank and all(size == 1 for i, size in enumerate(aligned) if i != axis)


def with_added_tensor(scope: Scope, group: Group) -> Group:
    """A group as it is lowered: a constant with several values per channel, such as an embedding of positions, is added
    to a layer as a residual tensor is, where there is none."""
    added = group.constant and not group.skip and group.head.name in scope.layers
    if added and not is_per_channel(scope, group.head, group.constant):
        return replace(group, constant="", skip=group.constant)
    return group


def _operation(
    scope: Scope, node: onnx.NodeProto, output: str, bias: Int64, result: Requantize | None
) -> tuple[Linear, ...]:
    weights = _channels_first(scope.layers[node.name])
    source, window = node.input[0], None
    opening: tuple[IntegerZeroInsertion, ...] = ()
    if node.op_type == "ConvTranspose":
        window, strides, sizes = transposed_window(scope.index, node, weights.shape[2:])
        if any(stride > 1 for stride in strides):
            source = f"{output}_spread"
            opening = (
                IntegerZeroInsertion(name=node.name, input=node.input[0], output=source, strides=strides, sizes=sizes),
            )
    if node.op_type == "Conv":
        window = window_of(scope.index, node, weights.shape[2:])
    if window is not None:
        conv = IntegerConv(
            name=node.name,
            input=source,
            output=output,
            weights=weights,
            bias=bias,
            window=window,
            groups=attributes(node).get("group", 1),
            requantize=result,
        )
        return (*opening, conv)
    matmul = IntegerMatMul(
        name=node.name,
        input=source,
        output=output,
        weights=np.ascontiguousarray(weights.T),
        bias=bias,
        requantize=result,
    )
    return (matmul,)


def _channels_first(layer: QuantizedLayer) -> NDArray[np.int8]:
    """The codes as a convolution or a Gemm with transposed weights has them: (C_out, C_in / groups, ...)."""
    codes, groups = layer.codes, layer.layer.groups
    if layer.layer.op != "ConvTranspose":
        return np.moveaxis(codes, layer.layer.channel_axis, 0)
    split = codes.reshape(groups, -1, *codes.shape[1:]).swapaxes(1, 2)
    turned = np.flip(split, axis=tuple(range(3, split.ndim)))
    return np.ascontiguousarray(turned.reshape(-1, *turned.shape[2:]))


def _bias(
    scope: Scope, node: onnx.NodeProto, constant: str, weights: NDArray[np.int8], grid: Float32
) -> tuple[Int64, Int64]:
    """The bias per channel, and the largest magnitude of each channel's accumulator, int64 (C,)."""
    source = scope.grid(node.input[0])
    sums = source.largest * np.abs(weights.astype(np.int64)).reshape(len(weights), -1).sum(axis=1)
    check_accumulator(node.name, int(sums.max()), source)
    room = accumulator_limit(source) - sums
    codes = np.clip(np.rint(_real_bias(scope, node, constant, len(weights)) / grid), -room, room).astype(np.int64)
    return codes, sums + np.abs(codes)


def _real_bias(scope: Scope, node: onnx.NodeProto, constant: str, channels: int) -> Float64:
    """The layer's bias and the constant added after it, float64 (C,)."""
    total = np.zeros(channels)
    corrected = scope.layers[node.name].biases.get(node.name)
    if corrected is not None:
        total = total + corrected
    elif len(node.input) > 2 and node.input[2]:
        total = total + _vector(scope, node, node.input[2])
    if constant:
        if not is_per_channel(scope, node, constant):
            raise NotCovered(
                node,
                f"the constant {constant!r} added to it has more than one value per channel, and a tensor is added too",
            )
        total = total + _vector(scope, node, constant)
    return total


def _vector(scope: Scope, node: onnx.NodeProto, constant: str) -> Float64:
    values = scope.index.constant(constant).astype(np.float64).reshape(-1)
    layer = scope.layers[node.name].layer
    channels = layer.channels * (layer.groups if layer.op == "ConvTranspose" else 1)
    if values.size not in (1, channels):
        raise NotCovered(node, f"its bias {constant!r} has {values.size} values for {channels} channels")
    return np.broadcast_to(values, (channels,))


def _for_accumulator(per_channel: NDArray, layer: QuantizedLayer) -> NDArray:
    """A vector per output channel, shaped to broadcast against the accumulator."""
    return along_axis(per_channel, len(layer.codes.shape) - 1, 0) if layer.layer.op in CONVOLUTIONS else per_channel
