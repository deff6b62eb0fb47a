"""The pads that nodes leave to the runtime, as onnxruntime has them, per spatial axis.

ConvTranspose     full = stride (in - 1) + output_padding + dilation (kernel - 1) + 1

    Pads are what is cut off the full result. With `output_shape`, or `auto_pad` SAME, which asks for stride in, they
    make up the difference; the larger half of an odd one lies in front, under SAME_UPPER at the end.

Windows           out = floor((in + pads - dilation (kernel - 1) - 1) / stride) + 1

    Under SAME pads make out = ceil(in / stride); the larger half of an odd number stands at the end under SAME_UPPER.
    A pool in ceil mode rounds up instead, dropping a last window that would start beyond the input and its leading pad;
    the same positions follow from the floor formula with more padding at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def transposed_pads(
    settings: Mapping[str, Any], sizes: Sequence[int], kernel: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pads in front and at the end of every axis, from a node's attributes and the spatial sizes of its input; negative
    at the end where `output_shape` is longer than the full result. Under SAME a shorter full result stays as it is."""
    rank = len(kernel)
    ones, zeros = [1] * rank, [0] * rank
    pads = settings.get("pads", zeros * 2)
    automatic = settings.get("auto_pad", "NOTSET")
    if "output_shape" not in settings and not automatic.startswith("SAME"):
        return tuple(pads[:rank]), tuple(pads[rank:])
    begins, ends = [], []
    for i in range(rank):
        stride, dilation = settings.get("strides", ones)[i], settings.get("dilations", ones)[i]
        full = stride * (sizes[i] - 1) + settings.get("output_padding", zeros)[i] + dilation * (kernel[i] - 1) + 1
        total = full - settings["output_shape"][i - rank] if "output_shape" in settings else full - stride * sizes[i]
        cut = max(total, 0)
        begins.append(cut // 2 if automatic == "SAME_UPPER" else cut - cut // 2)
        ends.append((total if "output_shape" in settings else cut) - begins[-1])
    return tuple(begins), tuple(ends)


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], *, upper: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Pads in front and at the end of every axis under `auto_pad` SAME, SAME_UPPER if `upper`."""
    axes = zip(sizes, kernel, strides, dilations, strict=True)
    totals = [max((math.ceil(s / stride) - 1) * stride + d * (k - 1) + 1 - s, 0) for s, k, stride, d in axes]
    less, more = tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)
    return (less, more) if upper else (more, less)


def positions(
    kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int], sizes: Sequence[int]
) -> tuple[int, ...]:
    """How many windows a pool or a convolution has along every axis."""
    rank = len(kernel)
    return tuple(
        (size + begin + end - dilation * (length - 1) - 1) // stride + 1
        for size, begin, end, length, stride, dilation in zip(
            sizes, pads[:rank], pads[rank:], kernel, strides, dilations, strict=True
        )
    )


def ceil_ends(
    kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int], sizes: Sequence[int]
) -> tuple[int, ...]:
    """Pads at the end of every axis with which a pool of these `pads` has the windows of ceil mode without it."""
    rank = len(kernel)
    ends = []
    for size, begin, end, length, stride, dilation in zip(
        sizes, pads[:rank], pads[rank:], kernel, strides, dilations, strict=True
    ):
        span = dilation * (length - 1) + 1
        last = math.ceil((size + begin + end - span) / stride)
        if last * stride >= size + begin:
            last -= 1
        ends.append(max(end, last * stride + span - size - begin))
    return tuple(ends)
