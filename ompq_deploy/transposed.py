"""The pads of a ConvTranspose, as onnxruntime has them: what it cuts off its full result at either end.

full = stride (in - 1) + output_padding + dilation (kernel - 1) + 1            (per spatial axis)

With `output_shape`, or `auto_pad` SAME, which asks for stride in, pads make up the difference; the larger half of an
odd one lies in front, under SAME_UPPER at the end.
"""

from __future__ import annotations

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
