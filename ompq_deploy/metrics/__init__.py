"""Layer sensitivities, one per file: each turns a graph and a capture into `Scores`."""

from __future__ import annotations

from dataclasses import dataclass

from ompq_deploy.artifacts import Capture, PreparedGraph, Scores
from ompq_deploy.errors import BadInput
from ompq_deploy.metrics import baselines, orm
from ompq_deploy.metrics.weight_error import relative_errors

METRICS = ("auto", "orm", "mse", "size", "random")


@dataclass(frozen=True, kw_only=True)
class MetricSettings:
    """Which sensitivity, and its parameters. `auto` stands for `orm` in the concave form."""

    name: str = "auto"
    estimator: str = "debiased"
    form: str = "concave"
    beta: float = orm.DEFAULT_BETA
    seed: int = 0


def score(graph: PreparedGraph, capture: Capture | None, bits: tuple[int, ...], settings: MetricSettings) -> Scores:
    """The loss of every width of every layer under one metric.

    `capture` may be None for the metrics that need no data (`mse`, `size`, `random`).
    """
    weights = graph.layer_weights()
    if settings.name == "size":
        return baselines.size(graph.layers, bits)
    if settings.name == "random":
        return baselines.random(graph.layers, bits, settings.seed)
    if settings.name == "mse":
        return baselines.mse(weights, graph.layers, bits)
    if settings.name not in ("auto", "orm"):
        raise BadInput(f"unknown metric {settings.name!r}", where="--metric", fix=f"choose one of {', '.join(METRICS)}")
    if capture is None:
        raise BadInput("the ORM needs captured outputs", where="--metric orm", fix="give calibration samples")
    matrix = orm.orm_matrix([capture.grams[layer.name] for layer in graph.layers], settings.estimator)
    theta = orm.importance(matrix, settings.beta)
    if settings.form == "linear":
        return Scores(metric="orm", bits=bits, loss=orm.linear_loss(theta, bits), importance=theta)
    errors = relative_errors(weights, graph.layers, bits)
    return Scores(metric="orm", bits=bits, loss=theta[:, None] * errors, importance=theta)
