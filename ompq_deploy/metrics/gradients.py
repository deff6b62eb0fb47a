"""What `mpqco` and `hawq` need from torch: per-sample gradients and Hessian probes of the loss.

classifier     l_n = -ln p_y(x_n)
other heads    l_n = <r_n, W y_n>                 for gradients (mpqco.py says why), r_n random signs
               l_n = ||W (y_n(w) - y_n)||^2 / 2   for Hessians: the mean over heads of their relative squared errors, W
                                                  being `Heads.root_weights`

One sample, or a few, per task; each task on one thread and one task per core, which for these small batches is
several times faster than torch's own threads, and gives the same sums in the same order everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ompq_deploy.artifacts import Float64, PreparedGraph, Samples
from ompq_deploy.errors import BadInput
from ompq_deploy.evaluate.heads import Heads
from ompq_deploy.metrics.rounding import Rounding
from ompq_deploy.runtime.batches import feeds, size_of
from ompq_deploy.runtime.threads import granted
from ompq_deploy.torch_graph.graph import TorchGraph

T = TypeVar("T")
HESSIAN_BATCH = 4
"""Samples whose doubly differentiable graph is held at once."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The loss to differentiate: the network, its heads, the samples, a seed and the threads to use."""

    network: TorchGraph
    graph: PreparedGraph
    heads: Heads
    samples: Samples
    seed: int
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Feeds, and per sample that is new its label, None standing for the model's own top class."""

    feed: dict[str, Tensor]
    labels: list[int | None]
    number: int


def projections(problem: Problem, rounding: Rounding) -> Float64:
    """<g_in, Q_b(w_i) - w_i> for every sample, layer and width, float64 (N, L, B): one backward pass per sample."""
    network, heads = problem.network, problem.heads
    weights = _leaves(network)
    errors = [torch.from_numpy(rounding.errors[name].reshape(len(rounding.bits), -1)) for name in weights]

    def of_batch(batch: _Batch) -> list[Float64]:
        values = list(network(batch.feed, weights, outputs=heads.tensors).values())
        if heads.classifier:
            losses = _log_loss(values[0], batch.labels)
        else:
            losses = _signed(_weighted(problem, batch, values), _generator(problem.seed, batch.number))
        rows = []
        for loss in losses:
            gradients = torch.autograd.grad(
                loss, list(weights.values()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            products = [error @ g.reshape(-1) for error, g in zip(errors, gradients, strict=True)]
            rows.append(torch.stack(products).double().numpy())
        return rows

    return np.stack([row for rows in _in_parallel(of_batch, _batches(problem, 1), problem.threads) for row in rows])


def hessian_probes(problem: Problem, count: int) -> Float64:
    """v_i^T (H v)_i of the mean loss for `count` draws of random signs v, float64 (P, L)."""
    network, heads = problem.network, problem.heads
    weights = _leaves(network)
    leaves = list(weights.values())
    draws = [_signs(leaves, _generator(problem.seed, probe)) for probe in range(count)]

    def of_batch(batch: _Batch) -> Float64:
        values = list(network(batch.feed, weights, outputs=heads.tensors).values())
        if heads.classifier:
            losses = _log_loss(values[0], batch.labels)
        else:
            losses = _squared_errors(_weighted(problem, batch, values))
        gradients = torch.autograd.grad(
            losses.sum(), leaves, create_graph=True, allow_unused=True, materialize_grads=True
        )
        live = [i for i, g in enumerate(gradients) if g.requires_grad]
        rows = []
        for v in draws:
            products = torch.autograd.grad(
                [gradients[i] for i in live], leaves, [v[i] for i in live],
                retain_graph=True, allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            rows.append([float((sign * product).sum()) for sign, product in zip(v, products, strict=True)])
        return np.array(rows)

    parts = _in_parallel(of_batch, _batches(problem, HESSIAN_BATCH), problem.threads)
    return np.sum(parts, axis=0) / len(problem.samples)


def _in_parallel(work: Callable[[_Batch], T], batches: Iterable[_Batch], threads: int) -> list[T]:
    with ThreadPoolExecutor(threads or granted(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, batches))


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def _signs(like: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    return [torch.randint(0, 2, x.shape, generator=generator).to(x.dtype) * 2 - 1 for x in like]


def _leaves(network: TorchGraph) -> dict[str, Tensor]:
    return {name: weight.clone().requires_grad_() for name, weight in network.weights().items()}


def _batches(problem: Problem, size: int) -> list[_Batch]:
    samples = problem.samples
    labels: Sequence[int | None] = [None] * len(samples)
    if problem.heads.classifier and samples.labels is not None:
        labels = samples.labels.tolist()
    found = []
    start = 0
    for number, (feed, count) in enumerate(feeds(samples, problem.graph.batch, size)):
        tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
        found.append(_Batch(feed=tensors, labels=list(labels[start : start + count]), number=number))
        start += count
    return found


def _log_loss(logits: Tensor, labels: Sequence[int | None]) -> Tensor:
    """-ln p_y, one per label."""
    flat = logits.reshape(len(logits), -1)
    classes = flat.shape[1]
    if any(label is not None and not 0 <= label < classes for label in labels):
        raise BadInput(
            f"the calibration labels do not fit a model of {classes} classes",
            where="--calib",
            fix=f"number the labels from 0 to {classes - 1}, or leave them out",
        )
    top = flat.argmax(dim=1).tolist()
    chosen = [top[n] if label is None else label for n, label in enumerate(labels)]
    return -torch.log_softmax(flat[: len(chosen)], 1)[torch.arange(len(chosen)), chosen]


def _weighted(problem: Problem, batch: _Batch, values: Sequence[Tensor]) -> Tensor:
    """W y_n of all outputs together, (samples, elements)."""
    size, count = size_of(batch.feed), len(batch.labels)
    weights = [torch.from_numpy(array) for array in problem.heads.root_weights]
    rows = [value.reshape(size, -1)[:count] * row for value, row in zip(values, weights, strict=True)]
    return torch.cat(rows, dim=1)


def _signed(outputs: Tensor, generator: torch.Generator) -> Tensor:
    """<r_n, W y_n>, one per sample."""
    return (_signs([outputs], generator)[0] * outputs).sum(dim=1)


def _squared_errors(outputs: Tensor) -> Tensor:
    """Half the squared distance from the present outputs: zero, with the Gauss-Newton matrix as Hessian."""
    return 0.5 * (outputs - outputs.detach()).square().sum(dim=1)
