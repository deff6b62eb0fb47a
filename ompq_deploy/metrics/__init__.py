"""Layer sensitivities, one per file: each turns what is known of a network into `Scores`.

The files hold the formulas. Here is the glue: what each metric is given, and how many samples it can afford. Work is
bounded by counts, not by a clock, so that a plan is the same on every run and machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ompq_deploy import torch_graph
from ompq_deploy.artifacts import Capture, PreparedGraph, Samples, Scores
from ompq_deploy.errors import BadInput
from ompq_deploy.evaluate.heads import Heads
from ompq_deploy.metrics import baselines, orm
from ompq_deploy.metrics.granularity import GRANULARITIES, groups
from ompq_deploy.metrics.hawq import hawq
from ompq_deploy.metrics.mpqco import mpqco
from ompq_deploy.metrics.rounding import Rounding, round_weights
from ompq_deploy.runtime.batches import evenly, select, spread
from ompq_deploy.runtime.timing import Listener, within

if TYPE_CHECKING:
    from ompq_deploy.metrics.gradients import Problem

__all__ = [
    "CONTESTANTS",
    "GRANULARITIES",
    "METRICS",
    "REFINED",
    "Evidence",
    "MetricSettings",
    "round_weights",
    "score",
]

REFINED = "kl-refined"
"""`kl` of refined weights."""

FEWEST_SAMPLES = 8
KL_WORK = 1.5e11
HAWQ_WORK = 8e10
"""Multiply-accumulates a metric may spend; a few seconds on two cores. Never fewer than `FEWEST_SAMPLES`."""
PROBES = 4
PASSES_PER_PROBE = 8
"""A Hessian-vector product costs about as much as 8 forward passes."""


@dataclass(frozen=True, kw_only=True)
class MetricSettings:
    """Which sensitivity, and its parameters. `auto` is the contest of all (`planning/contest.py`)."""

    name: str = "auto"
    estimator: str = "debiased"
    form: str = "concave"
    function: str = "exp"
    beta: float = orm.DEFAULT_BETA
    granularity: str = "layer"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a metric may look at. `capture` is read by `orm` only, `samples` by `mpqco`, `hawq` and `kl`. `kl-refined`
    scores, in place of `rounding`, what `refined(samples, tell=tell)` makes of the weights on some of the samples.
    `tell` hears how far metrics that take long have come."""

    graph: PreparedGraph
    rounding: Rounding
    samples: Samples
    capture: Capture | None
    refined: Callable[..., Rounding] | None = None
    threads: int = 0
    tell: Listener | None = None

    @cached_property
    def heads(self) -> Heads:
        """What the network is compared by."""
        from ompq_deploy.evaluate.head_search import find_heads

        return find_heads(self.graph, self.samples, self.threads)


def score(evidence: Evidence, settings: MetricSettings) -> Scores:
    """The loss of every width of every layer under one metric."""
    if settings.name not in SCORERS:
        raise BadInput(f"unknown metric {settings.name!r}", where="--metric", fix=f"choose one of {', '.join(METRICS)}")
    return SCORERS[settings.name](evidence, settings)


def _orm(evidence: Evidence, settings: MetricSettings) -> Scores:
    if evidence.capture is None:
        raise BadInput("the ORM needs captured outputs", where="--metric orm", fix="give calibration samples")
    group = groups(evidence.graph, settings.granularity)
    last = dict(zip(group, evidence.graph.layers, strict=True))
    matrix = orm.orm_matrix([evidence.capture.grams[layer.name] for layer in last.values()], settings.estimator)
    theta = orm.importance(matrix, settings.beta, settings.function)[group]
    bits = evidence.rounding.bits
    if settings.form == "linear":
        return Scores(metric="orm", bits=bits, loss=orm.linear_loss(theta, bits), importance=theta)
    return Scores(metric="orm", bits=bits, loss=theta[:, None] * evidence.rounding.relative(), importance=theta)


