"""Take the mean error that weight rounding adds to each output channel out of the bias.

    E[y_q - y]_c = sum_k (Q(w) - w)_ck E[x_k]        bias_c <- bias_c - E[y_q - y]_c

Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019, section 4.2,
with the input means measured in the capture instead of derived from BatchNorm. Zero padding is ignored: the
mean is taken over all positions of the unpadded input.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Layer
from ompq_deploy.graph.index import GraphIndex

Float64 = NDArray[np.float64]
PRODUCTS = ("Gemm", "MatMul")
WITHIN_CHANNELS = frozenset(("GlobalMaxPool", "Identity", "MaxPool", "Pad"))
RESHAPES = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze"))
UNKNOWN = (None, None, None)


def reads_channels_of(index: GraphIndex, layers: Iterable[Layer], layer: Layer, tensor: str, root: str) -> bool:
    """Whether the channels of `tensor`, which a layer reads, are those that `Capture.means` has of `root`, from which
    its values were moved: on the last axis where a Gemm or MatMul layer reads `root` itself, else on axis 1."""
    last = any(root in other.inputs for other in layers if other.op in PRODUCTS)
    return (-1 if layer.op in PRODUCTS else 1) in _axes(index, tensor, root, -1 if last else 1)


def _axes(index: GraphIndex, tensor: str, root: str, axis: int) -> set[int]:
    """Where the channels that lie on `axis` of `root` lie on a tensor made of its values: 1, -1, both or nowhere."""
    shape = index.shapes.get(tensor, UNKNOWN)
    if tensor == root:
        return {1, -1} if len(shape) == 2 else {axis}
    node = index.producer[tensor]
    source = index.shapes.get(node.input[0], UNKNOWN)
    axes = _axes(index, node.input[0], root, axis)
    if node.op_type in WITHIN_CHANNELS:
        return axes & {1}
    if node.op_type not in RESHAPES or not axes:
        return set()
    if None not in source[1:] and sum(size != 1 for size in source[1:]) <= 1:
        return {1, -1}
    return axes & {-1} if source[-1:] == shape[-1:] != (None,) else set()


def mean_output_error(layer: Layer, error: NDArray, input_means: Float64, strides: tuple[int, ...] = ()) -> Float64:
    """E[y_q - y] per output channel, float64 (C_out,).

    `error` is Q(w) - w in the weight's shape; `input_means` float64 (C_in,). `strides` are needed for
    ConvTranspose only, where each output sees 1 / prod(strides) of the kernel on average.
    """
    error = np.asarray(error, np.float64)
    if layer.op == "MatMul" or (layer.op == "Gemm" and layer.channel_axis == 1):
        return input_means @ error
    if layer.op == "Gemm":
        return error @ input_means
    taps = error.reshape(*error.shape[:2], -1).sum(axis=2)
    groups = input_means.reshape(layer.groups, -1)
    if layer.op == "Conv":
        per_group = taps.reshape(layer.groups, -1, taps.shape[1])
        return np.einsum("goi,gi->go", per_group, groups).reshape(-1)
    per_group = taps.reshape(layer.groups, -1, taps.shape[1])
    return np.einsum("gio,gi->go", per_group, groups).reshape(-1) / np.prod(strides or (1,))
