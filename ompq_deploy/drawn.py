"""The samples that a run draws of its data: for calibration, further ones, and those the results are judged on."""

from __future__ import annotations

from ompq_deploy.artifacts import Calibrated, PreparedGraph, Samples
from ompq_deploy.calib import LabelledSet, input_specs, load_labelled, load_samples, load_unused
from ompq_deploy.evaluate.accuracy import refuse_unsuited
from ompq_deploy.evaluate.fidelity import MOST_SAMPLES
from ompq_deploy.quantize import most_rows
from ompq_deploy.settings import DeploySettings, PlanSettings


def calibration_samples(graph: PreparedGraph, settings: PlanSettings) -> Samples:
    """The samples the settings ask for, in the form of the model's inputs."""
    return load_samples(
        settings.calib,
        input_specs(graph.model),
        count=settings.samples,
        preprocess=settings.preprocess,
        seed=settings.seed,
    )


def further_samples(graph: PreparedGraph, samples: Samples, settings: PlanSettings) -> Samples | None:
    """More samples of the same data to choose the plan and to round weights by: as many as the settings allow, rounding
    takes and there are, but for those that heads are judged on."""
    room = min(settings.rounding_samples, most_rows(graph)) - len(samples)
    if settings.quantize.effort == "quick" or room < 1:
        return None
    return _unused(graph, settings, room, settings.samples, keep=MOST_SAMPLES)


def with_further(graph: PreparedGraph, samples: Samples, settings: PlanSettings) -> Calibrated:
    """A graph smoothed before, with its samples and further ones."""
    return Calibrated(graph=graph, samples=samples, further=further_samples(graph, samples, settings))


def spare_samples(graph: PreparedGraph, settings: PlanSettings, further: int) -> Samples | None:
    """Those to judge heads on, of what calibration and `further` samples left; None where they left none."""
    return _unused(graph, settings, MOST_SAMPLES, settings.samples, further)


def _unused(graph: PreparedGraph, settings: PlanSettings, count: int, *used: int, keep: int = 0) -> Samples | None:
    return load_unused(
        settings.calib,
        input_specs(graph.model),
        count=count,
        used=used,
        keep=keep,
        preprocess=settings.preprocess,
        seed=settings.seed,
    )


def evaluation_data(graph: PreparedGraph, settings: DeploySettings) -> LabelledSet | None:
    """What the models written are to be judged on, if anything; found unsuited before any work is done."""
    if settings.eval_data is None:
        return None
    labelled = load_labelled(settings.eval_data, input_specs(graph.model), preprocess=settings.plan.preprocess)
    refuse_unsuited(graph.model, labelled, threads=settings.plan.threads)
    return labelled
