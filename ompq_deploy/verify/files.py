"""Check the files of a folder against its plan.json: their bytes, the integers of every layer, the engine's record.

These checks see what no execution can: a change that all files share, or an engine made for other integers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ompq_deploy.artifacts import QuantizedGraph, Samples
from ompq_deploy.export.tensorrt.backend import Backend, probe
from ompq_deploy.export.tensorrt.inspect import read_engine
from ompq_deploy.files.grids_file import GRIDS_FILE, grids_document
from ompq_deploy.files.lock import layer_digests, sha256_of
from ompq_deploy.verify.verdict import Check


def check_files(folder: Path, document: Mapping[str, Any], written: Collection[str]) -> Check:
    """Whether every file has the sha256 that plan.json records, and each of `written` that is there is recorded."""
    recorded: Mapping[str, str] = document.get("files", {})
    faults = [f"{name} is missing" for name in recorded if not (folder / name).is_file()]
    faults += [
        f"{name} is not the file that plan.json records"
        for name, digest in recorded.items()
        if (folder / name).is_file() and sha256_of(folder / name) != digest
    ]
    faults += [
        f"plan.json does not record {name}, which another run left"
        for name in written
        if name not in recorded and (folder / name).is_file()
    ]
    return Check(name="files", passed=not faults, detail="; ".join(faults))


def check_calibration(samples: Samples, document: Mapping[str, Any]) -> Check:
    """Whether the samples, on which the models are compared, are those the plan was calibrated on."""
    passed = samples.sha256 == document["calibration"]["sha256"]
    detail = f"{samples.source}: other data than plan.json records; give those with --calib"
    return Check(name="calibration", passed=passed, detail="" if passed else detail)


def check_integers(quantized: QuantizedGraph, document: Mapping[str, Any]) -> Check:
    """Whether each layer, as read from the Q/DQ file, has the codes, scales, biases and input grids of the run."""
    recorded: Mapping[str, str] = document.get("integers", {})
    changed = [layer for layer, digest in layer_digests(quantized).items() if recorded.get(layer) != digest]
    if not changed:
        return Check(name="integers", passed=True)
    return Check(
        name="integers",
        passed=False,
        layer=changed[0],
        detail=f"weights, scales or biases other than those plan.json records: {', '.join(changed)}",
    )


def check_grids(folder: Path, quantized: QuantizedGraph) -> Check:
    """Whether grids.json tells the grids of the Q/DQ file; the 16-bit ones of `quantized` were read from it."""
    try:
        told = json.loads((folder / GRIDS_FILE).read_text())["tensors"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        return Check(name=GRIDS_FILE, passed=False, detail=f"it does not hold grids: {e!r}")
    known = grids_document(quantized)["tensors"]
    other = [name for name in {**known, **told} if told.get(name) != known.get(name)]
    if not other:
        return Check(name=GRIDS_FILE, passed=True)
    detail = f"other grids than those of model.qdq.onnx: {', '.join(other)}"
    return Check(name=GRIDS_FILE, passed=False, layer=other[0], detail=detail)


def check_engine(engine: Path, record_path: Path, quantized: QuantizedGraph) -> Check:
    """Whether an engine is the one that its record describes, and holds the codes of the Q/DQ file's layers.

    The codes count where the record says that they were found in the engine, and reading it again tells.
    """
    if not engine.exists() or not record_path.exists():
        missing = record_path if engine.exists() else engine
        return Check(name="engine", passed=False, detail=f"{missing.name} is missing")
    try:
        record = json.loads(record_path.read_text())
        digest, backend = record["sha256"], record["backend"]
        found = {row["name"] for row in record["layers"] if row["codes_found"]}
    except (ValueError, KeyError, TypeError) as e:
        return Check(name="engine", passed=False, detail=f"{record_path.name} is not an engine's record: {e!r}")
    faults = [] if sha256_of(engine) == digest else [f"{engine.name} is not the engine that {record_path.name} records"]
    usable = probe(backend)
    reading = read_engine(engine.read_bytes(), quantized, usable if isinstance(usable, Backend) else None)
    names = [layer.layer.name for layer in quantized.layers]
    others = [
        name
        for name, layer in zip(names, reading.layers, strict=True)
        if name in found and layer.codes_found is False
    ]  # fmt: skip
    if others:
        faults.append(f"the engine holds other weights than model.qdq.onnx: {', '.join(others)}")
    return Check(name="engine", passed=not faults, detail="; ".join(faults), layer=others[0] if others else "")
