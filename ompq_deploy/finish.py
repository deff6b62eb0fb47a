"""From the integers of a plan to a folder: export, engine, verification, evaluation, report.

`pipeline.py` ends in it, and so does training (`finetune/run.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from ompq_deploy.artifacts import BitPlan, Budget, PreparedGraph, QuantizedGraph, Samples
from ompq_deploy.calib import LabelledSet
from ompq_deploy.drawn import spare_samples
from ompq_deploy.errors import BackendMissing, BadInput, GateFailed, OmpqError
from ompq_deploy.evaluate.accuracy import Evaluation, accuracy_failures, evaluate, evaluation_document
from ompq_deploy.evaluate.fidelity import fidelity_document
from ompq_deploy.export.tensorrt.backend import Backend, no_backend_note
from ompq_deploy.export.tensorrt.engine import build_engine, engine_record
from ompq_deploy.files.grids_file import GRIDS_FILE
from ompq_deploy.files.lock import PLAN_FILE, VERDICT_FILE, lock_files
from ompq_deploy.files.outputs import OutputFolder
from ompq_deploy.onnx_files import INTEGER_FILE, QDQ_FILE, TENSORRT_FILE, write_onnx_files
from ompq_deploy.report import report_document, write_html
from ompq_deploy.runtime.timing import Stopwatch
from ompq_deploy.settings import DeploySettings, PlanSettings
from ompq_deploy.verify import verdict_document, verify
from ompq_deploy.verify.verdict import Verdict, verdict_failures

ENGINE_FILE = "model.engine"
ENGINE_RECORD = "engine.json"
WRITTEN = (QDQ_FILE, INTEGER_FILE, GRIDS_FILE, TENSORRT_FILE, ENGINE_FILE, ENGINE_RECORD)
"""What a deployment consists of; plan.json locks each that is written."""
REPORT_FILE = "report.json"
REPORT_PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A plan and what it was made for; what is read once there are integers. `document` is that of plan.json."""

    graph: PreparedGraph
    samples: Samples
    plan: BitPlan
    document: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The result of a whole run. `report` is what report.json holds; `failures` are the gates and targets
    that did not hold, the first of which is the run's exit code."""

    out: Path
    plan: BitPlan
    report: dict[str, Any]
    failures: tuple[OmpqError, ...] = ()


@dataclass
class _Results:
    """What a run has produced so far, stage by stage."""

    verdict: Verdict | None = None
    engine: dict[str, Any] | None = None
    heads: dict[str, Any] | None = None
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[OmpqError] = field(default_factory=list)


def finish(
    out: OutputFolder,
    planned: Decided,
    quantized: QuantizedGraph,
    settings: DeploySettings,
    backend: Backend | None,
    labelled: LabelledSet | None,
    watch: Stopwatch,
) -> Deployment:
    """Export, build, verify, evaluate and report the integers of a plan, in place of what an earlier run wrote."""
    results = _Results()
    out.supersede((*WRITTEN, VERDICT_FILE))
    _write_models(out, planned, quantized, settings, backend, labelled, results, watch)
    planned.document["timings"] = {f"{stage}_s": round(s, 4) for stage, s in watch.seconds.items()}
    lock_files(planned.document, out.staged())
    document = report_document(
        planned.document,
        verdict=verdict_document(results.verdict) if results.verdict else None,
        engine=results.engine,
        heads=results.heads,
        evaluation=evaluation_document(results.evaluations),
        skipped=results.skipped,
        failures=results.failures,
    )
    out.write_json(PLAN_FILE, planned.document)
    write_report(out, document)
    return Deployment(out=settings.out, plan=planned.plan, report=document, failures=tuple(results.failures))


def write_report(out: OutputFolder, document: dict[str, Any]) -> None:
    """The report for machines and for people."""
    out.write_json(REPORT_FILE, document)
    out.write(REPORT_PAGE, write_html(document).encode("utf-8", "backslashreplace"))


def write_plan_files(out: OutputFolder, document: dict[str, Any]) -> None:
    """plan.json and the report of a plan that nothing has come of yet."""
    out.supersede((VERDICT_FILE,))
    out.write_json(PLAN_FILE, document)
    write_report(out, report_document(document))


def written_before(folder: Path) -> list[str]:
    """The files of a deployment that an earlier run left in a folder."""
    return [name for name in WRITTEN if (folder / name).exists()]


def _write_models(
    out: OutputFolder,
    planned: Decided,
    quantized: QuantizedGraph,
    settings: DeploySettings,
    backend: Backend | None,
    labelled: LabelledSet | None,
    results: _Results,
    watch: Stopwatch,
) -> None:
    with watch.stage("export"):
        files = write_onnx_files(out, planned.document, planned.plan, quantized, settings.targets, settings.arithmetic)
        results.skipped |= files.skipped
        results.failures += files.failures(settings.targets)
    if files.tensorrt is not None:
        with watch.stage("engine"):
            _write_engine(out, files.tensorrt, files.quantized, backend, settings.targets, planned.plan.budget, results)
    if files.program is not None:
        with watch.stage("verify"):
            results.verdict = verify(
                files.program,
                files.models["integer"],
                files.models["qdq"],
                planned.samples,
                threads=settings.plan.threads,
            )
        verdict = verdict_document(results.verdict)
        out.write_json(VERDICT_FILE, verdict)
        results.failures += verdict_failures(verdict, VERDICT_FILE)
    with watch.stage("heads"):
        _compare_heads(planned, files.models, settings.plan, results)
    if labelled is not None:
        models = {"float": planned.graph.model, **files.models}
        with watch.stage("eval"):
            results.evaluations = {
                name: evaluate(m, labelled, threads=settings.plan.threads) for name, m in models.items()
            }
        results.failures += accuracy_failures(results.evaluations, settings.max_drop)


def _compare_heads(
    planned: Decided, models: Mapping[str, onnx.ModelProto], settings: PlanSettings, results: _Results
) -> None:
    """Every head on samples that calibration and rounding left, where they left any."""
    calibration = planned.document["calibration"]
    further = calibration.get("rounding_samples", len(planned.samples)) - len(planned.samples)
    unused = spare_samples(planned.graph, settings, further)
    try:
        results.heads = fidelity_document(planned.graph, models, planned.samples, unused, threads=settings.threads)
    except BadInput as e:
        results.skipped["heads"] = e.what


def _write_engine(
    out: OutputFolder,
    model: onnx.ModelProto,
    quantized: QuantizedGraph,
    backend: Backend | None,
    targets: tuple[str, ...],
    budget: Budget,
    results: _Results,
) -> None:
    if backend is None:
        results.skipped["engine"] = no_backend_note()
        return
    try:
        build = build_engine(model, backend)
    except BackendMissing as e:
        results.skipped["engine"] = str(e)
        if backend.name in targets:
            results.failures.append(e)
        return
    if budget.size_of == "engine" and len(build.plan) > budget.size_bytes:
        results.failures.append(
            GateFailed(
                f"the engine takes {len(build.plan)} bytes, more than the budget of {budget.size_bytes}",
                where=ENGINE_FILE,
                fix="lower --size a little: refined weights made another engine than the one planned with",
            )
        )
    out.write(ENGINE_FILE, build.plan)
    results.engine = engine_record(build, quantized, backend)
    out.write_json(ENGINE_RECORD, results.engine)
