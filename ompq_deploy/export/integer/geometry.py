"""Sliding windows of convolutions and pools with everything explicit: automatic padding and ceil mode become pads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ompq_deploy.export.integer.coverage import NotCovered
from ompq_deploy.export.integer.rules import Int64, Window
from ompq_deploy.graph.index import GraphIndex, attributes
from ompq_deploy.graph.pads import ceil_ends, positions, same_pads, transposed_pads


def window_of(index: GraphIndex, node: onnx.NodeProto, kernel: Sequence[int]) -> Window:
    """The window of a Conv or pool node. Raises NotCovered where it depends on sizes known only at run time."""
    settings = attributes(node)
    rank = len(kernel)
    window = Window(
        kernel=tuple(kernel),
        strides=tuple(settings.get("strides", [1] * rank)),
        dilations=tuple(settings.get("dilations", [1] * rank)),
        pads=tuple(settings.get("pads", [0] * 2 * rank)),
    )
    automatic = settings.get("auto_pad", "NOTSET")
    if automatic.startswith("SAME"):
        sizes = spatial_sizes(index, node, "auto_pad")
        begins, ends = same_pads(sizes, kernel, window.strides, window.dilations, upper=automatic == "SAME_UPPER")
        window = _with_pads(window, (*begins, *ends))
    if settings.get("ceil_mode", 0):
        sizes = spatial_sizes(index, node, "ceil_mode")
        ends = ceil_ends(kernel, window.strides, window.dilations, window.pads, sizes)
        window = _with_pads(window, (*window.pads[:rank], *ends))
    return window


def transposed_window(
    index: GraphIndex, node: onnx.NodeProto, kernel: Sequence[int]
) -> tuple[Window, tuple[int, ...], tuple[int, ...]]:
    """The convolution that a ConvTranspose is on its input with zeros inserted: its window, the strides at which the
    input's elements stand, and the input's channels and spatial sizes.

    begin = dilation (kernel - 1) - pad,   end = dilation (kernel - 1) - pad + output_padding
    """
    settings = attributes(node)
    rank = len(kernel)
    sizes = spatial_sizes(index, node, "ConvTranspose")
    strides = tuple(settings.get("strides", [1] * rank))
    dilations = tuple(settings.get("dilations", [1] * rank))
    extra = settings.get("output_padding", [0] * rank)
    spans = [dilation * (length - 1) for dilation, length in zip(dilations, kernel, strict=True)]
    begins, ends = transposed_pads(settings, sizes, kernel)
    outer = [span - begin for span, begin in zip(spans, begins, strict=True)]
    outer += [span - end + more for span, end, more in zip(spans, ends, extra, strict=True)]
    if min(outer) < 0:
        raise NotCovered(node, "its padding is wider than its kernel")
    channels = index.initializers[node.input[1]].dims[0]
    window = Window(kernel=tuple(kernel), strides=(1,) * rank, dilations=dilations, pads=tuple(outer))
    return window, strides, (channels, *sizes)


def explicit_pads(index: GraphIndex, node: onnx.NodeProto, kernel: Sequence[int]) -> tuple[int, ...]:
    """The pads that count as elements under count_include_pad: those of the node, without ceil mode's."""
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    del plain.attribute[:]
    plain.attribute.extend(a for a in node.attribute if a.name != "ceil_mode")
    return window_of(index, plain, kernel).pads


def spatial_sizes(index: GraphIndex, node: onnx.NodeProto, why: str) -> tuple[int, ...]:
    """Sizes of the axes from 2 on of a node's first input. Raises NotCovered where they are symbolic."""
    sizes = index.shapes.get(node.input[0], (None, None, None))[2:]
    known = tuple(size for size in sizes if size is not None)
    if len(known) != len(sizes):
        raise NotCovered(node, f"{why} needs fixed spatial sizes")
    return known


def output_sizes(window: Window, sizes: Sequence[int]) -> tuple[int, ...]:
    """Number of window positions per spatial axis."""
    return positions(window.kernel, window.strides, window.dilations, window.pads, sizes)


def taps(padded: NDArray[Any], window: Window) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    """For every kernel element, its index and the strided view of `padded` that it meets, one value per position.

    `padded` is (..., spatial) with the padding already there; only the last len(kernel) axes slide.
    """
    rank = len(window.kernel)
    unpadded = Window(kernel=window.kernel, strides=window.strides, dilations=window.dilations, pads=(0,) * 2 * rank)
    counts = output_sizes(unpadded, padded.shape[-rank:])
    for element in itertools.product(*(range(size) for size in window.kernel)):
        cut: tuple[Any, ...] = tuple(
            slice(i * dilation, i * dilation + (count - 1) * stride + 1, stride)
            for i, dilation, count, stride in zip(element, window.dilations, counts, window.strides, strict=True)
        )
        yield element, padded[(..., *cut)]


def pad_widths(window: Window, rank: int) -> list[tuple[int, int]]:
    """The window's pads as numpy.pad takes them, for a tensor of `rank` axes."""
    begins, ends = _split(window.pads)
    return [(0, 0)] * (rank - len(begins)) + list(zip(begins, ends, strict=True))


def element_counts(window: Window, sizes: Sequence[int], counted_pads: Sequence[int]) -> Int64:
    """How many elements an average counts at each position, int64 (positions...): input and `counted_pads`."""
    begins, _ = _split(window.pads)
    counted_begins, counted_ends = _split(tuple(counted_pads))
    widths = pad_widths(window, len(sizes))
    inside = np.zeros([size + before + after for size, (before, after) in zip(sizes, widths, strict=True)], np.int64)
    region = tuple(
        slice(begin - counted_begin, begin + size + counted_end)
        for size, begin, counted_begin, counted_end in zip(sizes, begins, counted_begins, counted_ends, strict=True)
    )
    inside[region] = 1
    positions = [view for _, view in taps(inside, window)]
    return np.sum(positions, axis=0, dtype=np.int64)


def _split(pads: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    half = len(pads) // 2
    return pads[:half], pads[half:]


def _with_pads(window: Window, pads: tuple[int, ...]) -> Window:
    return Window(kernel=window.kernel, strides=window.strides, dilations=window.dilations, pads=pads)
