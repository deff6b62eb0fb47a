"""The network before its first step.

Its weights lie in the middle of their codes, not near the float weights. Refined rounding chooses codes whose errors
cancel; a quarter of them are not the nearest to the float weight, so a latent weight as near to that as its code allows
sits on the edge and falls back within a few steps. On ResNet-20 the loss then grew at any rate above 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ompq_deploy.artifacts import Float32, QuantizedGraph
from ompq_deploy.torch_graph.fake_quant import FakeQuantGraph


@torch.no_grad()
def centred(quantized: QuantizedGraph) -> FakeQuantGraph:
    """The network of these integers, every weight in the middle of its code."""
    network = FakeQuantGraph(quantized)
    for i, weight in enumerate(network.weights):
        weight.copy_(network.weight(i))
    return network


@torch.no_grad()
def values_per_sample(network: FakeQuantGraph, feeds: Mapping[str, Float32]) -> list[int]:
    """Values per sample of every activation that has a step; `feeds` as the network reads them."""
    sizes: dict[str, int] = {}

    def measuring(name: str) -> Callable[[Tensor], Tensor]:
        def measure(x: Tensor) -> Tensor:
            sizes[name] = x.numel() // len(x)
            return x

        return measure

    hooks = {name: measuring(name) for name in network.activations}
    device = network.steps[0].device
    network({name: torch.from_numpy(x).to(device) for name, x in feeds.items()}, hooks=hooks)
    return [sizes[name] for name in network.activations]
