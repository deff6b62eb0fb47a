"""Requantize a tensor with its channels last, as a convolution that is a matrix product leaves it.

Blocks of a large tensor are cut from its first spatial axis. Constants of few channels are repeated along the last one:
onnxruntime broadcasts rows of a few hundred numbers in as little as half the time that rows of 16 take.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.export.integer.emit.blocks import block_lengths, may_broadcast, requantize_along
from ompq_deploy.export.integer.emit.writer import Writer, accumulator, stored
from ompq_deploy.export.integer.rules import Int64, Requantize

FIRST_SPATIAL = 2
FEW_CHANNELS = 64


def row(values: Int64, width: int) -> NDArray[np.int64]:
    """One value per channel as a constant of a tensor (..., width, C): (width, C) where C is small, else (C,); a scalar
    where all are equal. `width` is 1 where it is not known."""
    flat = values.reshape(-1)
    if np.all(flat == flat[0]):
        return flat[0]
    return np.tile(flat, (width, 1)) if width > 1 and flat.size <= FEW_CHANNELS else flat


def suits_last(writer: Writer, rule: Requantize, output: str, rank: int) -> bool:
    """Whether the sizes of `output`, of `rank` axes, are known, and nothing is broadcast."""
    return bool(block_lengths(writer.shapes.get(output, ()), 1)) and not may_broadcast(writer, rule, output, rank)


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
    rules = [_with_rows(rule, width) for width in widths]
    requantize_along(writer, total, lengths, rules, last, [row(bias, width) for width in widths])
    writer.channels_to_front(stored(last), stored(output), len(sizes))


def _with_rows(rule: Requantize, width: int) -> Requantize:
    clamp = replace(rule.clamp, shift=row(rule.clamp.shift, width), reach=row(rule.clamp.reach, width))
    added = None if rule.skip_multiplier is None else row(rule.skip_multiplier, width)
    return replace(rule, multiplier=row(rule.multiplier, width), clamp=clamp, skip_multiplier=added)
