"""Learn one block: the rounding of its weights, their scales, its biases and the steps of its activations.

    loss = sum over outputs of <w_k, (y'_k - y_k)^2> / (the same for the integers at the start)  +  PULL R(V)

y are the outputs of the float network's block on the float prefix, y' those of the block with soft codes (`soft.py`) on
the quantized prefix (Li et al., "BRECQ", ICLR 2021); w is 1, or the Fisher information of y (`fisher.py`). Adam learns
everything together. Rows are the samples and, where images are few, flipped and shifted copies of them: the closed form
that made the integers at the start has seen every sample, but none of these copies.

Every WINDOW steps the codes are rounded and the block runs on samples held out from learning, with their copies; the
best state counts. It is kept if its loss is lower than before, on these and on all; else the block stays as it was.
Learning ends early

    when soft codes are no better than the integers were, on average over a window after the first: rounded ones would
    be worse still;
    in the second half, once PATIENCE windows have not lowered the least error learned so far by TOLERANCE. While codes
    are still being decided that error falls from window to window, from above that of the integers at the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ompq_deploy.quantize.reconstruct import ReconstructSettings
from ompq_deploy.quantize.reconstruct.block import BlockData, BlockNetwork
from ompq_deploy.quantize.reconstruct.soft import SoftBlock
from ompq_deploy.torch_graph.chunks import filled_up

PULL = 3e4
"""Weight of R against a reconstruction loss that begins at 1: a mean over weights is a small thing to each of them."""
BETAS = (0.9, 0.99)
NUMBERS = 2**18
"""Output elements per step, over the rows of a batch."""
BATCHES = (4, 64)
"""Fewest and most rows of a batch."""
WINDOW = 50
PATIENCE = 3
TOLERANCE = 2e-3
HELD_OUT = 5
"""One sample in so many is held out."""
SMALLEST = 1e-30


@dataclass(frozen=True, kw_only=True)
class Learned:
    """How it went: squared output error per row before and after with rounded codes, and the steps taken."""

    before: float
    after: float
    steps: int


def learn(block: BlockNetwork, data: BlockData, settings: ReconstructSettings, seed: int) -> Learned:
    """Improve the parameters of one block of `block.network` in place, or leave them as they were."""
    device = next(iter(data.targets.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    held = data.rows(held_out(len(data), data.samples))
    before, first = block.error(data), block.error(held)
    if not block.layers or before <= SMALLEST:
        return Learned(before=before, after=before, steps=0)
    original = copied(block.parameters())
    best, best_error, steps = original, first, 0
    soft = SoftBlock(block, settings)
    optimizer = torch.optim.Adam(soft.groups, betas=BETAS)
    batches = _Batches(data, block.network.origin.graph.batch, seed)
    stalled, window, lowest = 0, 0.0, math.inf
    for steps in range(1, settings.iterations + 1):
        optimizer.zero_grad(set_to_none=True)
        pieces = batches.draw()
        for rows in pieces:
            piece = data.rows(rows)
            outputs = soft.run(piece.exact, piece.inputs, generator)
            loss = piece.squared_error(outputs) / (before * sum(map(len, pieces)))
            loss.backward()
            window += float(loss.detach())
        (PULL * soft.indecision(steps / settings.iterations)).backward()
        optimizer.step()
        if steps % WINDOW and steps < settings.iterations:
            continue
        soft.commit()
        error = block.error(held)
        stalled = 0 if error < (1 - TOLERANCE) * lowest or 2 * steps < settings.iterations else stalled + 1
        lowest = min(lowest, error)
        if error < best_error:
            best, best_error = copied(block.parameters()), error
        hopeless = steps > WINDOW and window / WINDOW > 1 - TOLERANCE
        if stalled == PATIENCE or hopeless:
            break
        window = 0.0
    restore(block.parameters(), best)
    after = block.error(data) if best is not original else before
    if after >= before:
        restore(block.parameters(), original)
        after = before
    return Learned(before=before, after=after, steps=steps)


class _Batches:
    """Random rows that are not held out, as pieces that one forward pass takes."""

    def __init__(self, data: BlockData, fixed: int | None, seed: int) -> None:
        numbers = sum(value[0].numel() for value in data.targets.values())
        learned_from = torch.ones(len(data), dtype=torch.bool)
        learned_from[held_out(len(data), data.samples)] = False
        self._rows = torch.nonzero(learned_from if learned_from.any() else ~learned_from).flatten()
        self._size = min(max(NUMBERS // numbers, BATCHES[0]), BATCHES[1], len(self._rows))
        self._fixed = fixed
        self._generator = torch.Generator().manual_seed(seed)
        self._left = self._rows[:0]

    def draw(self) -> list[Tensor]:
        """The next batch; every row comes once before any comes again."""
        if len(self._left) < self._size:
            self._left = self._rows[torch.randperm(len(self._rows), generator=self._generator)]
        batch, self._left = self._left[: self._size], self._left[self._size :]
        if self._fixed is None:
            return [batch]
        return [filled_up(piece, self._fixed) for piece in batch.split(self._fixed)]


def held_out(rows: int, samples: int) -> Tensor:
    """The rows not learned from, of `samples` and copies of all: every copy of one sample in HELD_OUT."""
    return torch.nonzero(torch.arange(rows) % samples % HELD_OUT == 0).flatten()


def copied(values: Sequence[Tensor]) -> list[Tensor]:
    """The values, to be given to `restore`."""
    return [value.detach().clone() for value in values]


@torch.no_grad()
def restore(values: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    """Write what `copied` saved back into the values."""
    for value, old in zip(values, saved, strict=True):
        value.copy_(old)
