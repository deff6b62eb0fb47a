"""Accuracy of a classifier run by onnxruntime, and how far two models' outputs are apart.

With z the outputs of one sample and l its label, the label's rank is

    r = #{j: z[j] > z[l]} + #{j < l: z[j] = z[l]}

(of equal outputs, which integer models do give, the lower class index comes first). A sample counts for top-k
when r < k. For two models with output distributions p (the reference) and q over the classes, from softmax of
logits or from the outputs themselves where those are probabilities,

    agreement = share of samples with equal argmax        KL = mean over samples of sum_j p[j] ln(p[j] / q[j])
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Float64
from ompq_deploy.errors import BadInput, GateFailed, OmpqError
from ompq_deploy.runtime.batches import filled_up, size_of
from ompq_deploy.runtime.runner import ORT_FAILURES
from ompq_deploy.runtime.sessions import session_options, start

SMALLEST_PROBABILITY = 1e-7
SUM_TOLERANCE = 1e-3


class Data(Protocol):
    """Samples to run a model on, such as `Samples`: feeds of at most `size` samples, by input name."""

    @property
    def source(self) -> str: ...

    def batches(self, size: int) -> Iterable[dict[str, NDArray[Any]]]: ...


class LabelledData(Data, Protocol):
    """Samples with labels int64 (N,) in the order of `batches`: `calib.LabelledSet`, which also explains `classes`."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    @property
    def classes(self) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """`top1` and `top5` in percent over `n` samples; `logits` float32 (n, classes), the first output as it is."""

    n: int
    top1: float
    top5: float
    logits: Float32


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`agreement` in percent over `n` samples, `kl` the mean divergence from the reference in nats."""

    n: int
    agreement: float
    kl: float


def evaluate(model: Path | onnx.ModelProto, data: LabelledData, *, threads: int = 0, batch: int = 32) -> Evaluation:
    """Accuracy of `model` on `data`; runs it as `predict` does."""
    logits = predict(model, data, threads=threads, batch=batch)
    _check_labels(data, logits.shape[1])
    ranks = label_ranks(logits, data.labels)
    return Evaluation(
        n=len(ranks), top1=100 * float(np.mean(ranks < 1)), top5=100 * float(np.mean(ranks < 5)), logits=logits
    )


def refuse_unsuited(model: onnx.ModelProto, data: LabelledData, *, threads: int = 0) -> None:
    """Raise BadInput as `evaluate` would, as far as one sample and all labels tell."""
    where = "the model in memory"
    session = _session(model, threads, where)
    _check_labels(data, _run(session, next(_feeds(session, data, 1, where)), where).shape[1])


def predict(model: Path | onnx.ModelProto, data: Data, *, threads: int = 0, batch: int = 32) -> Float32:
    """The first output for every sample, float32 (N, classes), of a float, Q/DQ or integer-only model.

    Runs in the model's own batch size where that is fixed; `threads` 0 leaves the choice to onnxruntime.
    """
    where = str(model) if isinstance(model, Path) else "the model in memory"
    session = _session(model, threads, where)
    outputs = [_run(session, feeds, where) for feeds in _feeds(session, data, batch, where)]
    logits: Float32 = np.concatenate(outputs).astype(np.float32)
    if np.isnan(logits).any():
        raise BadInput("the model's output holds NaN", where=where, fix="check the model and the preprocessing")
    return logits


def compare(reference: Evaluation, other: Evaluation) -> Comparison:
    """Agreement and mean KL of two models evaluated on the same samples."""
    return compare_outputs(reference.logits, other.logits)


def compare_outputs(reference: Float32, other: Float32) -> Comparison:
    """Agreement and mean KL of two models' outputs (N, classes) for the same samples.

    Outputs are probabilities where every row is nonnegative and sums to 1. If the reference's are, the other's
    are taken to be so too unless one is negative: quantized probabilities need not sum to 1, and are rescaled.
    """
    if reference.shape != other.shape:
        raise BadInput(
            f"outputs {reference.shape} and {other.shape} cannot be compared",
            where="samples x classes of the two models",
            fix="run both models on the same data",
        )
    as_reference = are_probabilities(reference)
    as_other = are_probabilities(other) or (as_reference and bool((other >= 0).all()))
    log_p = _log_probabilities(reference, as_reference)
    log_q = _log_probabilities(other, as_other)
    divergence = np.sum(np.exp(log_p) * (log_p - log_q), axis=1)
    same = reference.argmax(axis=1) == other.argmax(axis=1)
    return Comparison(n=len(same), agreement=100 * float(np.mean(same)), kl=max(0.0, float(np.mean(divergence))))


def evaluation_document(evaluations: Mapping[str, Evaluation]) -> dict[str, Any] | None:
    """Accuracy by model name, and how far each is from "float", as JSON values; None where nothing was evaluated."""
    if not evaluations:
        return None
    reference = evaluations["float"]
    document: dict[str, Any] = {}
    for name, evaluation in evaluations.items():
        document[name] = {"n": evaluation.n, "top1": evaluation.top1, "top5": evaluation.top5}
        if evaluation is not reference:
            comparison = compare(reference, evaluation)
            document[name] |= {"agreement": comparison.agreement, "kl": comparison.kl}
    return document


def accuracy_failures(evaluations: Mapping[str, Evaluation], max_drop: float | None) -> list[OmpqError]:
    """The gate on accuracy: one failure per model whose top-1 is more than `max_drop` points below "float"."""
    if max_drop is None:
        return []
    reference = evaluations["float"].top1
    return [
        GateFailed(
            f"top-1 of the {name} model drops by {reference - evaluation.top1:.2f} points, more than {max_drop:g}",
            where=f"{evaluation.top1:.2f} against {reference:.2f} in float",
            fix="raise --size, allow more widths with --bits, or give more calibration data",
        )
        for name, evaluation in evaluations.items()
        if name != "float" and not reference - evaluation.top1 <= max_drop
    ]


def label_ranks(logits: Float32, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """r of the formula above, int64 (N,), for logits (N, classes) and labels (N,)."""
    of_label = np.take_along_axis(logits, labels[:, np.newaxis], axis=1)
    before = np.arange(logits.shape[1]) < labels[:, np.newaxis]
    return np.sum((logits > of_label) | ((logits == of_label) & before), axis=1, dtype=np.int64)


def are_probabilities(outputs: Float32) -> bool:
    """Whether every row is nonnegative and sums to 1."""
    return bool((outputs >= 0).all()) and bool(np.all(np.abs(outputs.sum(axis=1) - 1) <= SUM_TOLERANCE))


def _log_probabilities(outputs: Float32, probabilities: bool) -> Float64:
    z = outputs.astype(np.float64)
    if probabilities:
        z = np.log(np.maximum(z, SMALLEST_PROBABILITY))
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def _session(model: Path | onnx.ModelProto, threads: int, where: str) -> ort.InferenceSession:
    if isinstance(model, Path) and not model.is_file():
        raise BadInput("no such model file", where=where, fix="check the path of the .onnx file")
    try:
        return start(model, session_options(threads))
    except ORT_FAILURES as e:
        raise BadInput(f"onnxruntime cannot load the model: {e}", where=where, fix="export the model again") from e


def _feeds(session: ort.InferenceSession, data: Data, batch: int, where: str) -> Iterator[dict[str, NDArray[Any]]]:
    inputs = session.get_inputs()
    fixed = inputs[0].shape[0] if inputs[0].shape else None
    for feeds in data.batches(fixed if isinstance(fixed, int) else batch):
        if set(feeds) != {value.name for value in inputs}:
            raise BadInput(
                f"the model reads {', '.join(value.name for value in inputs)}, the data feed {', '.join(feeds)}",
                where=where,
                fix="load the data with this model's inputs",
            )
        yield feeds


def _run(session: ort.InferenceSession, feeds: dict[str, NDArray[Any]], where: str) -> NDArray[Any]:
    """The first output, (samples, classes), for at most one batch; a fixed batch is filled up with the last sample."""
    count = size_of(feeds)
    shape = session.get_inputs()[0].shape
    if shape and isinstance(shape[0], int):
        feeds = filled_up(feeds, shape[0])
    try:
        output = np.asarray(session.run([session.get_outputs()[0].name], feeds)[0])
    except ORT_FAILURES as e:
        raise BadInput(
            f"onnxruntime cannot run the model on these data: {e}", where=where, fix="check the data's shape and dtype"
        ) from e
    if output.ndim != 2 or len(output) != size_of(feeds):
        raise BadInput(
            f"the first output {session.get_outputs()[0].name!r} is {output.shape} for {count} samples, so the model "
            "is no classifier (samples x classes)",
            where=where,
            fix="leave out --eval, which measures top-1 and top-5, and evaluate it with your own tools",
        )
    return output[:count]


def _check_labels(data: LabelledData, classes: int) -> None:
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= classes:
        raise BadInput(
            f"labels run from {low} to {high}, but the model has {classes} classes",
            where=data.source,
            fix=f"number the labels from 0 to {classes - 1}",
        )
    if data.classes not in (None, classes):
        raise BadInput(
            f"{data.classes} class folders in sorted order cannot be matched to the model's {classes} classes",
            where=data.source,
            fix="name the folders by class index (0007), or add classes.txt with one class name per line",
        )
