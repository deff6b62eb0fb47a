"""Take the mean error that weight rounding adds to each output channel out of the bias.

    E[y_q - y]_c = sum_k (Q(w) - w)_ck E[x_k]        bias_c <- bias_c - E[y_q - y]_c

Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019, section 4.2,
with the input means measured in the capture instead of derived from BatchNorm. Zero padding is ignored: the
mean is taken over all positions of the unpadded input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Layer

Float64 = NDArray[np.float64]


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
