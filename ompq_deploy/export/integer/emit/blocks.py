"""Requantize a large tensor block by block along its second axis, so that its 64-bit numbers stay few and in the cache.

The accumulator, and the tensor added to it, are split; every part is rescaled with its channels' multipliers; the
results are concatenated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ompq_deploy.export.integer.emit.rescale import requantize
from ompq_deploy.export.integer.emit.writer import Writer, stored
from ompq_deploy.export.integer.rules import Int64, Requantize

BLOCK_ELEMENTS = 1 << 17
"""Of one sample in one block: a megabyte of int64."""


def requantize_blocks(writer: Writer, source: str, rule: Requantize, output: str, bias: Int64) -> None:
    """As `requantize`. Channels are on axis 1 of `source`, and on axis 0 of `bias` and of all arrays in `rule`.

    A tensor whose sizes are not known, or that is made by broadcasting, stays in one piece.
    """
    shape = writer.shapes.get(output, ())
    lengths = block_lengths(shape, 1)
    broadcast = shape[1:2] != (len(bias),) or len(shape) != bias.ndim + 1
    if not lengths or broadcast or (rule.skip and writer.shapes.get(rule.skip) != shape):
        requantize(writer, source, rule, output, bias)
        return
    ends = np.cumsum(lengths)
    parts = [slice(int(end) - length, int(end)) for length, end in zip(lengths, ends, strict=True)]
    rules = [_of_channels(rule, channels) for channels in parts]
    requantize_along(writer, source, lengths, rules, output, [bias[channels] for channels in parts])


def requantize_along(
    writer: Writer,
    source: str,
    lengths: Sequence[int],
    rules: Sequence[Requantize],
    output: str,
    biases: Sequence[Int64],
) -> None:
    """As `requantize`, of blocks of these lengths along axis 1, each with a rule and a bias of its own. All rules name
    the same tensor that is added, of the shape of `source`."""
    if len(lengths) == 1:
        requantize(writer, source, rules[0], output, biases[0])
        return
    skip = rules[0].skip
    names = [f"{output}_block{i}" for i in range(len(lengths))]
    sources = [f"{name}_source" for name in names]
    skips = [f"{name}_added" if skip else "" for name in names]
    sizes = writer.constant(f"{output}_block_sizes", np.array(lengths, np.int64))
    writer.split(source, sizes, sources)
    writer.grids.update(dict.fromkeys(names, writer.grids[output]))
    if skip:
        writer.split(stored(skip), sizes, [stored(name) for name in skips])
        writer.grids.update(dict.fromkeys(skips, writer.grids[skip]))
    for name, part, added, rule, bias in zip(names, sources, skips, rules, biases, strict=True):
        requantize(writer, part, replace(rule, skip=added), name, bias)
    writer.node("Concat", [stored(name) for name in names], stored(output), axis=1)


def block_lengths(shape: Sequence[int | None], axis: int) -> list[int]:
    """The lengths along `axis` of each block of a tensor (N, C, ...); none where a size but N is not known."""
    batch, *sizes = shape or (None,)
    known = [size for size in sizes if size is not None]
    if not known or len(known) < len(sizes):
        return []
    length = known[axis - 1]
    blocks = min(length, math.ceil((batch or 1) * math.prod(known) / BLOCK_ELEMENTS))
    return [len(part) for part in np.array_split(np.arange(length), blocks)]


def _of_channels(rule: Requantize, channels: slice) -> Requantize:
    """The rule of some channels."""
    clamp = replace(rule.clamp, shift=rule.clamp.shift[channels], reach=rule.clamp.reach[channels])
    added = None if rule.skip_multiplier is None else rule.skip_multiplier[channels]
    return replace(rule, multiplier=rule.multiplier[channels], clamp=clamp, skip_multiplier=added)
