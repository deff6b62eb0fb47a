"""The verbs of the command line that run one stage of the line on the files of an earlier run."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from ompq_deploy.artifacts import BitPlan, QuantizedGraph, Scores
from ompq_deploy.calib import Preprocess, input_specs, load_labelled
from ompq_deploy.errors import BackendMissing
from ompq_deploy.evaluate import evaluate
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.export.qdq_reader import read_qdq
from ompq_deploy.export.tensorrt.backend import BACKENDS, Backend, find_backend, no_backend_note, probe
from ompq_deploy.export.tensorrt.engine import build_engine, engine_record
from ompq_deploy.export.tensorrt.graph import tensorrt_graph
from ompq_deploy.outputs import OutputFolder
from ompq_deploy.pareto import front, front_document, halfway
from ompq_deploy.pipeline import (
    ENGINE_FILE,
    INTEGER_FILE,
    QDQ_FILE,
    TENSORRT_FILE,
    calibration_samples,
    choose_plan,
    hold_budget,
    make_plan,
    prepare_graph,
    run_capture,
    run_quantize,
)
from ompq_deploy.plan_file import check_plan_fits, load_plan, versions
from ompq_deploy.planning import allocation
from ompq_deploy.prepare import load_model, prepare
from ompq_deploy.report.front import front_svg
from ompq_deploy.settings import PlanSettings
from ompq_deploy.timing import Listener, Stopwatch
from ompq_deploy.verify import verdict_document, verify


def write_plan(model: Path, settings: PlanSettings, folder: Path, listener: Listener | None = None) -> dict[str, Any]:
    """The verb `plan`: decide the widths, write plan.json, return its document."""
    with OutputFolder(folder) as out:
        planned = make_plan(model, settings, Stopwatch(listener), quantizing=False)
        out.write_json("plan.json", planned.document)
    return planned.document


def write_pareto(
    model: Path, settings: PlanSettings, over: str, points: int, folder: Path, listener: Listener | None = None
) -> dict[str, Any]:
    """The verb `pareto`: pareto.json and pareto.svg; the JSON document.

    Under the metric `auto` the contest is held once, at half the range, and its winner scores the whole front.
    """
    watch = Stopwatch(listener)
    seen: dict[str, Scores] = {}
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            graph = prepare(model)
            problem = allocation(graph, settings)
            samples = calibration_samples(graph, settings)
        with watch.stage("capture"):
            captured = run_capture(graph, samples, settings, histograms=False)

        def plan(scores: Scores) -> BitPlan:
            seen[scores.metric] = scores
            return problem.limited(over, halfway(problem.problem(scores), over)).plan(scores)

        metric = choose_plan(graph, samples, captured, plan, settings, watch)[0].metric
        with watch.stage("front"):
            found = front(problem.problem(seen[metric]), graph.layers, over, points, seed=settings.seed)
        facts = {"model": graph.source.name, "sha256": graph.sha256, "metric": metric, "settings": settings.recorded()}
        document = front_document(found, over, facts)
        out.write_json("pareto.json", document)
        out.write("pareto.svg", front_svg(document).encode())
    return document


def write_models(
    plan_path: Path, model: Path | None, targets: tuple[str, ...], folder: Path, listener: Listener | None = None
) -> list[Path]:
    """The verb `quantize`: the ONNX files of an earlier plan; their paths."""
    watch = Stopwatch(listener)
    plan, document = load_plan(plan_path)
    settings = PlanSettings.from_recorded(document["settings"])
    names = []
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            graph = prepare_graph(model or Path(document["model"]["path"]), settings)
            check_plan_fits(plan, document, graph, plan_path)
            samples = calibration_samples(graph, settings)
        with watch.stage("capture"):
            captured = run_capture(graph, samples, settings)
        with watch.stage("quantize"):
            quantized = run_quantize(graph, captured, plan, samples, settings)
        with watch.stage("export"):
            if {"auto", "onnx"} & set(targets):
                path = out.write_model(QDQ_FILE, qdq_model(quantized))
                hold_budget(plan, path.stat().st_size)
                names.append(QDQ_FILE)
            if {"auto", "integer"} & set(targets):
                out.write_model(INTEGER_FILE, integer_model(lower(quantized)))
                names.append(INTEGER_FILE)
            if any(target.startswith("tensorrt") or target == "auto" for target in targets):
                out.write_model(TENSORRT_FILE, tensorrt_graph(quantized))
                names.append(TENSORRT_FILE)
    return [folder / name for name in names]


def build(folder: Path, target: str, model: Path | None, listener: Listener | None = None) -> dict[str, Any]:
    """The verb `build`: the engine of a folder that holds an earlier run; its record."""
    watch = Stopwatch(listener)
    backend = find_backend(target)
    if backend is None:
        raise BackendMissing(no_backend_note(), where=f"--target {target}", fix="install one of them")
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            quantized, _ = _read_run(folder, model)
        with watch.stage("engine"):
            engine = build_engine(load_model(folder / TENSORRT_FILE), backend)
            record = engine_record(engine, quantized, backend)
            out.write(ENGINE_FILE, engine.plan)
            out.write_json("engine.json", record)
    return record


def verify_folder(folder: Path, model: Path | None, listener: Listener | None = None) -> dict[str, Any]:
    """The verb `verify`: the files of an earlier run, read back and compared; the new verify.json."""
    watch = Stopwatch(listener)
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            quantized, settings = _read_run(folder, model)
            samples = calibration_samples(quantized.graph, settings)
        with watch.stage("verify"):
            integer, qdq = load_model(folder / INTEGER_FILE), load_model(folder / QDQ_FILE)
            document = verdict_document(verify(lower(quantized), integer, qdq, samples))
            out.write_json("verify.json", document)
    return document


def _read_run(folder: Path, model: Path | None) -> tuple[QuantizedGraph, PlanSettings]:
    """The quantized graph of an earlier run, from its plan, its float model and its Q/DQ file."""
    path = folder / "plan.json"
    plan, document = load_plan(path)
    graph = prepare(model or Path(document["model"]["path"]))
    check_plan_fits(plan, document, graph, path)
    quantized = read_qdq(load_model(folder / QDQ_FILE), graph, plan)
    return quantized, PlanSettings.from_recorded(document["settings"])


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
