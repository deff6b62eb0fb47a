"""Samples as feeds of a model, and what came of them by sample again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Samples
from ompq_deploy.errors import BadInput


def feeds(samples: Samples, fixed: int | None, batch: int) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
    """Consecutive feeds and how many samples of each are new: a fixed batch is filled up with the last sample."""
    for feed in samples.batches(fixed or batch):
        yield (filled_up(feed, fixed) if fixed else feed), size_of(feed)


def filled_up(feed: Mapping[str, NDArray[Any]], size: int) -> dict[str, NDArray[Any]]:
    """A feed with its last sample repeated until there are `size`."""
    rows = np.minimum(np.arange(size), size_of(feed) - 1)
    return {name: array[rows] if len(array) < size else array for name, array in feed.items()}


def select(samples: Samples, rows: NDArray[np.int64]) -> Samples:
    """Some of the samples, by their places."""
    labels = None if samples.labels is None else samples.labels[rows]
    return replace(samples, inputs={name: array[rows] for name, array in samples.inputs.items()}, labels=labels)


def evenly(samples: Samples, count: int) -> Samples:
    """`count` of the samples, evenly spread; all of them where there are no more."""
    return select(samples, spread(count, len(samples)))


def spread(count: int, total: int) -> NDArray[np.int64]:
    """Up to `count` of `total` places, evenly spread."""
    count = min(count, total)
    return np.arange(count) * total // count


def joined(first: Samples, second: Samples | None) -> Samples:
    """The samples of both, which have the same inputs."""
    if second is None:
        return first
    known = first.labels is not None and second.labels is not None
    return replace(
        first,
        inputs={name: np.concatenate([array, second.inputs[name]]) for name, array in first.inputs.items()},
        labels=np.concatenate([first.labels, second.labels]) if known else None,
        source=f"{first.source} and {second.source}",
        sha256=hashlib.sha256(f"{first.sha256}{second.sha256}".encode()).hexdigest(),
    )


def size_of(feed: Mapping[str, Sized]) -> int:
    """The number of samples in a feed."""
    return len(next(iter(feed.values())))


def by_sample(value: NDArray[Any], size: int, name: str) -> NDArray[Any]:
    """`value` of a run of `size` samples with the samples on axis 0: that axis is split off where it holds more."""
    if value.ndim and len(value) == size:
        return value
    if value.ndim and len(value) % size == 0:
        return value.reshape(size, len(value) // size, *value.shape[1:])
    raise not_by_sample(name, f"is {value.shape} for {size} samples")


def not_by_sample(name: str, how: str) -> BadInput:
    return BadInput(
        f"the output {name!r} {how}, so that two versions of the model cannot be compared sample by sample",
        where="the model's outputs",
        fix="cut off the post-processing that selects, such as NonMaxSuppression, and plan with --metric orm till then",
    )
