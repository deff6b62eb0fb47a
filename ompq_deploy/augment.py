"""Flips and shifted crops of images, each sample by its own draw.

A crop pads every side by an eighth of the image, reflected, and cuts the image's size out at a random place: 4 pixels
for 32 x 32, as is usual for CIFAR-10 (He et al., CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Samples
from ompq_deploy.errors import BadInput

AUGMENTATIONS = ("auto", "none", "flip", "crop", "flip+crop")
MARGIN = 8
"""An image's side is padded by its length divided by this."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """One row per sample: bool (N,) `flip`, and float64 (N, 2) `shift` in [0, 1), where the crop lies."""

    flip: NDArray[np.bool_]
    shift: NDArray[np.float64]

    def rows(self, chosen: slice) -> Draws:
        """The draws of some of the samples."""
        return Draws(flip=self.flip[chosen], shift=self.shift[chosen])


def draw(count: int, random: np.random.Generator) -> Draws:
    """Draws for `count` samples."""
    return Draws(flip=random.random(count) < 0.5, shift=random.random((count, 2)))


def chosen_augmentation(asked: str, layout: str | None) -> str:
    """What `auto` means for samples of a layout, None for arrays. Raises BadInput where arrays are to be augmented."""
    if asked == "auto":
        return "none" if layout is None else "flip+crop"
    if asked != "none" and layout is None:
        raise BadInput(
            "only images can be flipped or cropped, these data are arrays fed as they are",
            where="--augment",
            fix="leave it out, or give uint8 images",
        )
    return asked


def augmented_feeds(feeds: Mapping[str, NDArray[Any]], layout: str, draws: Draws, how: str) -> dict[str, NDArray[Any]]:
    """Feeds of one image input, NCHW or NHWC, after what `how` names."""
    to_nchw, back = ((0, 3, 1, 2), (0, 2, 3, 1)) if layout == "NHWC" else ((0, 1, 2, 3),) * 2
    ((name, images),) = feeds.items()
    return {name: augmented(images.transpose(to_nchw), draws, how).transpose(back)}


def rows_for(numbers: int, rows: int, most: int) -> int:
    """How many samples and copies to have: up to `rows` and up to `most` numbers, `numbers` per row; at least one."""
    return max(min(rows, most // numbers), 1)


def copies_for(count: int, numbers: int, rows: int, most: int) -> int:
    """How often to take `count` samples, to have as many rows as `rows_for` says."""
    return max(rows_for(numbers, rows, most) // count, 1)


def with_copies(samples: Samples, count: int, seed: int | tuple[int, ...], how: str = "flip+crop") -> Samples:
    """The samples, then `count` - 1 times all of them again, augmented anew each time; `how` as in `augmented`.

    Sample i is row i of every copy. Samples that are no images, or not to be augmented, are left as they are. `sha256`
    stays that of the originals.
    """
    if samples.layout is None or how == "none" or count == 1:
        return samples
    random = np.random.default_rng(seed)
    drawn = [draw(len(samples), random) for _ in range(count - 1)]
    parts = [samples.inputs, *(augmented_feeds(samples.inputs, samples.layout, d, how) for d in drawn)]
    return replace(
        samples,
        inputs={name: np.concatenate([part[name] for part in parts]) for name in samples.inputs},
        labels=None if samples.labels is None else np.tile(samples.labels, count),
    )


def augmented(images: Float32, draws: Draws, how: str) -> Float32:
    """Images (N, C, H, W) after what `how` names: "none", "flip", "crop" or "flip+crop"."""
    if how == "none":
        return images
    count, _, height, width = images.shape
    rows, columns = np.tile(np.arange(height), (count, 1)), np.tile(np.arange(width), (count, 1))
    if "flip" in how:
        columns = np.where(draws.flip[:, None], columns[:, ::-1], columns)
    if "crop" in how:
        down, right = height // MARGIN, width // MARGIN
        images = np.pad(images, ((0, 0), (0, 0), (down, down), (right, right)), mode="reflect")
        offsets = (draws.shift * (2 * down + 1, 2 * right + 1)).astype(np.int64)
        rows, columns = rows + offsets[:, :1], columns + offsets[:, 1:]
    samples = np.arange(count)[:, None, None]
    return images.transpose(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