def _mpqco(evidence: Evidence, settings: MetricSettings) -> Scores:
    problem = _differentiable(evidence, evidence.samples, settings)
    from ompq_deploy.metrics.gradients import projections

    return mpqco(projections(problem, evidence.rounding), evidence.rounding.bits, problem.heads.note)


def _hawq(evidence: Evidence, settings: MetricSettings) -> Scores:
    samples = evenly(evidence.samples, _affordable(evidence.graph, HAWQ_WORK, PROBES * PASSES_PER_PROBE))
    problem = _differentiable(evidence, samples, settings)
    from ompq_deploy.metrics.gradients import hessian_probes

    sizes = np.array([layer.numel for layer in evidence.graph.layers], np.float64)
    squared = evidence.rounding.squared()
    return hawq(hessian_probes(problem, PROBES), sizes, squared, evidence.rounding.bits, problem.heads.note)


def _differentiable(evidence: Evidence, samples: Samples, settings: MetricSettings) -> Problem:
    """The loss as torch sees it. Raises BackendMissing without torch, before anything imports it."""
    network = torch_graph.load(
        evidence.graph, f"--metric {settings.name}", "choose a metric that does without: orm, kl, mse, size"
    )
    from ompq_deploy.metrics.gradients import Problem

    return Problem(
        network=network,
        graph=evidence.graph,
        heads=evidence.heads,
        samples=samples,
        seed=settings.seed,
        threads=evidence.threads,
    )


def _kl(evidence: Evidence, _: MetricSettings) -> Scores:
    from ompq_deploy.metrics.output_error import output_error

    samples = evenly(evidence.samples, _affordable_for_kl(evidence))
    return output_error(
        evidence.graph, evidence.heads, samples, evidence.rounding, evidence.threads, tell=evidence.tell
    )


def _kl_refined(evidence: Evidence, _: MetricSettings) -> Scores:
    if evidence.refined is None:
        raise BadInput(
            "there are no refined weights to score",
            where=f"--metric {REFINED}",
            fix="give Evidence.refined, or choose kl",
        )
    from ompq_deploy.metrics.output_error import output_error

    total = len(evidence.samples)
    scored = spread(min(_affordable_for_kl(evidence), max(total // 2, 1)), total)
    others = np.setdiff1d(np.arange(total), scored) if total > 1 else scored
    rounding = evidence.refined(select(evidence.samples, others), tell=within(REFINED, evidence.tell))
    samples = select(evidence.samples, scored)
    return output_error(
        evidence.graph, evidence.heads, samples, rounding, evidence.threads, metric=REFINED, tell=evidence.tell
    )


def _affordable_for_kl(evidence: Evidence) -> int:
    half_of_the_network = len(evidence.graph.layers) * len(evidence.rounding.bits) / 2
    return _affordable(evidence.graph, KL_WORK, half_of_the_network)


def _mse(evidence: Evidence, _: MetricSettings) -> Scores:
    return baselines.mse(evidence.rounding)


def _size(evidence: Evidence, _: MetricSettings) -> Scores:
    return baselines.size(len(evidence.graph.layers), evidence.rounding.bits)


def _random(evidence: Evidence, settings: MetricSettings) -> Scores:
    return baselines.random(len(evidence.graph.layers), evidence.rounding.bits, settings.seed)


def _affordable(graph: PreparedGraph, work: float, passes: float) -> int:
    """Samples for which `passes` runs of the network stay within `work` multiply-accumulates."""
    macs = sum(layer.macs for layer in graph.layers)
    return max(FEWEST_SAMPLES, int(work / (passes * macs))) if macs else FEWEST_SAMPLES


SCORERS: dict[str, Callable[[Evidence, MetricSettings], Scores]] = {
    "orm": _orm,
    "mpqco": _mpqco,
    "hawq": _hawq,
    "kl": _kl,
    REFINED: _kl_refined,
    "mse": _mse,
    "size": _size,
    "random": _random,
}
CONTESTANTS = tuple(SCORERS)
METRICS = ("auto", *CONTESTANTS)
