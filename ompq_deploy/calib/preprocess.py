"""How an image becomes the input tensor.

For a pixel value p in 0..255 of tensor channel c

    x[c] = (p[c] / divisor - mean[c]) / std[c]

computed in float32, where the tensor's channels are R, G, B, or B, G, R when `bgr` is set. An image is
brought to H x W before that: left alone if it has that size already, else resized (PIL, bilinear) until it
covers H / 0.875 x W / 0.875, which puts the short side at 256 for 224 x 224, and cropped in the centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ompq_deploy.artifacts import Float32
from ompq_deploy.calib.input_spec import LAYOUTS, ImageInput
from ompq_deploy.errors import BadInput

CROP = 0.875


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """The figures of the formula above.

    `mean` and `std` have one entry, or one per channel of the tensor (so in B, G, R order when `bgr`), in
    units of p / divisor. `layout` is NCHW, NHWC, or None for "as the model's input shape tells". `ready`
    says that the data are input tensors already; then nothing else counts.
    """

    name: str
    divisor: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False
    layout: str | None = None
    ready: bool = False

    @classmethod
    def from_recorded(cls, values: Mapping[str, Any]) -> Preprocess:
        """The preprocessing a lock file holds: the fields as JSON values."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    @property
    def identity(self) -> bool:
        """Whether x = p, so that integers stay integers."""
        return self.divisor == 1 and set(self.mean) == {0.0} and set(self.std) == {1.0}


PRESETS: Mapping[str, Preprocess] = MappingProxyType(
    {
        "torchvision": Preprocess(
            name="torchvision", divisor=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        "tf": Preprocess(name="tf", divisor=127.5, mean=(1.0,)),
        "caffe": Preprocess(name="caffe", mean=(103.939, 116.779, 123.68), bgr=True),
        "unit": Preprocess(name="unit", divisor=255.0),
        "raw": Preprocess(name="raw"),
        "none": Preprocess(name="none", ready=True),
    }
)


def make_preprocess(
    preset: str,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool | None = None,
    layout: str | None = None,
) -> Preprocess:
    """A preset with overrides; each given one replaces the preset's figure, in the preset's units.

    Changing `bgr` alone reverses the preset's mean and std with the channels.
    """
    if preset not in PRESETS:
        raise BadInput(
            f"no preprocessing is called {preset!r}", where="--preprocess", fix=f"choose one of {', '.join(PRESETS)}"
        )
    if layout is not None and layout.upper() not in LAYOUTS:
        raise BadInput(f"no layout is called {layout!r}", where="--layout", fix=f"choose {' or '.join(LAYOUTS)}")
    base = PRESETS[preset]
    if base.ready and (mean is not None or std is not None or bgr is not None):
        raise BadInput(
            "data that are ready (preprocess none) take no mean, std or bgr",
            where="--preprocess none",
            fix="choose another preset, such as raw, or drop --mean, --std and --bgr",
        )
    if bgr is not None and bgr != base.bgr:
        base = replace(base, bgr=bgr, mean=base.mean[::-1], std=base.std[::-1])
    changed = mean is not None or std is not None or bgr is not None
    return replace(
        base,
        name=f"{preset} (adjusted)" if changed else preset,
        mean=base.mean if mean is None else _per_channel(mean, "--mean"),
        std=base.std if std is None else _per_channel(std, "--std"),
        layout=None if layout is None else layout.upper(),
    )


def fit_image(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """An 8-bit image, brought to height x width in pixels; uint8 (height, width, colours)."""
    if image.size != (width, height):
        factor = max(height / image.height, width / image.width) / CROP
        size = (max(width, round(image.width * factor)), max(height, round(image.height * factor)))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    return np.asarray(image, dtype=np.uint8).reshape(height, width, -1)


def apply_preprocess(images: NDArray[np.uint8], preprocess: Preprocess, target: ImageInput) -> NDArray[Any]:
    """The formula: uint8 (N, H, W, colours) to the input tensor, in the layout and dtype of `target`."""
    tensor: NDArray[Any]
    for figures, flag in ((preprocess.mean, "--mean"), (preprocess.std, "--std")):
        if len(figures) not in (1, target.channels):
            raise BadInput(
                f"preprocessing {preprocess.name} has {len(figures)} values for {target.channels} channel(s)",
                where=f"input {target.name!r}",
                fix=f"give one value, or one per channel, with {flag}; or choose --preprocess unit, tf or raw",
            )
    if preprocess.bgr and target.channels == 3:
        images = images[..., ::-1]
    integers = target.dtype.kind in "iu" and preprocess.identity and np.iinfo(target.dtype).max >= 255
    if target.dtype.kind != "f" and not integers:
        raise BadInput(
            f"{target.dtype} cannot hold images after preprocessing {preprocess.name}",
            where=f"input {target.name!r}",
            fix="choose --preprocess raw for a uint8 input, or give arrays that are ready (--preprocess none)",
        )
    tensor = images if preprocess.identity else _normalized(images, preprocess)
    if target.layout == "NCHW":
        tensor = tensor.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(tensor, dtype=target.dtype)


def _normalized(images: NDArray[np.uint8], preprocess: Preprocess) -> Float32:
    x: Float32 = images.astype(np.float32)
    x /= np.float32(preprocess.divisor)
    x -= np.asarray(preprocess.mean, np.float32)
    x /= np.asarray(preprocess.std, np.float32)
    return x


def _per_channel(values: Sequence[float], flag: str) -> tuple[float, ...]:
    figures = tuple(float(value) for value in values)
    if len(figures) not in (1, 3):
        raise BadInput(f"{len(figures)} values", where=flag, fix="give one value, or three, one per channel")
    if not np.isfinite(figures).all() or (flag == "--std" and min(figures) <= 0):
        raise BadInput(
            f"{', '.join(map(str, figures))} cannot be used", where=flag, fix="give finite values (above 0 for --std)"
        )
    return figures
