"""The straight line from a float ONNX model to a verified mixed INT4/INT8 deployment.

Up to the integers; `finish.py` makes the files of them. The only module that imports every stage before that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from ompq_deploy.artifacts import BitPlan, Calibrated, Capture, PreparedGraph, QuantizedGraph, Samples
from ompq_deploy.capture import capture
from ompq_deploy.capture.channels import channel_ranges
from ompq_deploy.drawn import calibration_samples, evaluation_data, further_samples
from ompq_deploy.equivalence import refuse_other_function
from ompq_deploy.errors import BackendMissing, BadInput
from ompq_deploy.export.qdq_reader import read_qdq
from ompq_deploy.export.tensorrt.backend import Backend, find_backend, no_backend_note
from ompq_deploy.export.tensorrt.engine import build_engine
from ompq_deploy.export.tensorrt.graph import tensorrt_graph
from ompq_deploy.files.grids_file import read_symmetric_grids, read_wide_grids
from ompq_deploy.files.outputs import OutputFolder
from ompq_deploy.files.plan_file import note_further, plan_document
from ompq_deploy.finish import Decided, Deployment, finish, write_plan_files, written_before
from ompq_deploy.limits.engine_fit import fit_engine, refuse_too_small
from ompq_deploy.onnx_files import QDQ_FILE
from ompq_deploy.passes.equalize import equalize
from ompq_deploy.passes.input_sizes import refuse_open_sizes
from ompq_deploy.passes.smooth import Smoothing, candidates, find_smoothing, smooth
from ompq_deploy.planning import allocation
from ompq_deploy.planning.choice import choose_losses, choose_plan, judged_by_further, refines
from ompq_deploy.prepare import load_model, load_sized, prepare, rewritten
from ompq_deploy.quantize import QuantizeSettings, quantize
from ompq_deploy.quantize.reconstruct import CHECKPOINT_FILE
from ompq_deploy.report import report_document
from ompq_deploy.runtime.timing import Listener, Stopwatch
from ompq_deploy.settings import DeploySettings, PlanSettings


@dataclass(frozen=True, kw_only=True)
class Planned(Decided):
    """Everything known once the plan stands; what the later stages read."""

    capture: Capture


def make_plan(calibrated: Calibrated, settings: PlanSettings, watch: Stopwatch, *, quantizing: bool = True) -> Planned:
    """Capture, score and allocate. What only the quantization reads is captured if that is to follow."""
    graph, samples = calibrated.graph, calibrated.samples
    problem = allocation(graph, settings)
    with watch.stage("capture"):
        captured = run_capture(graph, samples, settings, histograms=quantizing or refines(settings))
    if settings.size_of == "engine":
        measure = engine_measure(graph, captured)
        refuse_too_small(problem.extremes(), problem.budget.size_bytes, measure)
        losses, contest, note = choose_losses(calibrated, captured, problem, "size", settings, watch)
        with watch.stage("engine fit"):
            plan = fit_engine(
                problem.sizes,
                problem.budget.size_bytes,
                measure,
                lambda sizes: replace(problem, sizes=sizes).plan(losses),
            )
    else:
        plan, contest, note = choose_plan(calibrated, captured, problem.plan, settings, watch)
    document = plan_document(plan, graph, samples, settings.recorded(), watch.seconds)
    document |= {
        "contest": contest.document() if contest else None,
        "metric_note": note,
        "smoothing": calibrated.smoothing,
    }
    return Planned(graph=graph, samples=samples, capture=captured, plan=plan, document=document)


def engine_measure(graph: PreparedGraph, captured: Capture) -> Callable[[BitPlan], int]:
    """A function that builds the engine of a plan, weights rounded to nearest, and tells its bytes; once for the same
    widths."""
    backend = find_backend("auto")
    if backend is None:
        raise BackendMissing(no_backend_note(), where="--size-of engine", fix="install one of them, or count the file")
    quick = QuantizeSettings(effort="quick", calibration_method="minmax", bias_correction=False)

    known: dict[tuple[int, ...], int] = {}

    def measure(plan: BitPlan) -> int:
        widths = tuple(plan.bits().values())
        if widths not in known:
            known[widths] = len(build_engine(tensorrt_graph(quantize(graph, captured, plan, quick)), backend).plan)
        return known[widths]

    return measure


def prepare_graph(model: Path, settings: PlanSettings, smoothing: Smoothing | None = None) -> PreparedGraph:
    """The canonical graph, its weights balanced across layers where the settings ask for it, its activations smoothed
    as a plan.json says."""
    graph = prepare(model, settings.input_shapes)
    if settings.quantize.equalize:
        graph = equalize(graph).graph
    return _smoothed(graph, smoothing or {})


def calibrated_graph(model: Path, settings: PlanSettings, *, quantizing: bool = True) -> Calibrated:
    """The graph, smoothed on the samples where the settings allow it. What only the quantization needs is loaded if
    that is to follow, or if the contest of plans has one. Raises BadInput where the graph computes something else than
    the file."""
    graph = prepare_graph(model, settings)
    samples = calibration_samples(graph, settings)
    smoothing: Smoothing = {}
    if settings.quantize.smooth and (among := candidates(graph)):
        axes = {candidate.tensor: candidate.axis for candidate in among}
        smoothing = find_smoothing(graph, among, channel_ranges(graph, axes, samples, settings.threads))
    graph = _smoothed(graph, smoothing)
    refuse_other_function(graph, samples, settings.input_shapes, settings.threads)
    wanted = quantizing or judged_by_further(graph, settings)
    further = further_samples(graph, samples, settings) if wanted else None
    return Calibrated(graph=graph, samples=samples, further=further, smoothing=smoothing)


def _smoothed(graph: PreparedGraph, smoothing: Smoothing) -> PreparedGraph:
    return rewritten(graph, smooth(graph, smoothing)) if smoothing else graph


def run_capture(graph: PreparedGraph, samples: Samples, settings: PlanSettings, *, histograms: bool = True) -> Capture:
    """One capture, with histograms if asked for and where the calibration method reads them."""
    wanted = histograms and settings.quantize.calibration_method != "minmax"
    return capture(graph, samples, histograms=wanted, threads=settings.threads)


def run_quantize(
    calibrated: Calibrated,
    captured: Capture,
    plan: BitPlan,
    settings: PlanSettings,
    document: dict[str, Any],
    *,
    folder: Path | None = None,
    tell: Listener | None = None,
) -> QuantizedGraph:
    """The integers of a plan, at the effort the settings ask for; the `document` of plan.json is told by which samples.
    A killed run with the same `folder` goes on from the CHECKPOINT_FILE there, which the caller removes when everything
    is written."""
    samples, further = calibrated.samples, calibrated.further
    note_further(document, samples, further)
    return quantize(
        calibrated.graph, captured, plan, settings.quantize, samples=samples, further=further, seed=settings.seed,
        threads=settings.threads, checkpoint=folder / CHECKPOINT_FILE if folder else None, tell=tell,
    )  # fmt: skip


def read_integers(
    folder: Path, graph: PreparedGraph, plan: BitPlan, qdq: onnx.ModelProto | None = None
) -> QuantizedGraph:
    """Those an earlier run wrote, from its Q/DQ file, which may be loaded already as `qdq`, and its grids.json."""
    return replace(
        read_qdq(load_model(folder / QDQ_FILE) if qdq is None else qdq, graph, plan),
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
        with watch.stage("prepare"):
            calibrated = calibrated_graph(model, settings.plan)
            labelled = evaluation_data(calibrated.graph, settings)
        planned = make_plan(calibrated, settings.plan, watch)
        with watch.stage("quantize"):
            quantized = run_quantize(
                calibrated, planned.capture, planned.plan, settings.plan, planned.document,
                folder=settings.out, tell=listener,
            )  # fmt: skip
        deployment = finish(out, planned, quantized, settings, backend, labelled, watch)
    (settings.out / CHECKPOINT_FILE).unlink(missing_ok=True)
    return deployment


def _only_planned(model: Path, settings: DeploySettings, watch: Stopwatch) -> Deployment:
    """A dry run. Its plan.json and report are written, but not where they would hide those of a deployment."""
    with watch.stage("prepare"):
        calibrated = calibrated_graph(model, settings.plan, quantizing=False)
        evaluation_data(calibrated.graph, settings)
    planned = make_plan(calibrated, settings.plan, watch)
    report = report_document(planned.document)
    if not written_before(settings.out):
        with OutputFolder(settings.out) as out:
            write_plan_files(out, planned.document)
    return Deployment(out=settings.out, plan=planned.plan, report=report)


def engine_backend(targets: tuple[str, ...], model: Path, input_shapes: Sequence[str]) -> Backend | None:
    """The engine backend asked for; that two are, that one named is missing, or that the model leaves open what an
    engine needs, is an error before any work is done."""
    named = sorted({target for target in targets if target.startswith("tensorrt")})
    if len(named) > 1:
        raise BadInput(
            f"a run writes one engine, {' and '.join(named)} are asked for",
            where="--target",
            fix="name one of them; `ompq-deploy build` makes that of the other in a copy of the folder",
        )
    if named:
        backend = find_backend(named[0])
        refuse_open_sizes(load_sized(model, input_shapes)[0])
        return backend
    return find_backend("auto") if "auto" in targets else None
