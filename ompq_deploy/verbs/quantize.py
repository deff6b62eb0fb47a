"""The verb `quantize`: the ONNX files of an earlier plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ompq_deploy.artifacts import BitPlan, PreparedGraph, QuantizedGraph
from ompq_deploy.errors import BadInput
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import DYADIC
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.export.qdq_reader import as_stored
from ompq_deploy.export.tensorrt.graph import tensorrt_graph
from ompq_deploy.files.grids_file import GRIDS_FILE, grids_document
from ompq_deploy.files.lock import layer_digests
from ompq_deploy.files.outputs import OutputFolder
from ompq_deploy.files.plan_file import check_plan_fits, check_samples_fit, load_plan
from ompq_deploy.finish import INTEGER_FILE, QDQ_FILE, TENSORRT_FILE, hold_budget
from ompq_deploy.pipeline import read_integers, run_capture, run_quantize
from ompq_deploy.quantize.reconstruct import CHECKPOINT_FILE
from ompq_deploy.runtime.timing import Listener, Stopwatch
from ompq_deploy.settings import PlanSettings
from ompq_deploy.verbs.earlier import graph_again, recorded_settings, samples_again
from ompq_deploy.verbs.renewal import commit_stage, files_kept, recorded_engine


def write_models(
    plan_path: Path,
    model: Path | None,
    targets: tuple[str, ...],
    folder: Path,
    listener: Listener | None = None,
    *,
    calib: Path | None = None,
    arithmetic: str = DYADIC,
    threads: int = 0,
) -> list[Path]:
    """The verb `quantize`: the ONNX files of an earlier plan; their paths.

    Integers that were trained are those of the Q/DQ file beside the plan; others are made from the calibration data,
    which lie at `calib` now. The verdict on the files before is removed. Raises BadInput where files of other integers
    would stay in the folder.
    """
    watch = Stopwatch(listener)
    plan, document = load_plan(plan_path)
    settings = replace(recorded_settings(document, calib), threads=threads)
    names = []
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            graph = graph_again(document, settings, model)
            check_plan_fits(plan, document, graph, plan_path)
        if "finetune" in document:
            quantized = _trained_integers(plan_path, graph, plan, document)
        else:
            quantized = _planned_integers(graph, plan, document, settings, folder, watch)
        with watch.stage("export"):
            qdq = qdq_model(quantized)
            out.write_json(GRIDS_FILE, grids_document(quantized))
            quantized = as_stored(quantized, qdq, plan)
            document |= {"integers": layer_digests(quantized), "rounding_note": quantized.note}
            if {"auto", "onnx"} & set(targets):
                path = out.write_model(QDQ_FILE, qdq)
                document["achieved"]["file_bytes"] = path.stat().st_size
                hold_budget(plan, path.stat().st_size)
                names.append(QDQ_FILE)
            if {"auto", "integer"} & set(targets):
                out.write_model(INTEGER_FILE, integer_model(lower(quantized, arithmetic)))
                document["arithmetic"] = arithmetic
                names.append(INTEGER_FILE)
            if any(target.startswith("tensorrt") or target == "auto" for target in targets):
                out.write_model(TENSORRT_FILE, tensorrt_graph(quantized))
                names.append(TENSORRT_FILE)
            document["files"] = files_kept(folder, document, (*names, GRIDS_FILE))
            commit_stage(out, document, recorded_engine(folder, document))
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return [folder / name for name in names]


def _planned_integers(
    graph: PreparedGraph,
    plan: BitPlan,
    document: dict[str, Any],
    settings: PlanSettings,
    folder: Path,
    watch: Stopwatch,
) -> QuantizedGraph:
    """Those the plan's settings make of its calibration data."""
    with watch.stage("capture"):
        samples = samples_again(graph, settings)
        check_samples_fit(document, samples)
        captured = run_capture(graph, samples, settings)
    with watch.stage("quantize"):
        return run_quantize(graph, captured, plan, samples, settings, folder=folder, tell=watch.listener)


def _trained_integers(plan_path: Path, graph: PreparedGraph, plan: BitPlan, document: dict[str, Any]) -> QuantizedGraph:
    """Those that `finetune` wrote beside the plan. Raises BadInput where they are not there any more."""
    source = plan_path.parent / QDQ_FILE
    fix = "restore that file, or train again with: ompq-deploy finetune"
    if not source.exists():
        raise BadInput(
            "the integers of this plan were trained, and the file that holds them is gone", where=str(source), fix=fix
        )
    quantized = read_integers(plan_path.parent, graph, plan)
    if layer_digests(quantized) != document["integers"]:
        raise BadInput("the integers of this plan were trained, and this file holds others", where=str(source), fix=fix)
    return quantized
