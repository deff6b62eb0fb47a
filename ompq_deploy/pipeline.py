"""The straight line from a float ONNX model to a verified mixed INT4/INT8 deployment.

The only module that imports every stage. Each function here is one verb of the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from ompq_deploy.artifacts import (
    BitPlan,
    Budget,
    Capture,
    PreparedGraph,
    QuantizedGraph,
    Samples,
)
from ompq_deploy.calib import LabelledSet, input_specs, load_labelled, load_samples, load_unused
from ompq_deploy.capture import capture
from ompq_deploy.capture.channels import channel_ranges
from ompq_deploy.choice import choose_losses, choose_plan, refines
from ompq_deploy.engine_fit import fit_engine, refuse_too_small
from ompq_deploy.equivalence import refuse_other_function
from ompq_deploy.errors import BackendMissing, BadInput, GateFailed, OmpqError
from ompq_deploy.evaluate import Evaluation, accuracy_failures, evaluate, evaluation_document
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import IntegerProgram
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.export.qdq_reader import as_stored, read_qdq
from ompq_deploy.export.tensorrt.backend import Backend, find_backend, no_backend_note
from ompq_deploy.export.tensorrt.engine import build_engine, engine_record
from ompq_deploy.export.tensorrt.graph import tensorrt_graph
from ompq_deploy.fidelity import MOST_SAMPLES, fidelity_document
from ompq_deploy.grids_file import GRIDS_FILE, grids_document, read_symmetric_grids, read_wide_grids
from ompq_deploy.lock import PLAN_FILE, VERDICT_FILE, layer_digests, lock_files
from ompq_deploy.outputs import OutputFolder
from ompq_deploy.passes.equalize import equalize
from ompq_deploy.passes.input_sizes import refuse_open_sizes
from ompq_deploy.passes.smooth import Smoothing, candidates, find_smoothing, smooth
from ompq_deploy.plan_file import plan_document
from ompq_deploy.planning import allocation
from ompq_deploy.prepare import load_model, load_sized, prepare, rewritten
from ompq_deploy.quantize import QuantizeSettings, quantize
from ompq_deploy.quantize.reconstruct import CHECKPOINT_FILE
from ompq_deploy.report import report_document, write_html
from ompq_deploy.settings import DeploySettings, PlanSettings
from ompq_deploy.timing import Listener, Stopwatch
from ompq_deploy.verify import verdict_document, verify
from ompq_deploy.verify.verdict import Verdict, verdict_failures

QDQ_FILE = "model.qdq.onnx"
INTEGER_FILE = "model.int.onnx"
TENSORRT_FILE = "model.trt.onnx"
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
class Planned(Decided):
    """Everything known once the plan stands; what the later stages read."""

    capture: Capture


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


def make_plan(model: Path, settings: PlanSettings, watch: Stopwatch, *, quantizing: bool = True) -> Planned:
    """Prepare, capture, score and allocate. What only the quantization reads is captured if that is to follow."""
    with watch.stage("prepare"):
        graph, samples, smoothing = calibrated_graph(model, settings)
        problem = allocation(graph, settings)
    with watch.stage("capture"):
        captured = run_capture(graph, samples, settings, histograms=quantizing or refines(settings))
    if settings.size_of == "engine":
        smallest, measure = problem.smallest(), engine_measure(graph, captured)
        refuse_too_small(smallest, problem.budget.size_bytes, measure)
        losses, contest, note = choose_losses(graph, samples, captured, problem, "size", settings, watch)
        with watch.stage("engine fit"):
            plan = fit_engine(
                problem.sizes,
                problem.budget.size_bytes,
                measure,
                lambda sizes: replace(problem, sizes=sizes).plan(losses),
            )
    else:
        plan, contest, note = choose_plan(graph, samples, captured, problem.plan, settings, watch)
    document = plan_document(plan, graph, samples, settings.recorded(), watch.seconds)
    document |= {"contest": contest.document() if contest else None, "metric_note": note, "smoothing": smoothing}
    return Planned(graph=graph, samples=samples, capture=captured, plan=plan, document=document)


def engine_measure(graph: PreparedGraph, captured: Capture) -> Callable[[BitPlan], int]:
    """A function that builds the engine of a plan, weights rounded to nearest, and tells its bytes."""
    backend = find_backend("auto")
    if backend is None:
        raise BackendMissing(no_backend_note(), where="--size-of engine", fix="install one of them, or count the file")
    quick = QuantizeSettings(effort="quick", calibration_method="minmax", bias_correction=False)

    def measure(plan: BitPlan) -> int:
        return len(build_engine(tensorrt_graph(quantize(graph, captured, plan, quick)), backend).plan)

    return measure


def prepare_graph(model: Path, settings: PlanSettings, smoothing: Smoothing | None = None) -> PreparedGraph:
    """The canonical graph, its weights balanced across layers where the settings ask for it, its activations smoothed
    as a plan.json says."""
    graph = prepare(model, settings.input_shapes)
    if settings.quantize.equalize:
        graph = equalize(graph).graph
    return _smoothed(graph, smoothing or {})


def calibrated_graph(model: Path, settings: PlanSettings) -> tuple[PreparedGraph, Samples, Smoothing]:
    """The graph, smoothed on the samples where the settings allow it, the samples, and what was smoothed."""
    graph = prepare_graph(model, settings)
    samples = calibration_samples(graph, settings)
    refuse_other_function(graph, samples, settings.input_shapes, settings.threads)
    if not settings.quantize.smooth:
        return graph, samples, {}
    among = candidates(graph)
    axes = {candidate.tensor: candidate.axis for candidate in among}
    smoothing = find_smoothing(graph, among, channel_ranges(graph, axes, samples, settings.threads)) if axes else {}
    return _smoothed(graph, smoothing), samples, smoothing


def _smoothed(graph: PreparedGraph, smoothing: Smoothing) -> PreparedGraph:
    return rewritten(graph, smooth(graph, smoothing)) if smoothing else graph


def calibration_samples(graph: PreparedGraph, settings: PlanSettings) -> Samples:
    """The samples the settings ask for, in the form of the model's inputs."""
    return load_samples(
        settings.calib,
        input_specs(graph.model),
        count=settings.samples,
        preprocess=settings.preprocess,
        seed=settings.seed,
    )


