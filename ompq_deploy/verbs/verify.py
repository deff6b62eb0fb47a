"""The verb `verify`: the files of an earlier run, checked against its plan and against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ompq_deploy.errors import BadInput, GateFailed
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import DYADIC
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.export.tensorrt.graph import tensorrt_graph
from ompq_deploy.files.lock import PLAN_FILE, VERDICT_FILE
from ompq_deploy.files.outputs import OutputFolder
from ompq_deploy.files.plan_file import check_plan_fits, load_plan
from ompq_deploy.finish import ENGINE_FILE, ENGINE_RECORD, WRITTEN
from ompq_deploy.onnx_files import INTEGER_FILE, QDQ_FILE, TENSORRT_FILE
from ompq_deploy.pipeline import read_integers
from ompq_deploy.prepare import load_model
from ompq_deploy.runtime.timing import Listener, Stopwatch
from ompq_deploy.verbs.earlier import must_have_written, read_plan, recorded_settings, samples_again
from ompq_deploy.verbs.renewal import recorded_engine, renew_report
from ompq_deploy.verify import verdict_document, verify
from ompq_deploy.verify.engine_outputs import (
    OutputComparison,
    check_outputs,
    compare_dump,
    outputs_document,
    read_dump,
)
from ompq_deploy.verify.files import check_calibration, check_engine, check_files, check_grids, check_integers
from ompq_deploy.verify.rebuilt import check_rebuilt, float_owners, integer_owners, qdq_owners
from ompq_deploy.verify.verdict import Check, not_compared, verdict_failures


def verify_folder(
    folder: Path,
    model: Path | None,
    engine_outputs: Path | None = None,
    listener: Listener | None = None,
    *,
    calib: Path | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """The verb `verify`: the files of an earlier run, checked against its plan and compared; the new verify.json.

    `engine_outputs` is a dump of what the folder's engine computed elsewhere, `calib` where the calibration data lie
    now. Files that cannot be read or run as those of the plan are a failed check; BadInput is for what is no file of
    the folder's. Nothing is written.
    """
    watch = Stopwatch(listener)
    needed = (QDQ_FILE, INTEGER_FILE, TENSORRT_FILE) if engine_outputs else (QDQ_FILE, INTEGER_FILE)
    with watch.stage("prepare"):
        graph, plan, recorded = read_plan(folder, model)
        must_have_written(folder, recorded, needed)
        dump = read_dump(engine_outputs, graph) if engine_outputs else None
        samples = samples_again(graph, recorded_settings(recorded, calib))
    with watch.stage("verify"):
        checks = [check_files(folder, recorded, WRITTEN), check_calibration(samples, recorded)]
        try:
            check_plan_fits(plan, recorded, graph, folder / PLAN_FILE)
            models = {name: load_model(folder / name) for name in needed}
            integer, qdq = models[INTEGER_FILE], models[QDQ_FILE]
            quantized = read_integers(folder, graph, plan, qdq)
            program = lower(quantized, recorded.get("arithmetic", DYADIC))
            checks += [
                check_integers(quantized, recorded),
                check_grids(folder, quantized),
                check_rebuilt(QDQ_FILE, qdq, qdq_model(quantized), qdq_owners(graph)),
                check_rebuilt(INTEGER_FILE, integer, integer_model(program), integer_owners(program)),
            ]
            if (folder / TENSORRT_FILE).exists():
                found = models[TENSORRT_FILE] if TENSORRT_FILE in needed else load_model(folder / TENSORRT_FILE)
                checks.append(check_rebuilt(TENSORRT_FILE, found, tensorrt_graph(quantized), float_owners(graph)))
            verdict = verify(program, integer, qdq, samples, threads=threads)
        except (BadInput, GateFailed) as e:
            unlike = Check(name="comparison", passed=False, detail=f"these are not the files of this plan: {e.what}")
            return verdict_document(not_compared(*checks, unlike)) | {"engine_outputs": []}
        if (folder / ENGINE_FILE).exists() or (folder / ENGINE_RECORD).exists():
            checks.append(check_engine(folder / ENGINE_FILE, folder / ENGINE_RECORD, quantized))
    compared: tuple[OutputComparison, ...] = ()
    if dump is not None:
        with watch.stage("outputs"):
            among = {name: models[name] for name in (TENSORRT_FILE, QDQ_FILE, INTEGER_FILE)}
            compared = compare_dump(dump, TENSORRT_FILE, among, graph, threads)
            checks.append(check_outputs(compared))
    document = verdict_document(replace(verdict, checks=(*checks, *verdict.checks)))
    return document | {"engine_outputs": outputs_document(compared)}


def write_verdict(folder: Path, verdict: dict[str, Any]) -> None:
    """verify.json, and the report in step with it. Raises BadInput where the folder cannot be written."""
    document = load_plan(folder / PLAN_FILE)[1]
    with OutputFolder(folder) as out:
        out.write_json(VERDICT_FILE, verdict)
        failures = verdict_failures(verdict, VERDICT_FILE)
        renew_report(out, document, verdict=verdict, engine=recorded_engine(folder, document), failures=failures)
