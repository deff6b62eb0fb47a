"""The verbs of the command line that run one stage of the line on the files of an earlier run."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from ompq_deploy.artifacts import BitPlan, PreparedGraph, QuantizedGraph, Samples
from ompq_deploy.calib import Preprocess, input_specs, load_labelled
from ompq_deploy.errors import BackendMissing, BadInput, GateFailed
from ompq_deploy.evaluate.accuracy import evaluate
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import DYADIC
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.export.qdq_reader import as_stored, read_qdq
from ompq_deploy.export.tensorrt.backend import BACKENDS, Backend, find_backend, no_backend_note, probe
from ompq_deploy.export.tensorrt.engine import build_engine, engine_record
from ompq_deploy.export.tensorrt.graph import tensorrt_graph
from ompq_deploy.files.grids_file import GRIDS_FILE, grids_document, read_wide_grids
from ompq_deploy.files.lock import PLAN_FILE, VERDICT_FILE, layer_digests
from ompq_deploy.files.outputs import OutputFolder
from ompq_deploy.files.plan_file import check_plan_fits, check_samples_fit, load_plan, versions
from ompq_deploy.finish import (
    ENGINE_FILE,
    ENGINE_RECORD,
    INTEGER_FILE,
    QDQ_FILE,
    TENSORRT_FILE,
    WRITTEN,
    hold_budget,
    write_plan_files,
    written_before,
)
from ompq_deploy.pipeline import (
    calibrated_graph,
    calibration_samples,
    make_plan,
    prepare_graph,
    read_integers,
    run_capture,
    run_quantize,
)
from ompq_deploy.planning import allocation
from ompq_deploy.planning.choice import choose_losses, refines
from ompq_deploy.planning.pareto import front, front_document
from ompq_deploy.prepare import load_model
from ompq_deploy.quantize.reconstruct import CHECKPOINT_FILE
from ompq_deploy.renewal import commit_stage, files_kept, recorded_engine, renew_report
from ompq_deploy.report.front import front_svg
from ompq_deploy.runtime.timing import Listener, Stopwatch
from ompq_deploy.settings import PlanSettings
from ompq_deploy.verify import verdict_document, verify
from ompq_deploy.verify.engine_outputs import (
    OutputComparison,
    check_outputs,
    compare_outputs,
    outputs_document,
    read_dump,
)
from ompq_deploy.verify.files import check_calibration, check_engine, check_files, check_grids, check_integers
from ompq_deploy.verify.rebuilt import check_rebuilt, integer_owners, qdq_owners
from ompq_deploy.verify.verdict import Check, not_compared


def write_plan(model: Path, settings: PlanSettings, folder: Path, listener: Listener | None = None) -> dict[str, Any]:
    """The verb `plan`: decide the widths, write plan.json and its report, return the plan's document. Raises BadInput
    where the folder holds a deployment, which that plan.json would no longer describe."""
    if written := written_before(folder):
        raise BadInput(
            f"an earlier run wrote {', '.join(written)} here, which another plan.json would not describe",
            where=str(folder),
            fix="give another --out, or remove that run first",
        )
    with OutputFolder(folder) as out:
        planned = make_plan(model, settings, Stopwatch(listener), quantizing=False)
        write_plan_files(out, planned.document)
    return planned.document


def write_pareto(
    model: Path, settings: PlanSettings, over: str, points: int, folder: Path, listener: Listener | None = None
) -> dict[str, Any]:
    """The verb `pareto`: pareto.json and pareto.svg; the JSON document.

    Under the metric `auto` the contest is held once, at half the range, and its winner scores the whole front.
    """
    watch = Stopwatch(listener)
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            graph, samples, _ = calibrated_graph(model, settings)
            problem = allocation(graph, settings)
        with watch.stage("capture"):
            captured = run_capture(graph, samples, settings, histograms=refines(settings))
        losses, _, _ = choose_losses(graph, samples, captured, problem, over, settings, watch)
        with watch.stage("front"):
            found = front(problem.problem(losses), graph.layers, over, points, seed=settings.seed)
        facts = {"model": graph.source.name, "sha256": graph.sha256, "metric": losses.metric}
        document = front_document(found, over, {**facts, "settings": settings.recorded()})
        out.write_json("pareto.json", document)
        out.write("pareto.svg", front_svg(document).encode())
    return document


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
    settings = replace(_settings(document, calib), threads=threads)
    names = []
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            graph = _graph_again(document, settings, model)
            check_plan_fits(plan, document, graph, plan_path)
        if "finetune" in document:
            quantized = _trained_integers(plan_path, graph, plan, document)
        else:
            quantized = _planned_integers(graph, plan, document, settings, folder, watch)
        with watch.stage("export"):
            qdq = qdq_model(quantized)
            out.write_json(GRIDS_FILE, grids_document(quantized))
            quantized = as_stored(quantized, qdq, plan)
            document["integers"] = layer_digests(quantized)
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
        samples = _samples_again(graph, settings)
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


def build(folder: Path, target: str, model: Path | None, listener: Listener | None = None) -> dict[str, Any]:
    """The verb `build`: the engine of a folder that holds an earlier run; its record.

    The graph it is built from is made of the Q/DQ file's integers where it is missing. The verdict on the files before
    is removed.
    """
    watch = Stopwatch(listener)
    backend = find_backend(target)
    if backend is None:
        raise BackendMissing(no_backend_note(), where=f"--target {target}", fix="install one of them")
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            graph, plan, document = _read_plan(folder, model)
            check_plan_fits(plan, document, graph, folder / PLAN_FILE)
            _must_have_written(folder, document, (QDQ_FILE,))
            quantized = read_integers(folder, graph, plan)
        with watch.stage("engine"):
            source = folder / TENSORRT_FILE
            if not source.exists():
                source = out.write_model(TENSORRT_FILE, tensorrt_graph(quantized))
            engine = build_engine(load_model(source), backend)
            record = engine_record(engine, quantized, backend)
            out.write(ENGINE_FILE, engine.plan)
            out.write_json(ENGINE_RECORD, record)
            commit_stage(out, document, record)
    return record


def verify_folder(
    folder: Path,
    model: Path | None,
    engine_outputs: Path | None = None,
    listener: Listener | None = None,
    *,
    calib: Path | None = None,
) -> dict[str, Any]:
    """The verb `verify`: the files of an earlier run, checked against its plan and compared; the new verify.json.

    `engine_outputs` is a dump of what the folder's engine computed elsewhere, `calib` where the calibration data lie
    now. Files that cannot be read or run as those of the plan are a failed check; BadInput is for what is no file of
    the folder's. Nothing is written.
    """
    watch = Stopwatch(listener)
    needed = (QDQ_FILE, INTEGER_FILE, TENSORRT_FILE) if engine_outputs else (QDQ_FILE, INTEGER_FILE)
    with watch.stage("prepare"):
        graph, plan, recorded = _read_plan(folder, model)
        _must_have_written(folder, recorded, needed)
        dump = read_dump(engine_outputs, graph) if engine_outputs else None
        samples = _samples_again(graph, _settings(recorded, calib))
    with watch.stage("verify"):
        checks = [check_files(folder, recorded, WRITTEN), check_calibration(samples, recorded)]
        try:
            check_plan_fits(plan, recorded, graph, folder / PLAN_FILE)
            models = {name: load_model(folder / name) for name in needed}
            integer, qdq = models[INTEGER_FILE], models[QDQ_FILE]
            quantized = replace(read_qdq(qdq, graph, plan), wide_grids=read_wide_grids(folder, graph))
            program = lower(quantized, recorded.get("arithmetic", DYADIC))
            checks += [
                check_integers(quantized, recorded),
                check_grids(folder, quantized),
                check_rebuilt(QDQ_FILE, qdq, qdq_model(quantized), qdq_owners(graph)),
                check_rebuilt(INTEGER_FILE, integer, integer_model(program), integer_owners(program)),
            ]
            verdict = verify(program, integer, qdq, samples)
        except (BadInput, GateFailed) as e:
            unlike = Check(name="comparison", passed=False, detail=f"these are not the files of this plan: {e.what}")
            return verdict_document(not_compared(*checks, unlike)) | {"engine_outputs": []}
        if (folder / ENGINE_FILE).exists() or (folder / ENGINE_RECORD).exists():
            checks.append(check_engine(folder / ENGINE_FILE, folder / ENGINE_RECORD, quantized))
    compared: tuple[OutputComparison, ...] = ()
    if dump is not None:
        with watch.stage("outputs"):
            among = {name: models[name] for name in (TENSORRT_FILE, QDQ_FILE, INTEGER_FILE)}
            compared = compare_outputs(dump, TENSORRT_FILE, among, graph)
            checks.append(check_outputs(compared))
    document = verdict_document(replace(verdict, checks=(*checks, *verdict.checks)))
    return document | {"engine_outputs": outputs_document(compared)}


def write_verdict(folder: Path, verdict: dict[str, Any]) -> None:
    """verify.json, and the report in step with it. Raises BadInput where the folder cannot be written."""
    document = load_plan(folder / PLAN_FILE)[1]
    with OutputFolder(folder) as out:
        out.write_json(VERDICT_FILE, verdict)
        renew_report(out, document, verdict, recorded_engine(folder, document))


def _must_have_written(folder: Path, recorded: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raise BadInput where the run wrote none of a file that is to be read: that is no fault of its files."""
    for name in names:
        if not (folder / name).exists() and name not in recorded.get("files", {}):
            raise BadInput(
                f"this run wrote no {name}",
                where=str(folder),
                fix=f"write it with: ompq-deploy quantize {folder / PLAN_FILE} --target auto",
            )


