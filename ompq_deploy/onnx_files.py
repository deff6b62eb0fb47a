"""The ONNX files made of a plan's integers, and what plan.json tells of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx

from ompq_deploy.artifacts import BitPlan, QuantizedGraph
from ompq_deploy.errors import BackendMissing, OmpqError
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import IntegerProgram
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.export.qdq_reader import as_stored
from ompq_deploy.export.tensorrt.graph import tensorrt_graph
from ompq_deploy.files.grids_file import GRIDS_FILE, grids_document
from ompq_deploy.files.lock import layer_digests
from ompq_deploy.files.outputs import OutputFolder

QDQ_FILE = "model.qdq.onnx"
INTEGER_FILE = "model.int.onnx"
TENSORRT_FILE = "model.trt.onnx"


@dataclass(frozen=True, kw_only=True)
class OnnxFiles:
    """What was written: `models` by "qdq" and, where asked for and possible, "integer"; the graph for TensorRT where
    asked for. `quantized` is what the Q/DQ file stores and `program` what the integer-only model computes; `refusal`
    says why there is none though one was asked for."""

    quantized: QuantizedGraph
    models: dict[str, onnx.ModelProto]
    program: IntegerProgram | None
    refusal: BackendMissing | None
    tensorrt: onnx.ModelProto | None

    @property
    def skipped(self) -> dict[str, str]:
        """What was asked for and is not there, and why."""
        return {"integer": str(self.refusal)} if self.refusal else {}

    def failures(self, targets: Collection[str]) -> list[OmpqError]:
        """The refusal, where the model was asked for by name."""
        return [self.refusal] if self.refusal and "integer" in targets else []


def write_onnx_files(
    out: OutputFolder,
    document: dict[str, Any],
    plan: BitPlan,
    quantized: QuantizedGraph,
    targets: Collection[str],
    arithmetic: str,
) -> OnnxFiles:
    """Stage the files, and note their size and integers in the `document` of plan.json.

    Raises OmpqError where the Q/DQ file breaks the budget of the `plan`.
    """
    qdq = qdq_model(quantized)
    path = out.write_model(QDQ_FILE, qdq)
    out.write_json(GRIDS_FILE, grids_document(quantized))
    stored = as_stored(quantized, qdq, plan)
    file_bytes = path.stat().st_size
    document["achieved"]["file_bytes"] = file_bytes
    document |= {"rounding_note": stored.note, "integers": layer_digests(stored)}
    _hold_budget(plan, file_bytes)
    models = {"qdq": qdq}
    program, refusal = _lowered(stored, arithmetic) if {"auto", "integer"} & set(targets) else (None, None)
    if program is not None:
        document["arithmetic"] = arithmetic
        models["integer"] = integer_model(program)
        out.write_model(INTEGER_FILE, models["integer"])
    tensorrt = None
    if any(target == "auto" or target.startswith("tensorrt") for target in targets):
        tensorrt = tensorrt_graph(stored)
        out.write_model(TENSORRT_FILE, tensorrt)
    return OnnxFiles(quantized=stored, models=models, program=program, refusal=refusal, tensorrt=tensorrt)


def _lowered(quantized: QuantizedGraph, arithmetic: str) -> tuple[IntegerProgram | None, BackendMissing | None]:
    try:
        return lower(quantized, arithmetic), None
    except BackendMissing as e:
        return None, e


def _hold_budget(plan: BitPlan, file_bytes: int) -> None:
    """The promise of the tool, checked on the bytes that were written."""
    if plan.budget.size_of == "file" and file_bytes > plan.budget.size_bytes:
        raise OmpqError(
            f"the file takes {file_bytes} bytes, more than the budget of {plan.budget.size_bytes}",
            where=QDQ_FILE,
            fix="this is a defect of ompq-deploy: please report it with the model's plan.json",
        )
