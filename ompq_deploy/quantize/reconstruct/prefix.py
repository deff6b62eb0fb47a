"""All samples in front of a block, as the float network and as the quantized one computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ompq_deploy.artifacts import Samples
from ompq_deploy.quantize.reconstruct.blocks import Block
from ompq_deploy.torch_graph.fake_quant import FakeQuantGraph
from ompq_deploy.torch_graph.graph import TorchGraph, on_device

CHUNK = 16
"""Samples run at a time without gradients, where the batch axis is free."""

Tensors = dict[str, Tensor]
Run = Callable[[Mapping[str, Tensor]], Tensors]


class Prefix:
    """Walks through the blocks in order; holds the tensors that the blocks to come read, and no others.

    `exact_network` is the float network.
    """

    def __init__(
        self, network: FakeQuantGraph, samples: Samples, blocks: Sequence[Block], device: torch.device
    ) -> None:
        graph = network.origin.graph
        self.exact_network = TorchGraph(graph).to(device)
        self._last_read = {name: i for i, block in enumerate(blocks) for name in block.inputs}
        self._fixed = graph.batch
        self._exact = {name: on_device(x, device) for name, x in samples.inputs.items()}
        on_grid = {name: i for i, name in enumerate(network.activations)}
        with torch.no_grad():
            self._quantized = {
                name: network.quantizer(on_grid[name])(x) if name in on_grid else x for name, x in self._exact.items()
            }

    def inputs(self, block: Block) -> tuple[Tensors, Tensors]:
        """What the block reads in the float network and in the quantized one."""
        return {n: self._exact[n] for n in block.inputs}, {n: self._quantized[n] for n in block.inputs}

    def targets(self, block: Block) -> Tensors:
        """What the block hands on in the float network."""
        feeds, _ = self.inputs(block)
        return in_chunks(lambda feed: self.exact_network(feed, outputs=block.outputs), feeds, self._fixed)

    def alive(self, *, exact: bool) -> Tensors:
        """The tensors that the blocks to come read, of the float network or of the quantized one."""
        return dict(self._exact if exact else self._quantized)

    def advance(self, number: int, targets: Tensors, outputs: Tensors) -> None:
        """Pass block `number`, which hands on `targets` in the float network and `outputs` in the quantized one."""
        for values, made in ((self._exact, targets), (self._quantized, outputs)):
            values.update(made)
            for name in [name for name in values if self._last_read.get(name, -1) <= number]:
                del values[name]


@torch.no_grad()
def in_chunks(run: Run, feeds: Mapping[str, Tensor], fixed: int | None) -> Tensors:
    """`run` for all samples, some at a time: `fixed`, the last chunk filled up with its last sample, or CHUNK."""
    size = fixed or CHUNK
    count = len(next(iter(feeds.values())))
    parts = []
    for rows in torch.arange(count).split(size):
        filled = filled_up(rows, size) if fixed else rows
        parts.append({name: value[: len(rows)] for name, value in run(take(feeds, filled)).items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def filled_up(rows: Tensor, size: int) -> Tensor:
    """`rows` with the last one repeated until they are `size`."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows))])


def take(tensors: Mapping[str, Tensor], rows: Tensor) -> Tensors:
    """Some samples of every tensor."""
    return {name: value[rows.to(value.device)] for name, value in tensors.items()}
