"""What both ways of running the network collect, and the names under which the graph returns it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.artifacts import Float64, PreparedGraph
from ompq_deploy.capture.taps import tap

Results = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """`grams` by layer name, `ranges`, `wide_ranges` and `means` by tensor name, as `Capture` defines them."""

    grams: Mapping[str, Float64]
    ranges: Mapping[str, tuple[float, float]]
    wide_ranges: Mapping[str, tuple[float, float]]
    means: Mapping[str, Float64]


def read_grams(graph: PreparedGraph, found: Results) -> dict[str, Float64]:
    """Gram matrix per layer name, from the outputs of an instrumented graph."""
    return {layer.name: found[tap("gram", layer.output)].astype(np.float64) for layer in graph.layers}


def read_ranges(tensors: Iterable[str], found: Results) -> dict[str, tuple[float, float]]:
    """(min, max) per tensor, from the outputs of an instrumented graph."""
    return {name: (float(found[tap("min", name)].min()), float(found[tap("max", name)].max())) for name in tensors}


def read_means(graph: PreparedGraph, found: Results) -> dict[str, Float64]:
    """Channel means per activation, from outputs (N, C), (N, C, 1, 1) or (1, C) of an instrumented graph."""
    rows = {name: found[tap("mean", name)] for name in graph.activations}
    return {name: row.reshape(row.shape[:2]).mean(axis=0, dtype=np.float64) for name, row in rows.items()}
