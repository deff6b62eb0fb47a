"""What plan.json locks besides the decision: sha256 of every file written, and of every layer's integers.

The file digests tell that a file was changed; those of the layers tell which layer, also where all files agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ompq_deploy.artifacts import QuantizedGraph
from ompq_deploy.graph_index import GraphIndex
from ompq_deploy.placement import layer_grid

PLAN_FILE = "plan.json"
VERDICT_FILE = "verify.json"
UNLOCKED = (PLAN_FILE, VERDICT_FILE)
"""The lock itself, and what every verification writes anew."""


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def lock_files(document: dict[str, Any], paths: Iterable[Path], *, beside: Path | None = None) -> None:
    """Record the files of a run in its plan.json document.

    With `beside`, the folder they go to, those that an earlier stage recorded and that are still there stay recorded.
    """
    earlier = document.get("files", {}) if beside else {}
    kept = {name: digest for name, digest in earlier.items() if beside and (beside / name).exists()}
    document["files"] = kept | {path.name: sha256_of(path) for path in paths if path.name not in UNLOCKED}


def layer_digests(quantized: QuantizedGraph) -> dict[str, str]:
    """Hex sha256 of what each layer computes with: codes, scales, biases, and the grids of the tensors it reads.

    For integers as they were read from the Q/DQ file: its biases are on their int32 grid.
    """
    index, digests = GraphIndex(quantized.graph.model), {}
    for layer in quantized.layers:
        digest = hashlib.sha256()
        arrays = [layer.codes.astype(np.int8), layer.scale.astype(np.float32)]
        arrays += [layer.biases[node].astype(np.float32) for node in layer.layer.nodes if node in layer.biases]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        tensors = [layer_grid(index, quantized.grids, name) for name in layer.layer.inputs]
        grids = [quantized.grids[name] for name in tensors]
        digest.update(np.array([(grid.scale, grid.zero_point) for grid in grids], np.float64).tobytes())
        digests[layer.layer.name] = digest.hexdigest()
    return digests
