"""What `mpqco` and `hawq` need from torch: per-sample gradients and Hessian probes of the loss.

classifier     l_n = -ln p_y(x_n)
other heads    l_n = sum over outputs of <r_n, y_k> / ||y_k||             for gradients  (mpqco.py says why)
               l_n = sum over outputs of ||y_k(w) - y_k||^2 / 2 ||y_k||^2 for Hessians
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ompq_deploy.artifacts import Float64, PreparedGraph, Samples
from ompq_deploy.errors import BadInput
from ompq_deploy.heads import Head
from ompq_deploy.metrics.rounding import Rounding
from ompq_deploy.runner import feeds
from ompq_deploy.torch_graph.graph import TorchGraph

Tensor = torch.Tensor
SMALLEST_NORM = 1e-12
HESSIAN_BATCH = 4
"""Samples whose doubly differentiable graph is held at once."""


def projections(
    network: TorchGraph, graph: PreparedGraph, head: Head, samples: Samples, rounding: Rounding, seed: int
) -> Float64:
    """<g_in, Q_b(w_i) - w_i> for every sample, layer and width, float64 (N, L, B): one backward pass per sample."""
    weights = _leaves(network)
    errors = [torch.from_numpy(rounding.errors[name].reshape(len(rounding.bits), -1)) for name in weights]
    signs = torch.Generator().manual_seed(seed)
    rows: list[Float64] = []
    for feed, labels in _batches(graph, head, samples, 1):
        values = list(network(feed, weights, outputs=head.tensors).values())
        losses = _log_loss(values[0], labels) if head.classifier else _signed_outputs(values, len(labels), signs)
        for loss in losses:
            gradients = torch.autograd.grad(
                loss, list(weights.values()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            products = [error @ g.reshape(-1) for error, g in zip(errors, gradients, strict=True)]
            rows.append(torch.stack(products).double().numpy())
    return np.stack(rows)


def hessian_probes(
    network: TorchGraph, graph: PreparedGraph, head: Head, samples: Samples, count: int, seed: int
) -> Float64:
    """v_i^T (H v)_i of the mean loss for `count` draws of random signs v, float64 (P, L)."""
    weights = _leaves(network)
    leaves = list(weights.values())
    totals = np.zeros((count, len(leaves)))
    for feed, labels in _batches(graph, head, samples, HESSIAN_BATCH):
        values = list(network(feed, weights, outputs=head.tensors).values())
        losses = _log_loss(values[0], labels) if head.classifier else _squared_errors(values, len(labels))
        gradients = torch.autograd.grad(
            losses.sum(), leaves, create_graph=True, allow_unused=True, materialize_grads=True
        )
        live = [i for i, g in enumerate(gradients) if g.requires_grad]
        for probe in range(count):
            draws = torch.Generator().manual_seed(seed * 1_000_003 + probe)
            signs = [torch.randint(0, 2, w.shape, generator=draws).to(w.dtype) * 2 - 1 for w in leaves]
            products = torch.autograd.grad(
                [gradients[i] for i in live], leaves, [signs[i] for i in live],
                retain_graph=True, allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            totals[probe] += [float((v * p).sum()) for v, p in zip(signs, products, strict=True)]
    return totals / len(samples)


def _leaves(network: TorchGraph) -> dict[str, Tensor]:
    return {name: weight.clone().requires_grad_() for name, weight in network.weights().items()}


def _batches(
    graph: PreparedGraph, head: Head, samples: Samples, size: int
) -> Iterator[tuple[dict[str, Tensor], list[int | None]]]:
    """Feeds and the labels of the samples that are new in each; None stands for the model's own top class."""
    labels: Sequence[int | None] = [None] * len(samples)
    if head.classifier and samples.labels is not None:
        labels = samples.labels.tolist()
    start = 0
    for feed, count in feeds(samples, graph.batch, size):
        yield {name: torch.from_numpy(array) for name, array in feed.items()}, list(labels[start : start + count])
        start += count


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


def _signed_outputs(values: Sequence[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """sum over outputs of <r_n, y_k> / ||y_k||, one per sample."""
    total = torch.zeros(count)
    for value in values:
        flat = value.reshape(len(value), -1)[:count]
        signs = torch.randint(0, 2, flat.shape, generator=generator).to(flat.dtype) * 2 - 1
        total = total + (signs * flat).sum(dim=1) / _norms(flat)
    return total / len(values) ** 0.5


def _squared_errors(values: Sequence[Tensor], count: int) -> Tensor:
    """Half the relative squared distance from the present outputs: zero, with the Gauss-Newton matrix as Hessian."""
    total = torch.zeros(count)
    for value in values:
        flat = value.reshape(len(value), -1)[:count]
        total = total + 0.5 * ((flat - flat.detach()) / _norms(flat)[:, None]).square().sum(dim=1)
    return total / len(values)


def _norms(flat: Tensor) -> Tensor:
    return flat.detach().norm(dim=1).clamp(min=SMALLEST_NORM)
