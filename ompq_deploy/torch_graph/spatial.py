"""ONNX convolutions, poolings, normalizations and Resize as torch functions. Called as in `elementwise.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ompq_deploy.graph.pads import ceil_ends, same_pads, transposed_pads
from ompq_deploy.graph.resampling import Taps, resized, scaled_length
from ompq_deploy.torch_graph.movement import pad_axis

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def conv(x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET", dilations: Sequence[int] = (),
         group: int = 1, kernel_shape: Sequence[int] = (), pads: Sequence[int] = (),
         strides: Sequence[int] = ()) -> Tensor:  # fmt: skip
    rank = x.ndim - 2
    strides, dilations = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    before, after = padding(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    if before != after:
        x, before = pad_spatial(x, before, after), (0,) * rank
    return CONVOLUTIONS[rank](x, w, b, strides, before, dilations, group)


def conv_transpose(x: Tensor, w: Tensor, b: Tensor | None = None, *, auto_pad: str = "NOTSET",
                   dilations: Sequence[int] = (), group: int = 1, kernel_shape: Sequence[int] = (),
                   output_padding: Sequence[int] = (), output_shape: Sequence[int] = (), pads: Sequence[int] = (),
                   strides: Sequence[int] = ()) -> Tensor:  # fmt: skip
    rank = x.ndim - 2
    strides, dilations = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    extra = tuple(output_padding) or (0,) * rank
    settings = {"auto_pad": auto_pad, "dilations": dilations, "output_padding": extra, "strides": strides}
    settings |= {"output_shape": output_shape} if output_shape else {}
    settings |= {"pads": pads} if pads else {}
    begins, ends = transposed_pads(settings, x.shape[2:], w.shape[2:])
    full = TRANSPOSED[rank](x, w, b, strides, 0, extra, group, dilations)
    for i, (before, after) in enumerate(zip(begins, ends, strict=True)):
        full = pad_axis(full, 2 + i, -before, -after, "constant")
    return full


def max_pool(x: Tensor, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, dilations: Sequence[int] = (),
             kernel_shape: Sequence[int], pads: Sequence[int] = (), storage_order: int = 0,
             strides: Sequence[int] = ()) -> Tensor:  # fmt: skip
    rank = x.ndim - 2
    strides, dilations = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    before, after = padding(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    padded = pad_spatial(x, before, after, -math.inf)
    return MAX_POOLS[rank](padded, tuple(kernel_shape), strides, 0, dilations, bool(ceil_mode))


def average_pool(x: Tensor, *, auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
                 dilations: Sequence[int] = (), kernel_shape: Sequence[int], pads: Sequence[int] = (),
                 strides: Sequence[int] = ()) -> Tensor:  # fmt: skip
    """Sums over padded windows, divided by how many of their elements count."""
    rank = x.ndim - 2
    strides, dilations = tuple(strides) or (1,) * rank, tuple(dilations) or (1,) * rank
    before, after = padding(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    if any(dilation > 1 for dilation in dilations):
        beyond = ceil_ends(kernel_shape, strides, dilations, (*before, *after), x.shape[2:]) if ceil_mode else after
        return _dilated_average(x, kernel_shape, strides, dilations, before, after, beyond, bool(count_include_pad))
    pool = AVERAGE_POOLS[rank]
    mean = pool(pad_spatial(x, before, after), tuple(kernel_shape), strides, 0, bool(ceil_mode))
    if count_include_pad or not any((*before, *after)):
        return mean
    counted = pool(
        pad_spatial(torch.ones_like(x[:1, :1]), before, after), tuple(kernel_shape), strides, 0, bool(ceil_mode)
    )
    return mean / counted


def _dilated_average(
    x: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    beyond: Sequence[int],
    padding_counts: bool,
) -> Tensor:
    """The average over windows with gaps, which torch's pools do not know. Windows reach `beyond` at the end, where no
    element counts; those of the padding `after` do if `padding_counts`."""
    further = tuple(b - a for b, a in zip(beyond, after, strict=True))
    zeros = (0,) * len(kernel)
    elements = pad_spatial(torch.ones_like(x[:1, :1]), before, after, float(padding_counts))

    def sums(padded: Tensor) -> Tensor:
        channels = padded.shape[1]
        taps = torch.ones(channels, 1, *kernel, dtype=x.dtype, device=x.device)
        return CONVOLUTIONS[len(kernel)](
            pad_spatial(padded, zeros, further), taps, None, tuple(strides), 0, tuple(dilations), channels
        )

    return sums(pad_spatial(x, before, after)) / sums(elements)


def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def padding(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each spatial axis."""
    rank = len(sizes)
    if auto_pad in ("NOTSET", "VALID"):
        amounts = tuple(pads) if pads and auto_pad == "NOTSET" else (0,) * (2 * rank)
        return amounts[:rank], amounts[rank:]
    return same_pads(sizes, kernel, strides, dilations, upper=auto_pad == "SAME_UPPER")


def pad_spatial(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    for i, (first, last) in enumerate(zip(before, after, strict=True)):
        x = pad_axis(x, 2 + i, first, last, "constant", value)
    return x


def batch_normalization(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5,
                        momentum: float = 0.9, training_mode: int = 0) -> Tensor:  # fmt: skip
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return group_normalization(x, scale, bias, num_groups=x.shape[1], epsilon=epsilon)


def group_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5,
                        stash_type: int = 1) -> Tensor:  # fmt: skip
    return F.group_norm(x, num_groups, scale, bias, epsilon)


def layer_normalization(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5,
                        stash_type: int = 1) -> Tensor:  # fmt: skip
    shape = x.shape[axis:]
    return F.layer_norm(x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), epsilon)


def resize(x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None, *,
           axes: Sequence[int] | None = None, keep_aspect_ratio_policy: str = "stretch",
           **settings: Any) -> Tensor:  # fmt: skip
    """One axis after the other, as `graph/resampling.py` says."""
    by_scale = scales is not None and scales.numel() > 0
    amounts = (scales if by_scale else sizes).tolist()  # type: ignore[union-attr]
    lengths = [x.shape[axis] for axis in axes or range(x.ndim)]
    targets = [
        scaled_length(n, amount) if by_scale else int(amount) for n, amount in zip(lengths, amounts, strict=True)
    ]
    if targets == lengths:
        return x
    for axis, length, target, amount in zip(axes or range(x.ndim), lengths, targets, amounts, strict=True):
        scale = amount if by_scale else target / length
        if scale == 1:
            continue
        taps = resized(settings, length, target, scale)
        if taps is None or keep_aspect_ratio_policy != "stretch":
            raise NotImplementedError(f"Resize with {settings}, {keep_aspect_ratio_policy}")
        x = weighted_sum(x, axis, taps)
    return x


def weighted_sum(x: Tensor, axis: int, taps: Taps) -> Tensor:
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    parts = []
    for index, weight in zip(taps.index, taps.weight, strict=True):
        part = torch.index_select(x, axis, torch.from_numpy(index).to(x.device))
        parts.append(part if (weight == 1).all() else part * torch.from_numpy(weight).to(x).reshape(shape))
    return torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]


OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "MaxPool": max_pool,
    "Resize": resize,
}
