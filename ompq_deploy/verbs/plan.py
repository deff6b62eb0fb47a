"""The verbs `plan` and `pareto`: decide the widths, for one budget or for a range of them, and write no model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ompq_deploy.errors import BadInput
from ompq_deploy.files.outputs import OutputFolder
from ompq_deploy.finish import write_plan_files, written_before
from ompq_deploy.pipeline import calibrated_graph, make_plan, run_capture
from ompq_deploy.planning import allocation
from ompq_deploy.planning.choice import choose_losses, refines
from ompq_deploy.planning.pareto import front, front_document
from ompq_deploy.report.front import front_svg
from ompq_deploy.runtime.timing import Listener, Stopwatch
from ompq_deploy.settings import SOLVERS, PlanSettings

EXACT = SOLVERS[0]
"""The solver of all points of a front; the published ones have no proof of it."""


def write_plan(model: Path, settings: PlanSettings, folder: Path, listener: Listener | None = None) -> dict[str, Any]:
    """The verb `plan`: decide the widths, write plan.json and its report, return the plan's document. Raises BadInput
    where the folder holds a deployment, which that plan.json would no longer describe."""
    if written := written_before(folder):
        raise BadInput(
            f"an earlier run wrote {', '.join(written)} here, which another plan.json would not describe",
            where=str(folder),
            fix="give another --out, or remove that run first",
        )
    watch = Stopwatch(listener)
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            calibrated = calibrated_graph(model, settings, quantizing=False)
        planned = make_plan(calibrated, settings, watch, quantizing=False)
        write_plan_files(out, planned.document)
    return planned.document


def write_pareto(
    model: Path, settings: PlanSettings, over: str, points: int, folder: Path, listener: Listener | None = None
) -> dict[str, Any]:
    """The verb `pareto`: pareto.json and pareto.svg; the JSON document.

    Under the metric `auto` the contest is held once, at half the range, and its winner scores the whole front.
    """
    if settings.size_of == "engine":
        raise BadInput(
            "the front is over sizes known before an engine is built",
            where="--size-of engine",
            fix="count the file, the weights, or as the paper does",
        )
    settings = replace(settings, solver=EXACT)
    watch = Stopwatch(listener)
    with OutputFolder(folder) as out:
        with watch.stage("prepare"):
            calibrated = calibrated_graph(model, settings, quantizing=False)
            graph, samples = calibrated.graph, calibrated.samples
            problem = allocation(graph, settings)
        with watch.stage("capture"):
            captured = run_capture(graph, samples, settings, histograms=refines(settings))
        losses, _, _ = choose_losses(calibrated, captured, problem, over, settings, watch)
        with watch.stage("front"):
            found = front(problem.problem(losses), graph.layers, over, points, seed=settings.seed)
        facts = {"model": graph.source.name, "sha256": graph.sha256, "metric": losses.metric}
        document = front_document(found, over, {**facts, "settings": settings.recorded()})
        out.write_json("pareto.json", document)
        out.write("pareto.svg", front_svg(document).encode())
    return document
