"""Batches on their way into training: this process's rows, augmented, made ahead of time in a thread of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ompq_deploy.augment import Draws, augmented_feeds, draw
from ompq_deploy.finetune.data import Int64, TrainingData, batch_places
from ompq_deploy.finetune.distributed import World
from ompq_deploy.torch_graph.graph import on_device

T = TypeVar("T")
S = TypeVar("S")

AHEAD = 3
"""Batches made before they are asked for."""
DRAWS = 1
"""Keeps the random numbers of the augmentation apart from those of the order."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Feeds by input name and labels int64 (N,), or None, on the device; `whole` samples lie in the batches of all
    processes together."""

    feeds: dict[str, Tensor]
    labels: Tensor | None
    whole: int

    def pieces(self, size: int | None) -> Iterator[Batch]:
        """The batch cut into pieces of `size` samples; in one piece where that is None, in none where it is empty."""
        count = max((len(x) for x in self.feeds.values()), default=0)
        for start in range(0, count, size or max(count, 1)):
            rows = slice(start, start + (size or count))
            labels = None if self.labels is None else self.labels[rows]
            yield Batch(feeds={name: x[rows] for name, x in self.feeds.items()}, labels=labels, whole=self.whole)


@dataclass(frozen=True, kw_only=True)
class Batches:
    """Makes batches of `size` samples, over all processes; `augment` as in `augment.augmented`."""

    data: TrainingData
    world: World
    size: int
    augment: str
    seed: int

    def epoch(self, number: int, done: int) -> Iterator[Batch]:
        """The batches of epoch `number` from the one at `done` on."""
        places = list(batch_places(self.data.training, self.size, self.seed, number))

        def make(step: int) -> Batch:
            random = np.random.default_rng((self.seed, DRAWS, number, step))
            return self._batch(places[step], draw(len(places[step]), random))

        return ahead(make, range(done, len(places)))

    def held_out(self) -> Iterator[Batch]:
        """All held-out samples as they are."""
        places = self.data.held_out
        starts = range(0, len(places), self.size)
        return ahead(lambda start: self._batch(places[start : start + self.size], None), starts)

    def _batch(self, places: Int64, draws: Draws | None) -> Batch:
        rows = self.world.rows(len(places))
        feeds, labels = self.data.take(places[rows])
        if draws is not None and self.data.layout is not None and self.augment != "none":
            feeds = augmented_feeds(feeds, self.data.layout, draws.rows(rows), self.augment)
        return Batch(
            feeds={name: on_device(array, self.world.device) for name, array in feeds.items()},
            labels=None if labels is None else torch.from_numpy(labels).to(self.world.device),
            whole=len(places),
        )


def ahead(make: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """make(item) for every item, in order, a few computed in advance by a thread."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
