"""grids.json: the grid of every integer tensor, by its name in the float model.

    {"tensors": {"conv1_out": {"scale": 0.0123, "zero_point": 128, "bits": 8}, ...}}

The Q/DQ model holds the 8-bit grids too; the 16-bit ones, of the integer-only model alone, are read back from here.
"""

from __future__ import annotations

import json
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
        }
    }


def read_wide_grids(folder: Path, graph: PreparedGraph) -> dict[str, Grid]:
    """The 16-bit grids of an earlier run; none where the graph needs none. Raises BadInput where they are missing."""
    if not graph.wide:
        return {}
    path = folder / GRIDS_FILE
    try:
        tensors = json.loads(path.read_text())["tensors"]
        return {name: _grid(tensors[name]) for name in graph.wide if name in tensors}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise BadInput(
            f"the 16-bit grids of the integer-only model cannot be read: {e!r}",
            where=str(path),
            fix="run ompq-deploy again",
        ) from e


def _grid(entry: dict[str, Any]) -> Grid:
    return Grid(scale=float(entry["scale"]), zero_point=int(entry["zero_point"]), bits=int(entry["bits"]))
