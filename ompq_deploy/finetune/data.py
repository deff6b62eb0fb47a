"""Training samples: read once, held-out share split off, and served batch by batch.

Which samples make a batch, and how each is augmented, follows from (seed, epoch, step) alone. So a resumed run meets
the same batches, and several processes can each take their rows of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.calib import InputSpec, Preprocess, load_labelled
from ompq_deploy.calib.load import open_source
from ompq_deploy.calib.preprocess import fit_image
from ompq_deploy.calib.read import list_images, open_image
from ompq_deploy.calib.sources import ImageArray, ImageFiles, Source
from ompq_deploy.errors import BadInput

Int64 = NDArray[np.int64]

MOST_PIXELS = 2**31
"""Decoded images are kept in memory up to this many bytes."""
ORDER = 2
"""Keeps the random numbers of the order apart from others of the same seed."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The samples of one path. `labels` is int64 (N,), or None where they are not read."""

    source: Source
    labels: Int64 | None

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The samples of all paths in a row, `training` and `held_out` being their places. `layout` is that of the images,
    or None where the samples are no images."""

    parts: tuple[Part, ...]
    training: Int64
    held_out: Int64
    sha256: str

    @property
    def layout(self) -> str | None:
        """NCHW or NHWC, or None where some samples are no images."""
        targets = [p.source.target for p in self.parts if isinstance(p.source, ImageFiles | ImageArray)]
        return targets[0].layout if len(targets) == len(self.parts) else None

    def take(self, places: Int64) -> tuple[dict[str, NDArray[Any]], Int64 | None]:
        """The feeds and the labels of some samples, in the order of `places`."""
        edges = np.cumsum([len(part) for part in self.parts])
        of_part = np.searchsorted(edges, places, side="right")
        feeds: dict[str, NDArray[Any]] = {}
        labels = np.zeros(len(places), np.int64)
        for number in np.unique(of_part):
            part, rows = self.parts[number], np.flatnonzero(of_part == number)
            inside = places[rows] - (edges[number] - len(part))
            for name, values in part.source.take(inside.tolist()).items():
                feeds.setdefault(name, np.empty((len(places), *values.shape[1:]), values.dtype))[rows] = values
            if part.labels is not None:
                labels[rows] = part.labels[inside]
        return feeds, None if self.parts[0].labels is None else labels


def load_training(
    paths: Sequence[Path],
    inputs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | None,
    labelled: bool,
    classes: int | None,
    hold_out: float,
    seed: int,
    unit: int = 1,
) -> TrainingData:
    """The samples of `paths`, a random share of them, some multiple of `unit`, held out.

    Labels have to be below `classes`.
    """
    parts = tuple(
        _labelled(path, inputs, preprocess, classes) if labelled else _unlabelled(path, inputs, preprocess)
        for path in paths
    )
    total = sum(map(len, parts))
    mixed = np.random.default_rng(seed).permutation(total)
    kept_back = round(hold_out * total / unit) * unit
    if kept_back == total or (hold_out and not kept_back):
        raise BadInput(
            f"holding out {hold_out:g} of {total} samples leaves none to "
            + ("train on" if kept_back else "choose the epoch by"),
            where="--hold-out",
            fix="give more data, another share, or --hold-out 0",
        )
    return TrainingData(
        parts=parts,
        training=np.sort(mixed[kept_back:]),
        held_out=np.sort(mixed[:kept_back]),
        sha256=_digest(paths),
    )


def batch_places(training: Int64, batch: int, seed: int, epoch: int) -> Iterator[Int64]:
    """The places of one epoch's samples, one whole batch after the other, in an order of its own."""
    order = np.random.default_rng((seed, ORDER, epoch)).permutation(training)
    for step in range(len(training) // batch):
        yield order[step * batch : (step + 1) * batch]


def _labelled(path: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None, classes: int | None) -> Part:
    found = load_labelled(path, inputs, preprocess=preprocess)
    low, high = int(found.labels.min()), int(found.labels.max())
    if classes is not None and (low < 0 or high >= classes or found.classes not in (None, classes)):
        raise BadInput(
            f"labels run from {low} to {high}, but the model has {classes} classes",
            where=str(path),
            fix=f"number the labels from 0 to {classes - 1}, and give class folders a classes.txt",
        )
    return Part(source=_decoded(found.data), labels=found.labels)


def _unlabelled(path: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> Part:
    return Part(source=_decoded(open_source(path, inputs, preprocess)[0]), labels=None)


def _decoded(source: Source) -> Source:
    """Image files as an array of pixels, where that is small enough."""
    if not isinstance(source, ImageFiles):
        return source
    target, (height, width) = source.target, source.target.extent()
    if len(source) * height * width * target.channels > MOST_PIXELS:
        return source
    images = np.empty((len(source), height, width, target.channels), np.uint8)
    for i, file in enumerate(source.files):
        images[i] = fit_image(open_image(file, target.channels), height, width)
    return ImageArray(images=images, target=target, preprocess=source.preprocess, how=source.how)


def _digest(paths: Sequence[Path]) -> str:
    """Hex sha256 over the names and the bytes of all files."""
    digest = hashlib.sha256()
    for path in paths:
        for file in list_images(path) if path.is_dir() else [path]:
            name = file.relative_to(path).as_posix() if path.is_dir() else ""
            digest.update(f"{name}\n{file.stat().st_size}\n".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
