"""Several processes that train as one, started by torchrun: each takes its rows of every batch, gradients are summed.

The loss of a process is divided by the size of the whole batch, so the sum over processes is the gradient that one
process would compute.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before a group begins: the defaults of its functions would keep that group alive
from torch import Tensor

from ompq_deploy.errors import BackendMissing

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among `size` ones, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's share of `count` rows."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one exchange."""
        if self.size == 1:
            return
        parts = list(tensors)
        flat = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(flat)
        for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.reshape(part.shape))

    def share(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, given to all."""
        if self.size == 1:
            return make()
        box = [make() if self.first else None]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]  # type: ignore[return-value]


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world torchrun has started, or this process alone. Raises BackendMissing where a GPU is asked for in vain."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendMissing("torch finds no GPU", where="--device cuda", fix="choose cpu, or install torch for CUDA")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    if size > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=size)
    try:
        yield World(rank=rank, size=size, device=place)
    finally:
        if size > 1:
            dist.destroy_process_group()