def run_capture(graph: PreparedGraph, samples: Samples, settings: PlanSettings, *, histograms: bool = True) -> Capture:
    """One capture, with histograms if asked for and where the calibration method reads them."""
    wanted = histograms and settings.quantize.calibration_method != "minmax"
    return capture(graph, samples, histograms=wanted, threads=settings.threads)


def run_quantize(
    graph: PreparedGraph,
    captured: Capture,
    plan: BitPlan,
    samples: Samples,
    settings: PlanSettings,
    *,
    folder: Path | None = None,
    tell: Listener | None = None,
) -> QuantizedGraph:
    """The integers of a plan, at the effort the settings ask for. A killed run with the same `folder` goes on from the
    CHECKPOINT_FILE there, which the caller removes when everything is written."""
    return quantize(
        graph, captured, plan, settings.quantize, samples=samples, seed=settings.seed, threads=settings.threads,
        checkpoint=folder / CHECKPOINT_FILE if folder else None, tell=tell,
    )  # fmt: skip


def read_integers(folder: Path, graph: PreparedGraph, plan: BitPlan) -> QuantizedGraph:
    """Those an earlier run wrote, from its Q/DQ file and its grids.json."""
    return replace(
        read_qdq(load_model(folder / QDQ_FILE), graph, plan),
        wide_grids=read_wide_grids(folder, graph),
        calibrated_symmetric=read_symmetric_grids(folder, graph),
    )


def deploy(model: Path, settings: DeploySettings, listener: Listener | None = None) -> Deployment:
    """The whole job; of a dry run only the plan and its report. Raises OmpqError for input, budget and environment;
    gates that fail are in the result."""
    watch = Stopwatch(listener)
    backend = engine_backend(settings.targets, model, settings.plan.input_shapes)
    if settings.dry_run:
        return _only_planned(model, settings, watch)
    with OutputFolder(settings.out) as out:
        planned = make_plan(model, settings.plan, watch)
        labelled = evaluation_data(planned.graph, settings)
        with watch.stage("quantize"):
            quantized = run_quantize(
                planned.graph, planned.capture, planned.plan, planned.samples, settings.plan,
                folder=settings.out, tell=listener,
            )  # fmt: skip
        deployment = finish(out, planned, quantized, settings, backend, labelled, watch)
    (settings.out / CHECKPOINT_FILE).unlink(missing_ok=True)
    return deployment


def _only_planned(model: Path, settings: DeploySettings, watch: Stopwatch) -> Deployment:
    """A dry run. Its plan.json and report are written, but not where they would hide those of a deployment."""
    planned = make_plan(model, settings.plan, watch)
    evaluation_data(planned.graph, settings)
    report = report_document(planned.document)
    if not written_before(settings.out):
        with OutputFolder(settings.out) as out:
            write_plan_files(out, planned.document)
    return Deployment(out=settings.out, plan=planned.plan, report=report)


def write_plan_files(out: OutputFolder, document: dict[str, Any]) -> None:
    """plan.json and the report of a plan that nothing has come of yet."""
    out.supersede((VERDICT_FILE,))
    out.write_json(PLAN_FILE, document)
    write_report(out, report_document(document))


