"""The same figures where one batch cannot hold all samples: feed them in the batches the model allows.

    G = sum_k  X[:, k] X[:, k]^T      float32 products of column blocks k, summed in float64

A Gram matrix needs every pair of samples, so a layer's outputs are held for all N. Layers are taken in groups
whose outputs together stay below `MEMORY_LIMIT` bytes; the network runs once per group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float32, Float64, PreparedGraph, Samples
from ompq_deploy.capture.instrument import Reduction, instrument, views
from ompq_deploy.capture.statistics import Statistics, read_means, read_ranges
from ompq_deploy.capture.taps import Taps, View, tap
from ompq_deploy.errors import BadInput
from ompq_deploy.graph.part import returning
from ompq_deploy.runtime.sessions import brief_options, start

MEMORY_LIMIT = 512 << 20
COLUMN_BLOCK = 1 << 15

Feed = Mapping[str, NDArray[Any]]


def run_streamed(graph: PreparedGraph, samples: Samples, threads: int, limit: int = MEMORY_LIMIT) -> Statistics:
    """Statistics of all samples, fed in batches of the size fixed in the model, else one by one."""
    batch = graph.batch or 1
    feeds = [{name: feed[name] for name in graph.input_names} for feed in samples.batches(batch)]
    outputs = list(dict.fromkeys(layer.output for layer in graph.layers))
    ranges, means, shapes = _reduce(graph, outputs, feeds, threads)
    wide = {name: ranges.pop(name) for name in graph.wide}
    _refuse_mixed_batches(shapes, batch, graph)
    row_bytes = {name: 4 * int(np.prod(shape)) // batch for name, shape in shapes.items()}
    grams: dict[str, Float64] = {}
    for group in groups_below(limit, {name: size * len(samples) for name, size in row_bytes.items()}):
        rows = _fetch(graph, group, feeds, threads)
        grams |= {name: gram_matrix(rows.pop(name)) for name in group}
    return Statistics(
        grams={layer.name: grams[layer.output] for layer in graph.layers}, ranges=ranges, wide_ranges=wide, means=means
    )


def gram_matrix(x: Float32) -> Float64:
    """X X^T, float64 (N, N), of X float32 (N, K)."""
    total = np.zeros((len(x), len(x)))
    for column in range(0, x.shape[1], COLUMN_BLOCK):
        block = x[:, column : column + COLUMN_BLOCK]
        total += block @ block.T
    return total


def groups_below(limit: int, sizes: Mapping[str, int]) -> list[list[str]]:
    """The names in order, cut into consecutive groups that sum to at most `limit`, or are one name long."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if size > room or not groups:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def _reduce(
    graph: PreparedGraph, outputs: Sequence[str], feeds: Sequence[Feed], threads: int
) -> tuple[dict[str, tuple[float, float]], dict[str, Float64], dict[str, tuple[int, ...]]]:
    """Over all feeds the ranges of all tensors with a grid and the means of the activations; for one feed the shapes of
    `outputs`."""
    points: list[tuple[View, list[Reduction]]] = []
    points += [(view, [Taps.mean, Taps.range]) for view in views(graph, graph.activations, {})]
    points += [(view, [Taps.range]) for view in views(graph, graph.wide, {})]
    points += [(view, [Taps.shape]) for view in views(graph, outputs, {})]
    model = instrument(graph.model, points)
    names = [value.name for value in model.graph.output]
    session = start(model, brief_options(threads))
    runs = [dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds]
    tensors = (*graph.activations, *graph.wide)
    found = [read_ranges(tensors, run) for run in runs]
    ranges = {name: (min(run[name][0] for run in found), max(run[name][1] for run in found)) for name in tensors}
    per_run = [read_means(graph, run) for run in runs]
    means = {name: np.mean([run[name] for run in per_run], axis=0) for name in graph.activations}
    return ranges, means, {name: tuple(runs[0][tap("shape", name)].tolist()) for name in outputs}


def _fetch(graph: PreparedGraph, outputs: Sequence[str], feeds: Sequence[Feed], threads: int) -> dict[str, Float32]:
    """The tensors `outputs` of all samples, each flattened to (N, K)."""
    session = start(returning(graph.model, outputs), brief_options(threads))
    batch = graph.batch or 1
    rows: dict[str, Float32] = {}
    for i, feed in enumerate(feeds):
        for name, value in zip(outputs, session.run(list(outputs), feed), strict=True):
            flat = value.reshape(batch, -1)
            if name not in rows:
                rows[name] = np.empty((len(feeds) * batch, flat.shape[1]), np.float32)
            rows[name][i * batch : (i + 1) * batch] = flat
    return rows


def _refuse_mixed_batches(shapes: Mapping[str, tuple[int, ...]], batch: int, graph: PreparedGraph) -> None:
    """With several samples in a feed, every output must keep them on axis 0 to be told apart."""
    for name, shape in shapes.items():
        if batch > 1 and shape[:1] != (batch,):
            raise BadInput(
                f"tensor {name!r} of shape {shape} does not keep the batch of {batch} on its first axis",
                where=str(graph.source),
                fix="export the model with batch 1 or with a symbolic batch",
            )
