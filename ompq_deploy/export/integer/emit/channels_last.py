"""Requantize a tensor with its channels last, as a convolution that is a matrix product leaves it.

Blocks of a large tensor are cut from its first spatial axis. Constants of few channels are repeated along the last one:
onnxruntime broadcasts rows of a few hundred numbers in as little as half the time that rows of 16 take.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ompq_deploy.export.integer.emit.blocks import block_lengths, requantize_along
from ompq_deploy.export.integer.emit.writer import Writer, accumulator, stored
from ompq_deploy.export.integer.geometry import output_sizes
from ompq_deploy.export.integer.program import IntegerConv
from ompq_deploy.export.integer.rules import Int64, Requantize

FIRST_SPATIAL = 2
MOST_REPEATED = 1 << 10
"""Numbers in a constant that is repeated: more would be a large part of a small network's file."""


def repeated(values: Int64, width: int) -> Int64:
    """One value per channel as a constant of a tensor (..., width, C): (width, C) where that is small, else (C,); of no
    axes where all are equal. `width` is 1 where it is not known."""
    flat = values.reshape(-1)
    if np.all(flat == flat[0]):
        return flat[0].reshape(())
    return np.tile(flat, (width, 1)) if 1 < width <= MOST_REPEATED // flat.size else flat


def suits_last(writer: Writer, conv: IntegerConv, rule: Requantize) -> bool:
    """Whether accumulator, output and the tensor added are known to be of one shape, so that all can be cut alike."""
    shape = writer.shapes.get(conv.output, ())
    made = [len(conv.weights), *output_sizes(conv.window, writer.sizes(conv.input))]
    return list(shape[1:]) == made and (not rule.skip or writer.shapes.get(rule.skip) == shape)


def requantize_last(writer: Writer, rule: Requantize, output: str, bias: Int64) -> None:
    """As `requantize`, from the accumulator of `output`, (N, C, sizes...). The arrays of `rule` and `bias` are
    (C, 1...), and a tensor that is added has the output's shape."""
    sizes, last, skip = writer.sizes(output), f"{output}_last", f"{output}_skip_last"
    if rule.skip:
        writer.channels_to_back(stored(rule.skip), stored(skip), len(sizes))
        writer.grids[skip] = writer.grids[rule.skip]
        rule = replace(rule, skip=skip)
    total = writer.channels_to_back(accumulator(output), f"{output}_accumulator_last", len(sizes))
    writer.grids[last] = writer.grids[output]
    lengths = block_lengths(writer.shapes[output], FIRST_SPATIAL)
    widths = lengths if len(sizes) == 1 else [sizes[-1]] * len(lengths)
    rules = [_repeated_rule(rule, width) for width in widths]
    requantize_along(writer, total, lengths, rules, last, [repeated(bias, width) for width in widths])
    writer.channels_to_front(stored(last), stored(output), len(sizes))


def _repeated_rule(rule: Requantize, width: int) -> Requantize:
    clamp = replace(rule.clamp, shift=repeated(rule.clamp.shift, width), reach=repeated(rule.clamp.reach, width))
    added = None if rule.skip_multiplier is None else repeated(rule.skip_multiplier, width)
    return replace(rule, multiplier=repeated(rule.multiplier, width), clamp=clamp, skip_multiplier=added)