def written_before(folder: Path) -> list[str]:
    """The files of a deployment that an earlier run left in a folder."""
    return [name for name in WRITTEN if (folder / name).exists()]


def evaluation_data(graph: PreparedGraph, settings: DeploySettings) -> LabelledSet | None:
    """What the models written are to be judged on, if anything."""
    if settings.eval_data is None:
        return None
    return load_labelled(settings.eval_data, input_specs(graph.model), preprocess=settings.plan.preprocess)


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
    out.write(REPORT_PAGE, write_html(document).encode())


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
    models: dict[str, onnx.ModelProto] = {"float": planned.graph.model}
    with watch.stage("export"):
        models["qdq"] = qdq_model(quantized)
        path = out.write_model(QDQ_FILE, models["qdq"])
        out.write_json(GRIDS_FILE, grids_document(quantized))
        planned.document["achieved"]["file_bytes"] = path.stat().st_size
        quantized = as_stored(quantized, models["qdq"], planned.plan)
        planned.document["integers"] = layer_digests(quantized)
        hold_budget(planned.plan, path.stat().st_size)
        program = _integer_program(quantized, settings, results)
        if program is not None:
            planned.document["arithmetic"] = settings.arithmetic
            models["integer"] = integer_model(program)
            out.write_model(INTEGER_FILE, models["integer"])
    if _wants_engine(settings.targets):
        with watch.stage("engine"):
            _write_engine(out, quantized, backend, settings.targets, planned.plan.budget, results)
    if program is not None:
        with watch.stage("verify"):
            results.verdict = verify(program, models["integer"], models["qdq"], planned.samples)
        verdict = verdict_document(results.verdict)
        out.write_json(VERDICT_FILE, verdict)
        results.failures += verdict_failures(verdict, VERDICT_FILE)
    with watch.stage("heads"):
        _compare_heads(planned, models, settings.plan, results)
    if labelled is not None:
        with watch.stage("eval"):
            results.evaluations = {
                name: evaluate(m, labelled, threads=settings.plan.threads) for name, m in models.items()
            }
        results.failures += accuracy_failures(results.evaluations, settings.max_drop)


def _compare_heads(
    planned: Decided, models: Mapping[str, onnx.ModelProto], settings: PlanSettings, results: _Results
) -> None:
    """Every head on samples the calibration left, where it left any."""
    unused = load_unused(
        settings.calib,
        input_specs(planned.graph.model),
        count=MOST_SAMPLES,
        used=settings.samples,
        preprocess=settings.preprocess,
        seed=settings.seed,
    )
    deployed = {name: model for name, model in models.items() if name != "float"}
    try:
        results.heads = fidelity_document(planned.graph, deployed, planned.samples, unused, threads=settings.threads)
    except BadInput as e:
        results.skipped["heads"] = e.what


def hold_budget(plan: BitPlan, file_bytes: int) -> None:
    """The promise of the tool, checked on the bytes that were written."""
    if plan.budget.size_of == "file" and file_bytes > plan.budget.size_bytes:
        raise OmpqError(
            f"the file takes {file_bytes} bytes, more than the budget of {plan.budget.size_bytes}",
            where=QDQ_FILE,
            fix="this is a defect of ompq-deploy: please report it with the model's plan.json",
        )


def _integer_program(quantized: QuantizedGraph, settings: DeploySettings, results: _Results) -> IntegerProgram | None:
    if not {"auto", "integer"} & set(settings.targets):
        return None
    try:
        return lower(quantized, settings.arithmetic)
    except BackendMissing as e:
        results.skipped["integer"] = str(e)
        if "integer" in settings.targets:
            results.failures.append(e)
        return None


def engine_backend(targets: tuple[str, ...], model: Path, input_shapes: Sequence[str]) -> Backend | None:
    """The engine backend asked for; that one named is missing, or that the model leaves open what an engine needs, is
    an error before any work is done."""
    named = [target for target in targets if target.startswith("tensorrt")]
    if named:
        backend = find_backend(named[0])
        refuse_open_sizes(load_sized(model, input_shapes)[0])
        return backend
    return find_backend("auto") if "auto" in targets else None


def _wants_engine(targets: tuple[str, ...]) -> bool:
    return any(target == "auto" or target.startswith("tensorrt") for target in targets)


def _write_engine(
    out: OutputFolder,
    quantized: QuantizedGraph,
    backend: Backend | None,
    targets: tuple[str, ...],
    budget: Budget,
    results: _Results,
) -> None:
    model = tensorrt_graph(quantized)
    out.write_model(TENSORRT_FILE, model)
    if backend is None:
        results.skipped["engine"] = no_backend_note()
        return
    try:
        build = build_engine(model, backend)
    except BackendMissing as e:
        results.skipped["engine"] = str(e)
        if "auto" not in targets:
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
