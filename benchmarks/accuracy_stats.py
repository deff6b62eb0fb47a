"""Paired comparison of two classifiers on the same images.

Of N images, b are right under the first only and c under the second only. The drop from the first to the second and
the half-width of its 95 % interval are

    drop = (b - c) / N        half = 1.96 sqrt(b' + c' - (b' - c')^2 / N') / N'        b', c' = b, c + 1/2,  N' = N + 2

(Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24,
2005: half an image more in every cell of the 2 x 2 table). Unlike the plain normal interval it is not empty where the
two are right on the same images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.96

Hits = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Points of top-1 lost, and the half-width of the 95 % interval."""

    points: float
    half: float

    def __str__(self) -> str:
        return f"{self.points:.1f} ± {self.half:.1f}"


def paired_drop(first: Hits, second: Hits) -> Drop:
    """The drop of `second` against `first`, both bool (N,): whether each image is classified rightly."""
    if first.shape != second.shape:
        raise ValueError(f"{first.size} and {second.size} images cannot be paired")
    b, c = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    adjusted, n = (b + 0.5, c + 0.5), first.size + 2
    variance = sum(adjusted) - (adjusted[0] - adjusted[1]) ** 2 / n
    return Drop(points=100 * (b - c) / first.size, half=100 * NORMAL_95 * sqrt(variance) / n)


def verdict(drop: Drop, limit: float) -> str:
    """Whether a drop keeps its limit, both in points; a miss says by how much, and whether chance may explain it."""
    excess = drop.points - limit
    if excess <= 1e-9:
        return "met"
    return f"missed by {excess:.1f}" + (", within the interval" if excess <= drop.half else "")


def pack(hits: Hits) -> str:
    """One bit per image, as text for JSON."""
    return np.packbits(hits).tobytes().hex()


def unpack(figures: Mapping[str, Any]) -> Hits:
    """The hits, bool (N,), of figures with `correct` and `n`."""
    packed = np.frombuffer(bytes.fromhex(figures["correct"]), np.uint8)
    return np.unpackbits(packed, count=figures["n"]).astype(bool)
