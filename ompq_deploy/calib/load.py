"""Calibration samples and labelled evaluation data, from a directory of images, an .npy or an .npz."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Samples
from ompq_deploy.calib.bundled import bundled_images
from ompq_deploy.calib.input_spec import InputSpec
from ompq_deploy.calib.labels import folder_labels
from ompq_deploy.calib.preprocess import Preprocess
from ompq_deploy.calib.read import list_images, read_arrays
from ompq_deploy.calib.sources import ImageArray, ImageFiles, Source, from_arrays, from_files
from ompq_deploy.errors import BadInput

DEFAULT_SAMPLES = 64
ARRAY_SUFFIXES = (".npy", ".npz")


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Labelled samples, read and preprocessed batch by batch: large sets never lie in memory as floats.

    `labels` is int64 (N,). Sample i is `data.take([indices[i]])`. `source` is what a person would call it.
    `classes` is set where the labels rest on the sorted order of that many folders, which only makes sense
    for a model with exactly as many classes.
    """

    data: Source
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    source: str
    classes: int | None

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Consecutive feeds of at most `size` samples, in the order of `labels`."""
        for start in range(0, len(self), size):
            yield self.data.take(self.indices[start : start + size].tolist())


def load_samples(
    path: Path | None,
    inputs: Sequence[InputSpec],
    *,
    count: int | None = None,
    preprocess: Preprocess | None = None,
    seed: int = 0,
) -> Samples:
    """Calibration samples: at most `count` (default 64), one drawn from each of `count` equal stretches of the data.

    `path` None means the bundled photographs. Labels are kept where an .npz has them. Images are preprocessed as
    torchvision does unless `preprocess` says otherwise; `source` tells. Arrays that are not uint8 are fed as they are.
    """
    data, labels, place = open_source(path, inputs, preprocess)
    chosen = _choose(len(data), DEFAULT_SAMPLES if count is None else count, seed, place)
    return _take(data, labels, chosen, place)


def load_unused(
    path: Path | None,
    inputs: Sequence[InputSpec],
    *,
    count: int,
    used: Sequence[int],
    keep: int = 0,
    preprocess: Preprocess | None = None,
    seed: int = 0,
) -> Samples | None:
    """At most `count` samples of those that are left, but for `keep`, where `load_samples` drew used[0] and this
    function the next numbers in turn; None where that is none."""
    data, labels, place = open_source(path, inputs, preprocess)
    left = np.arange(len(data))
    for number in used:
        if number and left.size:
            left = np.setdiff1d(left, left[_choose(len(left), number, seed, place)])
    count = min(count, len(left) - keep)
    if count < 1:
        return None
    return _take(data, labels, left[_choose(len(left), count, seed, place)], f"unused {place}")


def load_labelled(
    path: Path,
    inputs: Sequence[InputSpec],
    *,
    preprocess: Preprocess | None = None,
    count: int | None = None,
    seed: int = 0,
) -> LabelledSet:
    """Evaluation data: all of them, or `count` drawn as `load_samples` does. Labels are required."""
    classes: int | None = None
    labels: NDArray[np.int64] | None
    data: Source
    if path.is_dir():
        files = list_images(path)
        data = from_files(files, inputs, preprocess)
        labels, classes = folder_labels(path, files)
    else:
        data, labels = _array_source(path, inputs, preprocess)
    if labels is None:
        raise BadInput(
            "the data have no labels",
            where=str(path),
            fix="give an .npz with images and labels, or a directory of class folders",
        )
    place = f"labelled samples of {path}"
    chosen = _choose(len(data), len(data) if count is None else count, seed, place)
    return LabelledSet(
        data=data,
        indices=chosen,
        labels=labels[chosen],
        source=f"{len(chosen)} {place}, {data.how}",
        classes=classes,
    )


def open_source(
    path: Path | None, inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> tuple[Source, NDArray[np.int64] | None, str]:
    """All samples, their labels where they have any, and what a person would call them."""
    if path is None:
        return _bundled(inputs, preprocess), None, "bundled photographs"
    if path.is_dir():
        return from_files(list_images(path), inputs, preprocess), None, f"images of {path}"
    data, labels = _array_source(path, inputs, preprocess)
    return data, labels, f"samples of {path}"


def _take(data: Source, labels: NDArray[np.int64] | None, chosen: NDArray[np.int64], place: str) -> Samples:
    feeds = data.take(chosen.tolist())
    return Samples(
        inputs=feeds,
        labels=None if labels is None else labels[chosen],
        source=f"{len(chosen)} {place}, {data.how}",
        sha256=_digest(feeds),
        layout=data.target.layout if isinstance(data, ImageFiles | ImageArray) else None,
    )


def _bundled(inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> Source:
    try:
        source = from_files(bundled_images(), inputs, preprocess)
    except BadInput as e:
        raise BadInput(
            f"the bundled photographs do not fit this model: {e.what}",
            where=e.where,
            fix=f"pass data with --calib; {e.fix}",
        ) from e
    if source.target.channels != 3:
        raise BadInput(
            "the bundled photographs have 3 colours, the model's input has 1",
            where=f"input {source.target.name!r}",
            fix="pass your own images with --calib",
        )
    return source


def _array_source(
    path: Path, inputs: Sequence[InputSpec], preprocess: Preprocess | None
) -> tuple[Source, NDArray[np.int64] | None]:
    if not path.exists():
        raise BadInput("no such file or directory", where=str(path), fix="check the path of the data")
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        raise BadInput(
            "the data are neither a directory nor an .npy or .npz file",
            where=str(path),
            fix="put images in a directory and give that",
        )
    arrays, labels = read_arrays(path, inputs)
    return from_arrays(arrays, inputs, preprocess, str(path)), labels


def _choose(total: int, count: int, seed: int, place: str) -> NDArray[np.int64]:
    """Sorted indices: all of them, or one drawn from each of `count` equal stretches of range(total)."""
    if total == 0:
        raise BadInput("there are no samples", where=place, fix="give data with at least one sample")
    if count < 1:
        raise BadInput(f"{count} samples asked for", where="--samples", fix="ask for at least 1")
    count = min(count, total)
    edges = np.arange(count + 1) * total // count
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


def _digest(feeds: Mapping[str, NDArray[Any]]) -> str:
    """Hex sha256 over name, dtype, shape and bytes of every input, in name order."""
    digest = hashlib.sha256()
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        digest.update(f"{name}\n{array.dtype.str}\n{array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
