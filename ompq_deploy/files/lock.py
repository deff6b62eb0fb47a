"""What plan.json locks besides the decision: sha256 of every file written, and of every layer's integers.

The file digests tell that a file was changed; those of the layers tell which layer, also where all files agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from ompq_deploy.artifacts import QuantizedGraph
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.graph.placement import layer_grid

PLAN_FILE = "plan.json"
VERDICT_FILE = "verify.json"
UNLOCKED = (PLAN_FILE, VERDICT_FILE)
"""The lock itself, and what every verification writes anew."""


def sha256_of(*paths: Path) -> str:
    """Hex sha256 of the bytes of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def model_sha256(path: Path) -> str:
    """Hex sha256 of an ONNX file and of the files its external data lie in, in order of their names."""
    model = onnx.load(path, format="protobuf", load_external_data=False)
    tensors = [t for part in (model.graph, *model.functions) for t in _tensors(part)]
    names = {ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)}
    return sha256_of(path, *(path.parent / name for name in sorted(names)))


def _tensors(part: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph or function: initializers, attributes, and those of the graphs in attributes."""
    if isinstance(part, onnx.GraphProto):
        yield from part.initializer
    for attribute in (attribute for node in part.node for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(graph)


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
