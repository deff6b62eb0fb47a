"""What a plan uses beside its size, as tables per layer and width.

bops               MACs * b_w * b_a, as HAWQ-V3 counts; under `--size-of paper` as OMPQ does:
                   (MACs + 5 C H W) b_w b_a for a convolution with its BatchNorm and ReLU,
                   (2 MACs + C) b_w b_a for a fully connected layer
latency            nanoseconds of a supplied table (`latency.py`)
activation memory  the most bytes of activations alive at once (`activation_memory.py`); the same for every plan,
                   since every activation is 8 bits wide
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ompq_deploy.artifacts import Budget, Layer, PreparedGraph, Resource
from ompq_deploy.errors import BadInput
from ompq_deploy.limits.activation_memory import peak_elements
from ompq_deploy.limits.latency import LatencyTable

ACTIVATION_BITS = 8


def resources(
    graph: PreparedGraph, bits: Sequence[int], budget: Budget, latency: LatencyTable | None
) -> tuple[Resource, ...]:
    """The resources beside the size, with the budget's limits; their columns are the widths `bits`."""
    choices = [(width, ACTIVATION_BITS) for width in bits]
    found = [bops(graph.layers, choices, budget)]
    if latency is not None:
        found.append(latency.resource([layer.name for layer in graph.layers], choices, budget.latency_ns))
    elif budget.latency_ns is not None:
        raise BadInput(
            "a latency budget needs the time of every layer and width",
            where="--latency",
            fix="give --latency-table FILE with nanoseconds measured on the device",
        )
    peak = peak_elements(graph)
    if peak is not None:
        none = np.zeros((len(graph.layers), len(bits)), np.int64)
        fixed = -(-peak * ACTIVATION_BITS // 8)
        found.append(Resource(name="activation memory", cost=none, fixed=fixed, limit=budget.activation_bytes))
    elif budget.activation_bytes is not None:
        raise BadInput(
            "the shapes of the activations are not known, so their memory cannot be counted",
            where="--activation-memory",
            fix="export the model with a fixed input size",
        )
    return tuple(found)


def bops(layers: Sequence[Layer], choices: Sequence[tuple[int, int]], budget: Budget) -> Resource:
    """Bit operations of every layer and (weight, activation) choice."""
    count = paper_operations if budget.size_of == "paper" else macs
    operations = np.array([count(layer) for layer in layers], np.int64)
    widths = np.array([weight * activation for weight, activation in choices], np.int64)
    return Resource(name="bops", cost=operations[:, None] * widths[None, :], limit=budget.bops)


def macs(layer: Layer) -> int:
    return layer.macs


def paper_operations(layer: Layer) -> int:
    """OMPQ's count. A convolution's outputs C H W are its MACs over the weights of one output channel."""
    if layer.op in ("Conv", "ConvTranspose"):
        return layer.macs + 5 * (layer.macs * layer.channels // layer.numel)
    return 2 * layer.macs + layer.macs * layer.channels // layer.numel
