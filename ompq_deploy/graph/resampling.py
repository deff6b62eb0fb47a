"""ONNX Resize along one axis: which elements of the input every element of the output reads, and their weights.

    x(i)      the input coordinate of output element i                  (`coordinate_transformation_mode`)
    nearest   y[i] = x[round(x(i))]                                     (`nearest_mode`)
    linear    y[i] = sum_j K(j - x(i)) x[j],   K(t) = max(0, 1 - |t|)
    cubic     the same with Keys' kernel (IEEE Trans. ASSP 29, 1981), a = `cubic_coeff_a`:
                  K(t) = (a + 2) |t|^3 - (a + 3) t^2 + 1         |t| <= 1
                         a |t|^3 - 5 a t^2 + 8 a |t| - 4 a       1 < |t| < 2

With `antialias` an axis that shrinks by the factor f < 1 has K(f t) instead. Elements outside are those at the edge;
with `exclude_outside` their weights are 0. The weights of an element are divided by their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float64

Coordinates = Callable[[Any, Any, Any, Any], Any]
"""From output elements, the scale and the two lengths to input coordinates, in the precision of what is given."""

TRANSFORMS: dict[str, Coordinates] = {
    "asymmetric": lambda i, scale, size, length: i / scale,
    "half_pixel": lambda i, scale, size, length: (i + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda i, scale, size, length: (i + 0.5) / scale - 0.5 if length > 1 else 0 * i,
    "align_corners": lambda i, scale, size, length: i * (size - 1) / (length - 1) if length > 1 else 0 * i,
    "half_pixel_symmetric": lambda i, scale, size, length: (
        size / 2 * (1 - length / (scale * size)) + (np.float64(i) + 0.5) / np.float64(scale) - 0.5
    ),
}
ROUNDINGS: dict[str, Callable[[Float64], Float64]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
TIE = 1e-6
"""onnxruntime 1.31 rounds a coordinate this close to a half as it rounds the half."""
REACH = {"linear": 1, "cubic": 2}
"""How far K reaches to either side."""


@dataclass(frozen=True, kw_only=True)
class Taps:
    """`index` and `weight` (T, length): y[i] = sum_t weight[t, i] x[index[t, i]]; weights sum to 1."""

    index: NDArray[np.int64]
    weight: Float64


def scaled_length(size: int, scale: float) -> int:
    """The length onnxruntime gives an axis; the product is in float32, and may round up to a whole number."""
    return int(np.float32(size) * np.float32(scale))


def resized(settings: Mapping[str, Any], size: int, length: int, scale: float) -> Taps | None:
    """What a Resize node of these attributes reads to make `length` elements of `size`; None where its coordinates
    depend on a region of interest. `scale` is length / size, or what the node gives."""
    transform = settings.get("coordinate_transformation_mode", "half_pixel")
    if transform not in TRANSFORMS:
        return None
    if settings.get("mode", "nearest") == "nearest":
        index = _nearest(settings, TRANSFORMS[transform], size, length, scale)
        return Taps(index=np.clip(index, 0, size - 1).astype(np.int64)[None], weight=np.ones((1, length)))
    at = TRANSFORMS[transform](np.arange(length, dtype=np.float64), scale, size, length)
    return _weighted(settings, at, size, min(scale, 1.0) if settings.get("antialias", 0) else 1.0)


def _nearest(settings: Mapping[str, Any], transform: Coordinates, size: int, length: int, scale: float) -> Float64:
    """The element nearest to each coordinate, which is computed in float32, as onnxruntime does, since that decides
    which of two elements is nearer."""
    single = (np.asarray(value, np.float32) for value in (np.arange(length), scale, size, length))
    at = np.asarray(transform(*single), np.float32).astype(np.float64)
    half = np.floor(at) + 0.5
    return ROUNDINGS[settings.get("nearest_mode", "round_prefer_floor")](np.where(np.abs(at - half) < TIE, half, at))


def _weighted(settings: Mapping[str, Any], at: Float64, size: int, shrinking: float) -> Taps:
    mode = settings["mode"]
    reach = REACH[mode] / shrinking
    first = np.floor(at - reach).astype(np.int64) + 1
    index = first + np.arange(int(np.ceil(2 * reach)) + 1)[:, None]
    distance = (index - at) * shrinking
    weight = _linear(distance) if mode == "linear" else _cubic(distance, settings.get("cubic_coeff_a", -0.75))
    if settings.get("exclude_outside", 0):
        weight = np.where((index >= 0) & (index < size), weight, 0.0)
    weight /= weight.sum(axis=0)
    read = (weight != 0).any(axis=1)
    return Taps(index=np.clip(index[read], 0, size - 1), weight=weight[read])


def _linear(t: Float64) -> Float64:
    return np.maximum(1 - np.abs(t), 0)


def _cubic(t: Float64, a: float) -> Float64:
    t = np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    result: NDArray[np.float64] = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
    return result
