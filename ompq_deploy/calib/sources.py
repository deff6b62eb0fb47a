"""Where samples come from: image files, an array of images, or arrays that are ready.

A source is a sequence of samples; `take` makes the input tensors of some of them, so only those are decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ompq_deploy.calib.input_spec import ImageInput, InputSpec, image_input
from ompq_deploy.calib.preprocess import PRESETS, Preprocess, apply_preprocess, fit_image
from ompq_deploy.calib.read import open_image
from ompq_deploy.errors import BadInput

DEFAULT_PRESET = "torchvision"


class Source(Protocol):
    """Samples that become input tensors when asked for. `how` tells what is done to them, for a person."""

    @property
    def how(self) -> str: ...

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> dict[str, NDArray[Any]]:
        """The feeds of the samples at `indices`, by input name, first axis in their order."""


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """One image file per sample; resized and cropped to the target, 224 for a symbolic height or width."""

    files: Sequence[Path]
    target: ImageInput
    preprocess: Preprocess
    how: str

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices: Sequence[int]) -> dict[str, NDArray[Any]]:
        size = self.target.extent()
        pixels = [fit_image(open_image(self.files[i], self.target.channels), *size) for i in indices]
        return {self.target.name: apply_preprocess(np.stack(pixels), self.preprocess, self.target)}


@dataclass(frozen=True, kw_only=True)
class ImageArray:
    """uint8 (N, H, W, channels); resized and cropped to the target, its own size where that is symbolic."""

    images: NDArray[np.uint8]
    target: ImageInput
    preprocess: Preprocess
    how: str

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int]) -> dict[str, NDArray[Any]]:
        pixels = self.images[np.asarray(indices)]
        height, width = self.target.extent(*pixels.shape[1:3])
        if pixels.shape[1:3] != (height, width):
            squeezed = pixels if self.target.channels == 3 else pixels[..., 0]
            pixels = np.stack([fit_image(Image.fromarray(one), height, width) for one in squeezed])
        return {self.target.name: apply_preprocess(pixels, self.preprocess, self.target)}


@dataclass(frozen=True, kw_only=True)
class ReadyArrays:
    """Input tensors as they are: one array per input, first axes equally long, shapes and dtypes checked."""

    arrays: Mapping[str, NDArray[Any]]
    how: str = "arrays fed as they are"

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, indices: Sequence[int]) -> dict[str, NDArray[Any]]:
        feeds = {name: np.ascontiguousarray(array[np.asarray(indices)]) for name, array in self.arrays.items()}
        for name, feed in feeds.items():
            if feed.dtype.kind == "f" and not np.isfinite(feed).all():
                bad = next(index for index, one in zip(indices, feed, strict=True) if not np.isfinite(one).all())
                raise BadInput(
                    f"the data hold NaN or infinite values, first in sample {bad}",
                    where=f"input {name!r}",
                    fix="check how the arrays were made",
                )
        return feeds


def from_files(files: Sequence[Path], inputs: Sequence[InputSpec], preprocess: Preprocess | None) -> ImageFiles:
    """A source over image files; preprocessing torchvision unless told otherwise."""
    chosen, how = _image_preprocess(preprocess)
    target = image_input(inputs, chosen.layout)
    if None in (target.height, target.width):
        how += f", at {' x '.join(map(str, target.extent()))} since the model leaves the size open"
    return ImageFiles(files=files, target=target, preprocess=chosen, how=how)


def from_arrays(
    arrays: Mapping[str, NDArray[Any]], inputs: Sequence[InputSpec], preprocess: Preprocess | None, where: str
) -> ImageArray | ReadyArrays:
    """A source over arrays by input name: uint8 images to preprocess, or tensors that fit the inputs.

    float16 and float32 stand in for each other.
    """
    first = arrays[inputs[0].name]
    if preprocess is None:
        as_images = first.dtype == np.uint8 and not inputs[0].admits(first)
    else:
        as_images = not preprocess.ready
    if as_images:
        chosen, how = _image_preprocess(preprocess)
        target = image_input(inputs, chosen.layout)
        return ImageArray(images=_checked_images(first, target, where), target=target, preprocess=chosen, how=how)
    arrays = {spec.name: spec.fitted(arrays[spec.name]) for spec in inputs}
    for spec in inputs:
        if not spec.admits(arrays[spec.name]):
            array = arrays[spec.name]
            raise BadInput(
                f"input {spec.name!r} expects {spec}, got {array.dtype} {array.shape}",
                where=where,
                fix="store the arrays with that shape and dtype, or uint8 images N x H x W x 3 with --preprocess",
            )
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{name}: {len(array)}" for name, array in arrays.items())
        raise BadInput(f"the inputs differ in length ({lengths})", where=where, fix="store one row per sample in each")
    return ReadyArrays(arrays=arrays)


def _image_preprocess(preprocess: Preprocess | None) -> tuple[Preprocess, str]:
    if preprocess is None:
        return PRESETS[DEFAULT_PRESET], f"{DEFAULT_PRESET} preprocessing (the default; --preprocess changes it)"
    if preprocess.ready:
        raise BadInput(
            "images cannot be fed as they are",
            where="--preprocess none",
            fix="choose how they become the input tensor, such as --preprocess torchvision or raw",
        )
    return preprocess, f"{preprocess.name} preprocessing"


def _checked_images(images: NDArray[Any], target: ImageInput, where: str) -> NDArray[np.uint8]:
    if images.dtype != np.uint8:
        raise BadInput(
            f"preprocessing applies to uint8 images, the array is {images.dtype} {images.shape}",
            where=where,
            fix="store uint8 images N x H x W x 3, or pass --preprocess none if the arrays are ready",
        )
    shaped = images[..., np.newaxis] if images.ndim == 3 else images
    if shaped.ndim != 4 or shaped.shape[3] != target.channels or 0 in shaped.shape[1:]:
        raise BadInput(
            f"expected images uint8 (N, H, W, {target.channels}), got uint8 {images.shape}",
            where=where,
            fix="move the colours to the last axis, or pass --preprocess none if the arrays are ready",
        )
    return shaped
