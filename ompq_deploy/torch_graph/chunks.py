"""Run all samples in torch, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

CHUNK = 16
"""Samples run at a time without gradients, where the batch axis is free."""

Tensors = dict[str, Tensor]
Run = Callable[[Mapping[str, Tensor]], Tensors]


@torch.no_grad()
def in_chunks(run: Run, feeds: Mapping[str, Tensor], fixed: int | None, most: int = CHUNK) -> Tensors:
    """`run` for all samples, some at a time: `fixed`, the last chunk filled up with its last sample, or `most`."""
    size = fixed or most
    count = len(next(iter(feeds.values())))
    parts = []
    for rows in torch.arange(count).split(size):
        filled = filled_up(rows, size) if fixed else rows
        parts.append({name: value[: len(rows)] for name, value in run(take(feeds, filled)).items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def filled_up(rows: Tensor, size: int) -> Tensor:
    """`rows` with the last one repeated until they are `size`."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows))])


def take(tensors: Mapping[str, Tensor], rows: Tensor) -> Tensors:
    """Some samples of every tensor."""
    return {name: value[rows.to(value.device)] for name, value in tensors.items()}
