"""grids.json: the grid of every integer tensor, by its name in the float model.

    {"tensors": {"conv1_out": {"scale": 0.0123, "zero_point": 131, "bits": 8}, ...}, "symmetric": {"conv1_out": 0.0125}}

The Q/DQ model holds the 8-bit grids too; the 16-bit ones, of the integer-only model alone, are read back from here. So
are the scales under "symmetric", with zero-point 128, that were calibrated for TensorRT.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ompq_deploy.artifacts import Grid, PreparedGraph, QuantizedGraph
from ompq_deploy.errors import BadInput

GRIDS_FILE = "grids.json"


def grids_document(quantized: QuantizedGraph) -> dict[str, Any]:
    """What grids.json holds."""
    grids = {**quantized.grids, **quantized.wide_grids}
    return {
        "tensors": {
            name: {"scale": grid.scale, "zero_point": grid.zero_point, "bits": grid.bits}
            for name, grid in grids.items()
        },
        "symmetric": {name: grid.scale for name, grid in quantized.calibrated_symmetric.items()},
    }


def read_wide_grids(folder: Path, graph: PreparedGraph) -> dict[str, Grid]:
    """The 16-bit grids of an earlier run; none where the graph needs none. Raises BadInput where they are missing."""
    if not graph.wide:
        return {}
    with _reading(folder / GRIDS_FILE) as document:
        tensors = document["tensors"]
        return {name: _grid(tensors[name]) for name in graph.wide if name in tensors}


def read_symmetric_grids(folder: Path, graph: PreparedGraph) -> dict[str, Grid]:
    """The grids that an earlier run calibrated for TensorRT; none where it had no others than the Q/DQ model's. Raises
    BadInput where they cannot be read."""
    with _reading(folder / GRIDS_FILE) as document:
        scales = document.get("symmetric", {})
        return {name: Grid(scale=float(scales[name])) for name in graph.activations if name in scales}


@contextmanager
def _reading(path: Path) -> Iterator[dict[str, Any]]:
    """The document in `path`; BadInput where it, or what is taken from it, is not as it should be."""
    try:
        yield json.loads(path.read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise BadInput(f"the grids cannot be read: {e!r}", where=str(path), fix="run ompq-deploy again") from e


def _grid(entry: dict[str, Any]) -> Grid:
    return Grid(scale=float(entry["scale"]), zero_point=int(entry["zero_point"]), bits=int(entry["bits"]))
