"""Every layer's weights refined at every width, one layer at a time in the float network: what metrics can score.

    Q_b(w) = codes of small tr( (w - s q) H (w - s q)^T ),    H = mean X X^T of the float network's inputs X

as in `refine.py` without bias correction, since a metric moves the weights alone. Rounding to nearest, which the other
metrics score, leaves several times the error, and not the same multiple in every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from ompq_deploy.artifacts import Float32, PreparedGraph, Samples
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.metrics.rounding import Rounding, rounding_errors
from ompq_deploy.quantize.biases import float_biases
from ompq_deploy.quantize.covariance import Moments
from ompq_deploy.quantize.refine import measure
from ompq_deploy.quantize.rounding_problem import rounding_problem
from ompq_deploy.quantize.stream import Stream, pieces
from ompq_deploy.runtime.timing import Listener, counted


def refined_rounding(
    graph: PreparedGraph,
    samples: Samples,
    bits: Sequence[int],
    *,
    seed: int = 0,
    threads: int = 0,
    tell: Listener | None = None,
) -> Rounding:
    """Rounding errors of every layer at `bits`, refined on `samples`. A weight that several nodes read is refined for
    the first. `tell` hears how far it has come."""
    index = GraphIndex(graph.model)
    weights = graph.layer_weights()
    by_node = {node: layer for layer in graph.layers for node in layer.nodes}
    stream = Stream(graph, samples, {}, threads)
    errors: dict[str, Float32] = {}
    for piece in counted(pieces(graph), "rounding, part", tell):
        layer = by_node.get(piece[0].name) if piece else None
        if layer is None or layer.name in errors:
            stream.step()
            continue
        halves = measure(stream, stream, layer, piece[0], {}, len(samples), seed)
        weight, anything = weights[layer.name], np.zeros(layer.channels, np.float32)
        bias = float_biases(index, layer).get(layer.name, 0.0)
        problem = rounding_problem(layer, weight, reduce(Moments.merged, halves), halves, bias, seed)
        errors[layer.name] = rounding_errors(weight, problem.codes(bits, anything), len(bits), layer.channel_axis)
    return Rounding(bits=tuple(bits), weights=weights, errors=errors)
