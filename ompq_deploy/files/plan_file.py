"""plan.json: the lock file of a run. What was decided, from which inputs, by which versions."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from ompq_deploy.artifacts import BitPlan, Budget, PlannedLayer, PreparedGraph, Samples, SolverRecord
from ompq_deploy.errors import BadInput

SCHEMA = 1
RECORDED_PACKAGES = ("ompq-deploy", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "ortools")


def plan_document(
    plan: BitPlan, graph: PreparedGraph, samples: Samples, settings: dict[str, Any], timings: dict[str, float]
) -> dict[str, Any]:
    """The JSON document of a plan. `achieved.file_bytes` is None until the file has been written."""
    return {
        "schema": SCHEMA,
        "model": {
            "path": str(graph.source),
            "sha256": graph.sha256,
            "fp32_bytes": graph.float_bytes,
            "float_type": graph.float_type,
        },
        "calibration": {"source": samples.source, "samples": len(samples), "sha256": samples.sha256},
        "budget": {
            "size_bytes": plan.budget.size_bytes,
            "size_of": plan.budget.size_of,
            "bops": plan.budget.bops,
            "activation_bytes": plan.budget.activation_bytes,
            "latency_ns": plan.budget.latency_ns,
        },
        "achieved": {
            "size_bytes": plan.size_bytes,
            "file_bytes": None,
            "bops": plan.bops,
            "activation_bytes": plan.activation_bytes,
            "latency_ns": plan.latency_ns,
        },
        "metric": settings["metric"],
        "metric_chosen": plan.metric,
        "solver": asdict(plan.solver),
        "settings": settings,
        "versions": versions(),
        "timings": {f"{stage}_s": round(seconds, 4) for stage, seconds in timings.items()},
        "layers": [asdict(row) for row in plan.layers],
    }


def load_plan(path: Path) -> tuple[BitPlan, dict[str, Any]]:
    """A plan and its whole document, read back. Raises BadInput for anything else than a plan.json."""
    try:
        document = json.loads(path.read_text())
        _check_parts(document)
        achieved = {name: count for name, count in document["achieved"].items() if name != "file_bytes"}
        plan = BitPlan(
            layers=tuple(PlannedLayer(**row) for row in document["layers"]),
            budget=Budget(**document["budget"]),
            **achieved,
            metric=document["metric_chosen"],
            solver=SolverRecord(**document["solver"]),
        )
    except OSError as e:
        raise BadInput(f"cannot read the plan: {e.strerror}", where=str(path), fix="check the path") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise BadInput(
            f"this is not a plan.json of schema {SCHEMA}: {e!r}", where=str(path), fix="write it with: ompq-deploy plan"
        ) from e
    return plan, document


def _check_parts(document: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError where parts that other modules read are not there, or of another kind."""
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema {document['schema']}")
    texts = [document["model"]["path"], document["model"]["sha256"], document["calibration"]["source"]]
    texts += [document["calibration"]["sha256"], *document.get("files", {}).values()]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a path or digest is no text")
    for part in ("settings", "integers", "smoothing"):
        if not isinstance(document.get(part, {}), dict):
            raise TypeError(part)


def check_plan_fits(plan: BitPlan, document: dict[str, Any], graph: PreparedGraph, path: Path) -> None:
    """Raise BadInput where a plan was made for another model."""
    if document["model"]["sha256"] != graph.sha256 or [row.name for row in plan.layers] != [
        layer.name for layer in graph.layers
    ]:
        raise BadInput(
            f"the plan was made for another model ({document['model']['path']})",
            where=str(path),
            fix=f"make a plan for {graph.source} with: ompq-deploy plan",
        )


def check_samples_fit(document: dict[str, Any], samples: Samples) -> None:
    """Raise BadInput where a plan was calibrated on other samples."""
    if document["calibration"]["sha256"] != samples.sha256:
        raise BadInput(
            f"the plan was calibrated on other data ({document['calibration']['source']})",
            where=samples.source,
            fix="give the data of the plan (to quantize and verify with --calib), or make a plan for these",
        )


def note_further(document: dict[str, Any], samples: Samples, further: Samples | None) -> None:
    """Record the samples that weights are rounded by, `further` ones besides those of the calibration. Raises BadInput
    where the document records others."""
    calibration, digest = document["calibration"], further.sha256 if further else ""
    if calibration.get("further_sha256", digest) != digest:
        raise BadInput(
            f"weights were rounded by other data ({calibration['source']})",
            where=further.source if further else samples.source,
            fix="give all data that the plan was made with, or make a plan for these",
        )
    calibration["further_sha256"] = digest
    calibration["rounding_samples"] = len(samples) + (len(further) if further else 0)


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    found = {}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
