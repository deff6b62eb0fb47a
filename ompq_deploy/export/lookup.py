"""Store a constant whose numbers repeat as a table, and the place of each in it.

    x[..., j] = table[..., place[j]]      j over the last axes, `...` over the first

Exporters look relative positions up in a table by constant indices, and mask windows with two numbers. Preparing the
graph folds that, and a network's biases may then take as many bytes as its INT4 weights. The places are written as one
or two bytes; onnxruntime folds the lookup when it loads the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMBERS = "biuf"
LEAST_BYTES = 4096
"""Of a constant that is looked at."""
PROBED_ROWS, PROBED_COLUMNS = 64, 4096
"""Rows and columns that are looked at first."""
LARGEST_SHARE = 0.75
"""Of the constant's bytes that a lookup may take."""


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """`table` has the constant's first axes and one over its different columns; `places`, uint8 or uint16, has the last
    axes. np.take(table, places, axis) is the constant."""

    table: NDArray[Any]
    places: NDArray[np.uint8 | np.uint16]

    @property
    def axis(self) -> int:
        return self.table.ndim - 1


def find_lookup(x: NDArray[Any]) -> Lookup | None:
    """The smallest lookup that yields `x` bit by bit, or None where none saves a quarter of its bytes."""
    if x.nbytes < LEAST_BYTES or x.dtype.kind not in NUMBERS:
        return None
    axes = [axis for axis in range(x.ndim) if axis == 0 or x.shape[axis - 1] > 1]  # else the columns are those before
    found = [lookup for axis in axes if (lookup := _lookup(x, axis)) is not None]
    best = min(found, key=_bytes, default=None)
    return best if best is not None and _bytes(best) <= LARGEST_SHARE * x.nbytes else None


def _lookup(x: NDArray[Any], axis: int) -> Lookup | None:
    """Of the columns of `x`, which span the axes before `axis`; places count them in the order of their appearance, so
    that constants of one pattern have the same."""
    columns = np.ascontiguousarray(x).view(f"u{x.itemsize}").reshape(math.prod(x.shape[:axis]), -1)
    probe = columns[:: -(-len(columns) // PROBED_ROWS), :: -(-columns.shape[1] // PROBED_COLUMNS)]
    if len(np.unique(_keys(probe))) > LARGEST_SHARE * probe.shape[1]:
        return None
    _, first, places = np.unique(_keys(columns), return_index=True, return_inverse=True)
    order = np.argsort(first)
    first, places = first[order], np.argsort(order)[places]
    if len(first) > 1 << 16 or not np.array_equal(columns[:, first][:, places], columns):
        return None
    return Lookup(
        table=columns[:, first].view(x.dtype).reshape(*x.shape[:axis], -1),
        places=places.reshape(x.shape[axis:]).astype(np.uint8 if len(first) <= 1 << 8 else np.uint16),
    )


def _keys(columns: NDArray[np.unsignedinteger]) -> NDArray[np.uint64]:
    """A number per column, hardly ever the same for two that differ."""
    factors = np.random.default_rng(0).integers(1, 1 << 63, len(columns), np.uint64)
    return factors @ columns.astype(np.uint64)


def _bytes(lookup: Lookup) -> int:
    return lookup.table.nbytes + lookup.places.nbytes
