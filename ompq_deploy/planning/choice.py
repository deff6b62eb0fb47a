"""The plan, or the losses, under the metric that the settings name or that wins the contest. Glue of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ompq_deploy.artifacts import BitPlan, Calibrated, Capture, Float32, PreparedGraph, Samples, Scores
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.export.qdq_names import QdqNames
from ompq_deploy.metrics import CONTESTANTS, REFINED, Evidence, round_weights, score
from ompq_deploy.planning import Allocation
from ompq_deploy.planning.contest import Contest, Refine, captured_rows, folds, hold_contest, split
from ompq_deploy.planning.pareto import halfway
from ompq_deploy.quantize import quantize
from ompq_deploy.quantize.columns import parts
from ompq_deploy.quantize.refined_rounding import refined_rounding
from ompq_deploy.runtime.batches import evenly, select
from ompq_deploy.runtime.runner import run_model
from ompq_deploy.runtime.timing import Listener, Stopwatch, within
from ompq_deploy.settings import PlanSettings

FINALISTS = {"default": 2, "extensive": len(CONTESTANTS)}
"""Plans refined beside that of `kl-refined` before one is chosen, on small networks, where each is refined four times;
all where once is enough. On other networks it is one or none."""
MOST_JUDGES = 256
"""Further samples that decide between the refined plans of small networks; on others as many as calibrate do."""
SMALL = 4e9
"""`work` up to which a plan is refined four times, or every plan once, and `kl` takes part beside `kl-refined`. Larger
networks cannot afford that in the two minutes of `default`."""
LARGE = 1e11
"""`work` from which under `default` no plan is refined for the contest, which then is `kl-refined`'s: minutes for
ResNet-18 and larger, where one refinement takes one."""
FORCED = "size"
"""Stands for all metrics where every layer takes its widest width."""
FORCED_NOTE = "all layers fit at the widest width, so that no metric was asked"


def refines(settings: PlanSettings) -> bool:
    """Whether the contest reckons with refinement: that of the run does."""
    return settings.metric.name == "auto" and settings.quantize.effort in FINALISTS


def judged_by_further(graph: PreparedGraph, settings: PlanSettings) -> bool:
    """Whether the contest refines plans, so that further samples may decide between them."""
    return refines(settings) and _affordable(settings.quantize.effort, work(graph, settings.samples))


def _affordable(effort: str, cost: float) -> bool:
    """Whether any plan is refined for the contest, each at this `work`."""
    return effort == "extensive" or cost < LARGE


def work(graph: PreparedGraph, samples: int) -> int:
    """What refining one plan costs: the multiply-accumulates of all samples, and K^3 for each covariance (K, K) of a
    layer's inputs, which is factored."""
    factored = sum(layer.groups * (layer.numel // layer.channels) ** 3 // parts(layer) ** 2 for layer in graph.layers)
    return samples * sum(layer.macs for layer in graph.layers) + factored


def choose_plan(
    calibrated: Calibrated,
    captured: Capture,
    solve: Callable[[Scores], BitPlan],
    settings: PlanSettings,
    watch: Stopwatch,
) -> tuple[BitPlan, Contest | None, str]:
    """The plan under the metric asked for, or the winner of the contest and its record; and the metric's note."""
    graph, samples = calibrated.graph, calibrated.samples
    if settings.metric.name != "auto":
        with watch.stage("score"):
            tell = within("score", watch.listener)
            scores = score(_evidence(graph, samples, captured, settings, tell), settings.metric)
        with watch.stage("solve"):
            return solve(scores), None, scores.note
    divided = split(samples)
    inner = Stopwatch()
    with watch.stage("contest"):
        tell = within("contest", watch.listener)
        evidence = _evidence(graph, divided.scored, captured_rows(captured, divided.scored_rows), settings, tell)

        def plan_under(metric: str) -> BitPlan:
            if tell:
                tell(metric, None)
            with inner.stage("score"):
                scores = score(evidence, replace(settings.metric, name=metric))
            with inner.stage("solve"):
                return solve(scores)

        forced = plan_under(FORCED)
        if set(forced.bits().values()) == {max(settings.widths)}:
            watch.seconds.update(inner.seconds)
            return forced, None, FORCED_NOTE
        left_out, refine = REFINED, None
        if refines(settings):
            cost = work(graph, len(samples))
            left_out = "" if cost <= SMALL else "kl"
            refine = _refinement(calibrated, captured, settings, cost, tell)
        contest = hold_contest(
            graph, plan_under, [metric for metric in CONTESTANTS if metric != left_out], divided, evidence.rounding,
            refine=refine, threads=settings.threads,
        )  # fmt: skip
    watch.seconds.update(inner.seconds)
    return contest.plan, contest, contest.note


def choose_losses(
    calibrated: Calibrated,
    captured: Capture,
    problem: Allocation,
    over: str,
    settings: PlanSettings,
    watch: Stopwatch,
) -> tuple[Scores, Contest | None, str]:
    """The losses under which plans at many limits on the resource `over` are made: those of the metric asked for, or of
    the winner of one contest, held at half the range of `over`; with its record, and the metric's note."""
    seen: dict[str, Scores] = {}

    def halfway_plan(scores: Scores) -> BitPlan:
        seen[scores.metric] = scores
        return problem.limited(over, halfway(problem.problem(scores), over)).plan(scores)

    plan, contest, note = choose_plan(calibrated, captured, halfway_plan, settings, watch)
    return seen[plan.metric], contest, note


def _evidence(
    graph: PreparedGraph, samples: Samples, captured: Capture, settings: PlanSettings, tell: Listener | None
) -> Evidence:
    return Evidence(
        graph=graph,
        rounding=round_weights(graph, settings.widths),
        samples=samples,
        capture=captured,
        refined=partial(refined_rounding, graph, bits=settings.widths, seed=settings.seed, threads=settings.threads),
        threads=settings.threads,
        tell=tell,
    )


def _refinement(
    calibrated: Calibrated, captured: Capture, settings: PlanSettings, cost: float, tell: Listener | None
) -> Refine:
    """The contest's `refine`: closed form, without copies of the images, and with gradients under `extensive` alone,
    which has the time. Plans are judged by further samples where those are more than may be left out in turn."""
    graph, samples, further = calibrated.graph, calibrated.samples, calibrated.further
    names = QdqNames(graph)
    effort, thorough = settings.quantize.effort, cost <= SMALL
    places = folds(len(samples), every=thorough)
    judges = select(samples, np.concatenate([unseen for _, unseen in places]))
    rounds = [(select(samples, seen), select(samples, unseen)) for seen, unseen in places]
    finalists = FINALISTS[effort] if thorough else int(_affordable(effort, cost))
    if further is not None and len(further) > len(judges):
        judges = evenly(further, MOST_JUDGES if thorough else len(samples))
        rounds = [(samples, judges)]
        finalists = len(CONTESTANTS) if thorough else finalists
    fisher = settings.quantize.fisher if effort == "extensive" else "off"
    rounding = replace(settings.quantize, effort="default", fisher=fisher, augment="none")

    def outputs(plan: BitPlan, tensors: Sequence[str]) -> list[Float32]:
        wanted = [names.tensor(name) for name in tensors]
        found = []
        for seen, unseen in rounds:
            quantized = quantize(
                graph, captured, plan, rounding,
                samples=seen, seed=settings.seed, threads=settings.threads, tell=within(f"plan of {plan.metric}", tell),
            )  # fmt: skip
            found.append(run_model(qdq_model(quantized), wanted, unseen, graph.batch, settings.threads))
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    return Refine(
        samples=judges,
        outputs=outputs,
        finalists=finalists,
        seeded=(REFINED,),
    )
