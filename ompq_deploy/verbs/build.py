"""The verb `build`: the engine of an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ompq_deploy.errors import BackendMissing
from ompq_deploy.export.tensorrt.backend import find_backend, no_backend_note
from ompq_deploy.export.tensorrt.engine import build_engine, engine_record
from ompq_deploy.export.tensorrt.graph import tensorrt_graph
from ompq_deploy.files.lock import PLAN_FILE
from ompq_deploy.files.outputs import OutputFolder
from ompq_deploy.files.plan_file import check_plan_fits
from ompq_deploy.finish import ENGINE_FILE, ENGINE_RECORD
from ompq_deploy.onnx_files import QDQ_FILE, TENSORRT_FILE
from ompq_deploy.pipeline import read_integers
from ompq_deploy.runtime.timing import Listener, Stopwatch
from ompq_deploy.verbs.earlier import must_have_written, read_plan
from ompq_deploy.verbs.renewal import commit_stage


def write_engine(folder: Path, target: str, model: Path | None, listener: Listener | None = None) -> dict[str, Any]:
    """The verb `build`: the engine of a folder that holds an earlier run; its record.

    The graph it is built from is made anew of the Q/DQ file's integers. The verdict on the files before is removed.
    """
    watch = Stopwatch(listener)
    backend = find_backend(target)
    if backend is None:
        raise BackendMissing(no_backend_note(), where=f"--target {target}", fix="install one of them")
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            graph, plan, document = read_plan(folder, model)
            check_plan_fits(plan, document, graph, folder / PLAN_FILE)
            must_have_written(folder, document, (QDQ_FILE,))
            quantized = read_integers(folder, graph, plan)
        with watch.stage("engine"):
            source = tensorrt_graph(quantized)
            out.write_model(TENSORRT_FILE, source)
            engine = build_engine(source, backend)
            record = engine_record(engine, quantized, backend)
            out.write(ENGINE_FILE, engine.plan)
            out.write_json(ENGINE_RECORD, record)
            commit_stage(out, document, record)
    return record
