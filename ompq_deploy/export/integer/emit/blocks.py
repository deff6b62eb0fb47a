"""Requantize a large tensor block by block along its channels, so that its 64-bit numbers stay few and in the cache.

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
    sizes = block_sizes(shape)
    broadcast = len(shape) != bias.ndim + 1 or (rule.skip and writer.shapes.get(rule.skip) != shape)
    if len(sizes) < 2 or broadcast:
        requantize(writer, source, rule, output, bias)
        return
    names = [f"{output}_block{i}" for i in range(len(sizes))]
    sources = [f"{name}_source" for name in names]
    skips = [f"{name}_added" if rule.skip else "" for name in names]
    lengths = writer.constant(f"{output}_block_sizes", np.array(sizes, np.int64))
    writer.split(source, lengths, sources)
    writer.grids.update(dict.fromkeys(names, writer.grids[output]))
    if rule.skip:
        writer.split(stored(rule.skip), lengths, [stored(name) for name in skips])
        writer.grids.update(dict.fromkeys(skips, writer.grids[rule.skip]))
    ends = np.cumsum(sizes)
    for name, part, skip, start, end in zip(names, sources, skips, ends - sizes, ends, strict=True):
        channels = slice(int(start), int(end))
        requantize(writer, part, _of_channels(rule, channels, skip), name, bias[channels])
    writer.node("Concat", [stored(name) for name in names], stored(output), axis=1)


def block_sizes(shape: Sequence[int | None]) -> list[int]:
    """The channels of each block of a tensor (N, C, ...); none where C or a later size is not known."""
    batch, *sizes = shape or (None,)
    known = [size for size in sizes if size is not None]
    if not known or len(known) < len(sizes):
        return []
    blocks = min(known[0], math.ceil((batch or 1) * math.prod(known) / BLOCK_ELEMENTS))
    return [len(channels) for channels in np.array_split(np.arange(known[0]), blocks)]


def _of_channels(rule: Requantize, channels: slice, skip: str) -> Requantize:
    """The rule of some channels, which add the tensor `skip`."""
    clamp = replace(rule.clamp, shift=rule.clamp.shift[channels], reach=rule.clamp.reach[channels])
    added = None if rule.skip_multiplier is None else rule.skip_multiplier[channels]
    return replace(rule, multiplier=rule.multiplier[channels], clamp=clamp, skip=skip, skip_multiplier=added)
