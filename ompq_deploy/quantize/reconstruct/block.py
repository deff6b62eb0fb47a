"""One block of a quantized graph in torch: its data, its parameters, and what its integers compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.quantize.reconstruct.blocks import Block
from ompq_deploy.torch_graph.chunks import Tensors, in_chunks, take
from ompq_deploy.torch_graph.fake_quant import FakeQuantGraph, bias_name


@dataclass(frozen=True, kw_only=True)
class BlockData:
    """A block's inputs and float outputs for all rows: `exact` from the float prefix, `inputs` from the quantized one.

    `weights` are those of the squared error, shaped as `targets`; None where every element counts the same. The rows
    are `samples` samples, and copies of all of them in the same order (`augment.with_copies`).
    """

    exact: Tensors
    inputs: Tensors
    targets: Tensors
    samples: int
    weights: Tensors | None = None

    def rows(self, chosen: Tensor) -> BlockData:
        """Some of the rows, each a sample of its own."""
        return BlockData(
            exact=take(self.exact, chosen),
            inputs=take(self.inputs, chosen),
            targets=take(self.targets, chosen),
            samples=len(chosen),
            weights=None if self.weights is None else take(self.weights, chosen),
        )

    def squared_error(self, outputs: Tensors) -> Tensor:
        """Weighted squared difference from the targets, summed over all elements of all rows."""
        errors = {name: (outputs[name] - target).square() for name, target in self.targets.items()}
        if self.weights is not None:
            errors = {name: self.weights[name] * error for name, error in errors.items()}
        return torch.stack([error.sum() for error in errors.values()]).sum()

    def __len__(self) -> int:
        return len(next(iter(self.targets.values())))


class BlockNetwork:
    """One block of a quantized graph: runs it, and reads and writes its parameters."""

    def __init__(self, network: FakeQuantGraph, block: Block) -> None:
        index = GraphIndex(network.origin.graph.model)
        self.network, self.block = network, block
        self.layers = list(block.layers)
        self.biases = [i for i, n in enumerate(network.bias_nodes) if index.nodes[n].output[0] in block.inside]
        self.steps = [i for i, name in enumerate(network.activations) if name in block.inside]
        self._inside = [
            i
            for i, q in enumerate(network.origin.layers)
            if any(index.nodes[node].output[0] in block.inside for node in q.layer.nodes)
        ]

    def run(
        self,
        feeds: Mapping[str, Tensor],
        *,
        weights: Mapping[int, Tensor] | None = None,
        biases: Sequence[Tensor] | None = None,
        quantizers: Sequence[Callable[[Tensor], Tensor]] | None = None,
    ) -> Tensors:
        """The block's outputs, as integers give them but for what is given instead."""
        net, given = self.network, weights or {}
        used = {net.origin.layers[i].layer.name: given[i] if i in given else net.weight(i) for i in self._inside}
        added = biases if biases is not None else [net.bias(i) for i in self.biases]
        hooks = quantizers if quantizers is not None else [net.quantizer(i) for i in self.steps]
        return net.network(
            {**{bias_name(net.bias_nodes[i]): b for i, b in zip(self.biases, added, strict=True)}, **feeds},
            used,
            {net.activations[i]: hook for i, hook in zip(self.steps, hooks, strict=True)},
            self.block.outputs,
        )

    def outputs(self, feeds: Mapping[str, Tensor]) -> Tensors:
        """The block's outputs for all samples, as its integers give them; `feeds` may hold other tensors too."""
        return in_chunks(self.run, {name: feeds[name] for name in self.block.inputs}, self.network.origin.graph.batch)

    def error(self, data: BlockData) -> float:
        """Squared output error per row, as the integers give it."""
        return float(data.squared_error(self.outputs(data.inputs))) / len(data)

    def parameters(self) -> list[Tensor]:
        """The weights, scales, biases and steps of the block."""
        net = self.network
        lists = ((net.weights, self.layers), (net.scales, self.layers), (net.biases, self.biases),
                 (net.steps, self.steps))  # fmt: skip
        return [values[i] for values, numbers in lists for i in numbers]
