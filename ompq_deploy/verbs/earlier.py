"""What the verbs read of an earlier run: its plan, and the graph and samples it had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ompq_deploy.artifacts import BitPlan, PreparedGraph, Samples
from ompq_deploy.drawn import calibration_samples
from ompq_deploy.errors import BadInput
from ompq_deploy.files.lock import PLAN_FILE
from ompq_deploy.files.plan_file import load_plan
from ompq_deploy.pipeline import prepare_graph
from ompq_deploy.settings import PlanSettings


def read_plan(folder: Path, model: Path | None) -> tuple[PreparedGraph, BitPlan, dict[str, Any]]:
    """The float model's graph as that run had it, its plan, and its document."""
    plan, document = load_plan(folder / PLAN_FILE)
    settings = PlanSettings.from_recorded(document["settings"])
    return graph_again(document, settings, model), plan, document


def graph_again(document: dict[str, Any], settings: PlanSettings, model: Path | None) -> PreparedGraph:
    """The graph that an earlier run made of the float model, which lies at `model` now."""
    path = model or Path(document["model"]["path"])
    if not path.exists():
        raise BadInput(
            "the float model of this plan is not there", where=str(path), fix="name where it lies now with --model"
        )
    return prepare_graph(path, settings, document.get("smoothing"))


def recorded_settings(document: dict[str, Any], calib: Path | None) -> PlanSettings:
    """The settings of a plan.json document, its calibration data found at `calib` where that is given."""
    settings = PlanSettings.from_recorded(document["settings"])
    return replace(settings, calib=calib) if calib else settings


def samples_again(graph: PreparedGraph, settings: PlanSettings) -> Samples:
    """The calibration samples of an earlier run's settings."""
    if settings.calib is not None and not settings.calib.exists():
        raise BadInput(
            "the calibration data of this plan are not there",
            where=str(settings.calib),
            fix="name where they lie now with --calib",
        )
    return calibration_samples(graph, settings)


def must_have_written(folder: Path, recorded: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raise BadInput where the run wrote none of a file that is to be read: that is no fault of its files."""
    for name in names:
        if not (folder / name).exists() and name not in recorded.get("files", {}):
            raise BadInput(
                f"this run wrote no {name}",
                where=str(folder),
                fix=f"write it with: ompq-deploy quantize {folder / PLAN_FILE} --target auto",
            )
