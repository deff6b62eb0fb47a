"""A convolution as a matrix product with channels last, faster in onnxruntime than ConvInteger unless channels are few.

    columns[n, o, t C + c] = x[n, o stride + t dilation - pad, c]       o: places of the output, t: of the kernel
    acc[n, o]              = columns[n, o] @ weights                    weights (T C, C_out)

(im2col; Chellapilla, Puri and Simard 2006.) Where one such convolution follows another, onnxruntime lets the
transpositions between them cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod

import numpy as np

from ompq_deploy.export.integer.emit.products import Codes, multiply
from ompq_deploy.export.integer.emit.writer import Writer
from ompq_deploy.export.integer.geometry import output_sizes, pad_widths
from ompq_deploy.export.integer.program import IntegerConv
from ompq_deploy.export.integer.rules import Int8, Window

FEWEST_CHANNELS = 16
"""Of input and output. A Gather takes its time per place; with fewer channels that is more than the product saves."""
MOST_BYTES = 8
"""What the columns, and the positions they are gathered from, may take for each number that the convolution reads or
makes: twice what the float model takes for these."""
POSITION_BYTES = 4


def unfolds(writer: Writer, conv: IntegerConv) -> bool:
    """Whether a convolution is to be a matrix product: one group, sizes known, enough channels, not too much memory.

    Few channels are enough where the next convolution wants the result channels last. Between tensors that lie channels
    first in any case, a kernel of one place gains less than transposing costs.
    """
    sizes, window = writer.sizes(conv.input), conv.window
    outputs, channels = conv.weights.shape[:2]
    if conv.groups > 1 or not sizes:
        return False
    if min(outputs, channels) < FEWEST_CHANNELS and conv.output not in writer.channels_last:
        return False
    taps, places = prod(window.kernel), prod(output_sizes(window, sizes))
    if taps == 1:
        return conv.input not in writer.channels_first and conv.output not in writer.channels_first
    numbers = channels * prod(sizes) + outputs * places
    return taps * places * (channels + POSITION_BYTES) <= MOST_BYTES * numbers


def matrix(weights: Int8) -> Int8:
    """(C_out, C, kernel...) as (T C, C_out)."""
    return np.ascontiguousarray(np.moveaxis(weights, (0, 1), (-1, -2)).reshape(-1, len(weights)))


def unfolded(writer: Writer, source: Codes, weights: Sequence[str], conv: IntegerConv, output: str) -> str:
    """The convolution of `source` (N, C, sizes...), codes of the input or one byte of them, with the `summands` of its
    `matrix`: int32 (N, C_out, places...)."""
    window, rank = conv.window, len(conv.window.kernel)
    x = writer.channels_to_back(source.tensor, f"{output}_channels_last", rank)
    if prod(window.kernel) > 1 or prod(window.strides) > 1 or any(window.pads):
        x = _columns(writer, Codes(tensor=x, zero=source.zero), conv, output)
    total = multiply(writer, Codes(tensor=x, zero=source.zero), weights, f"{output}_product")
    return writer.channels_to_front(total, output, rank)


def _columns(writer: Writer, source: Codes, conv: IntegerConv, output: str) -> str:
    """What each place of the output is made from, (N, places..., T C): gathered from (N, sizes..., C)."""
    x, window, channels = source.tensor, conv.window, conv.weights.shape[1]
    sizes = writer.sizes(conv.input)
    widths = pad_widths(window, len(sizes))
    if any(window.pads):
        begins, ends = zip((0, 0), *widths, (0, 0), strict=True)
        pads = writer.constant(f"{output}_pads", np.array([*begins, *ends], np.int64))
        x = writer.node("Pad", [x, pads, writer.uint8(source.zero)], f"{output}_padded")
    padded = [size + before + after for size, (before, after) in zip(sizes, widths, strict=True)]
    x = writer.reshape(x, [0, prod(padded), channels], f"{output}_flat")
    places = output_sizes(window, sizes)
    x = writer.node("Gather", [x, _positions(writer, window, padded, places, output)], f"{output}_gathered", axis=1)
    return writer.reshape(x, [0, *places, prod(window.kernel) * channels], f"{output}_columns")


def _positions(writer: Writer, window: Window, padded: Sequence[int], places: Sequence[int], output: str) -> str:
    """Where each element of the columns lies in the flat tensor, int32 (places..., kernel...): a sum over the axes,
    which onnxruntime evaluates when it starts, and which takes little room in the file."""
    rank, terms = len(padded), []
    for axis, (count, kernel) in enumerate(zip(places, window.kernel, strict=True)):
        steps = np.add.outer(np.arange(count) * window.strides[axis], np.arange(kernel) * window.dilations[axis])
        shape = np.ones(2 * rank, int)
        shape[[axis, rank + axis]] = steps.shape
        positions = (steps * prod(padded[axis + 1 :])).reshape(shape).astype(np.int32)
        terms.append(writer.constant(f"{output}_positions{axis}", positions))
    return reduce(lambda a, b: writer.node("Add", [a, b], f"{b}_sum"), terms)