def _read_plan(folder: Path, model: Path | None) -> tuple[PreparedGraph, BitPlan, dict[str, Any]]:
    """The float model's graph as that run had it, its plan, and its document."""
    plan, document = load_plan(folder / PLAN_FILE)
    settings = PlanSettings.from_recorded(document["settings"])
    return _graph_again(document, settings, model), plan, document


def _graph_again(document: dict[str, Any], settings: PlanSettings, model: Path | None) -> PreparedGraph:
    """The graph that an earlier run made of the float model, which lies at `model` now."""
    path = model or Path(document["model"]["path"])
    if not path.exists():
        raise BadInput(
            "the float model of this plan is not there", where=str(path), fix="name where it lies now with --model"
        )
    return prepare_graph(path, settings, document.get("smoothing"))


def _settings(document: dict[str, Any], calib: Path | None) -> PlanSettings:
    """The settings of a plan.json document, its calibration data found at `calib` where that is given."""
    settings = PlanSettings.from_recorded(document["settings"])
    return replace(settings, calib=calib) if calib else settings


def _samples_again(graph: PreparedGraph, settings: PlanSettings) -> Samples:
    """The calibration samples of an earlier run's settings."""
    if settings.calib is not None and not settings.calib.exists():
        raise BadInput(
            "the calibration data of this plan are not there",
            where=str(settings.calib),
            fix="name where they lie now with --calib",
        )
    return calibration_samples(graph, settings)


def eval_model(model: Path, data: Path, preprocess: Preprocess | None, threads: int) -> dict[str, Any]:
    """The verb `eval`: {"n", "top1", "top5"} of any of the three models."""
    loaded = load_model(model)
    result = evaluate(loaded, load_labelled(data, input_specs(loaded), preprocess=preprocess), threads=threads)
    return {"n": result.n, "top1": result.top1, "top5": result.top5}


def doctor() -> dict[str, Any]:
    """The verb `doctor`: versions installed, and the engine backends with why one is missing."""
    backends = {}
    for name in BACKENDS:
        found = probe(name)
        backends[name] = found.version if isinstance(found, Backend) else found.reason
    return {"packages": {"python": platform.python_version(), **versions()}, "backends": backends}
