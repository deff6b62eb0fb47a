"""The verb `finetune`: a plan's integers, trained, then written and judged as `deploy` does."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ompq_deploy.artifacts import BitPlan, PreparedGraph, QuantizedGraph, Samples
from ompq_deploy.drawn import calibration_samples, evaluation_data, with_further
from ompq_deploy.files.outputs import OutputFolder
from ompq_deploy.files.plan_file import check_plan_fits, check_samples_fit, load_plan
from ompq_deploy.finetune.settings import FinetuneSettings
from ompq_deploy.finish import Decided, Deployment, finish
from ompq_deploy.pipeline import engine_backend, prepare_graph, read_integers, run_capture, run_quantize
from ompq_deploy.runtime.threads import resolved
from ompq_deploy.runtime.timing import Listener, Stopwatch
from ompq_deploy.settings import DeploySettings, PlanSettings
from ompq_deploy.torch_graph import require_torch


def finetune(model: Path, settings: FinetuneSettings, listener: Listener | None = None) -> Deployment | None:
    """Train the integers of a plan, then export, build, verify, evaluate and report them.

    Of several processes only the first writes and tells; the others return None. Raises OmpqError as `deploy` does.
    """
    require_torch("finetune")
    import torch

    from ompq_deploy.finetune.distributed import joined
    from ompq_deploy.finetune.loop import train
    from ompq_deploy.finetune.task import make_task

    if threads := resolved(settings.threads):
        torch.set_num_threads(threads)
    plan, document = load_plan(settings.plan)
    judging = _judging(settings, PlanSettings.from_recorded(document["settings"]))
    preprocess = settings.preprocess or judging.plan.preprocess
    backend = engine_backend(settings.targets, model, judging.plan.input_shapes)
    with joined(settings.training.device) as world:
        tell = listener if world.first else None
        watch = Stopwatch(tell)
        with OutputFolder(settings.out) if world.first else nullcontext() as out:
            with watch.stage("prepare"):
                graph = prepare_graph(model, judging.plan, document.get("smoothing"))
                check_plan_fits(plan, document, graph, settings.plan)
                samples = calibration_samples(graph, judging.plan)
                check_samples_fit(document, samples)
                labelled = evaluation_data(graph, replace(judging, plan=replace(judging.plan, preprocess=preprocess)))
            with watch.stage("quantize"):
                start = world.share(
                    lambda: _starting_integers(graph, plan, samples, judging.plan, document, settings.start)
                )
            with watch.stage("data"):
                task = make_task(start, samples, settings, world, preprocess)
            with watch.stage("finetune"):
                outcome = train(task, world, resume=settings.resume, tell=tell)
            if out is None:
                return None
            document["finetune"] = {**task.run, **outcome.record}
            decided = Decided(graph=graph, samples=samples, plan=plan, document=document)
            deployment = finish(out, decided, outcome.quantized, judging, backend, labelled, watch)
        task.checkpoint.unlink(missing_ok=True)
    return deployment


def _judging(settings: FinetuneSettings, planning: PlanSettings) -> DeploySettings:
    """The settings of the plan's run, with what is to be written and how it is judged this time."""
    return DeploySettings(
        plan=replace(planning, threads=settings.threads),
        out=settings.out,
        targets=settings.targets,
        eval_data=settings.eval_data,
        max_drop=settings.max_drop,
    )


def _starting_integers(
    graph: PreparedGraph,
    plan: BitPlan,
    samples: Samples,
    settings: PlanSettings,
    document: dict[str, Any],
    folder: Path | None,
) -> QuantizedGraph:
    """Those of an earlier run's folder, or as the plan's settings round them."""
    if folder is None:
        calibrated = with_further(graph, samples, settings)
        return run_quantize(calibrated, run_capture(graph, samples, settings), plan, settings, document)
    return read_integers(folder, graph, plan)
