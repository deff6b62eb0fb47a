"""The verb `quantize`: the ONNX files of an earlier plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ompq_deploy.artifacts import BitPlan, PreparedGraph, QuantizedGraph
from ompq_deploy.drawn import with_further
from ompq_deploy.errors import BadInput, OmpqError
from ompq_deploy.export.integer.program import DYADIC
from ompq_deploy.files.lock import layer_digests
from ompq_deploy.files.outputs import OutputFolder
from ompq_deploy.files.plan_file import check_plan_fits, check_samples_fit, load_plan
from ompq_deploy.onnx_files import QDQ_FILE, write_onnx_files
from ompq_deploy.pipeline import read_integers, run_capture, run_quantize
from ompq_deploy.quantize.reconstruct import CHECKPOINT_FILE
from ompq_deploy.runtime.timing import Listener, Stopwatch
from ompq_deploy.settings import PlanSettings
from ompq_deploy.verbs.earlier import graph_again, recorded_settings, samples_again
from ompq_deploy.verbs.renewal import commit_stage, files_kept, recorded_engine


@dataclass(frozen=True, kw_only=True)
class Written:
    """The files of one stage; what was asked for and skipped, and why; `failures` where that was asked for by name."""

    paths: list[Path]
    skipped: dict[str, str]
    failures: tuple[OmpqError, ...]


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
) -> Written:
    """The verb `quantize`: the ONNX files of an earlier plan.

    Integers that were trained are those of the Q/DQ file beside the plan; others are made from the calibration data,
    which lie at `calib` now. The verdict on the files before is removed. Raises BadInput where files of other integers
    would stay in the folder.
    """
    watch = Stopwatch(listener)
    plan, document = load_plan(plan_path)
    settings = replace(recorded_settings(document, calib), threads=threads)
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            graph = graph_again(document, settings, model)
            check_plan_fits(plan, document, graph, plan_path)
        if "finetune" in document:
            quantized = _trained_integers(plan_path, graph, plan, document)
        else:
            quantized = _planned_integers(graph, plan, document, settings, folder, watch)
        with watch.stage("export"):
            files = write_onnx_files(out, document, plan, quantized, targets, arithmetic)
            written = [path.name for path in out.staged()]
            document["files"] = files_kept(folder, document, written)
            failures = files.failures(targets)
            commit_stage(out, document, recorded_engine(folder, document), files.skipped, failures)
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return Written(paths=[folder / name for name in written], skipped=files.skipped, failures=tuple(failures))


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
        calibrated = with_further(graph, samples, settings)
        return run_quantize(calibrated, captured, plan, settings, document, folder=folder, tell=watch.listener)


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
