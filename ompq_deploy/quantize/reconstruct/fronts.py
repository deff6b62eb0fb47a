"""All samples in front of the blocks of a graph, as the float network and as the quantized one compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ompq_deploy.quantize.reconstruct.block import BlockNetwork
from ompq_deploy.torch_graph.chunks import Tensors, in_chunks
from ompq_deploy.torch_graph.graph import TorchGraph


@dataclass(frozen=True, kw_only=True)
class Front:
    """The tensors made before a block that it or a later one reads, or that are compared at the end, all samples of
    them: as the float network makes them, and as the quantized one does."""

    exact: Tensors
    quantized: Tensors


def last_fronts(
    exact_network: TorchGraph, parts: Sequence[BlockNetwork], compared: Sequence[str], feeds: Tensors, most: int
) -> list[Front]:
    """Those of the last blocks, in order, and what lies behind the very last: as many as have `most` numbers together,
    and those two in any case. `compared` are the tensors compared at the end."""
    network = parts[0].network
    fixed = network.origin.graph.batch
    on_grid = {name: i for i, name in enumerate(network.activations)}
    front = Front(
        exact=feeds,
        quantized={n: network.quantizer(on_grid[n])(x).detach() if n in on_grid else x for n, x in feeds.items()},
    )
    fronts = [front]
    for number, part in enumerate(parts, start=1):
        targets = in_chunks(partial(exact_network, outputs=part.block.outputs), front.exact, fixed)
        wanted = {*compared, *(name for later in parts[number:] for name in later.block.inputs)}
        front = Front(
            exact=_those(wanted, {**front.exact, **targets}),
            quantized=_those(wanted, {**front.quantized, **part.outputs(front.quantized)}),
        )
        fronts.append(front)
        while len(fronts) > 2 and _numbers(fronts) > most:
            del fronts[0]
    return fronts


def _those(names: set[str], values: Tensors) -> Tensors:
    return {name: value for name, value in values.items() if name in names}


def _numbers(fronts: Sequence[Front]) -> int:
    """How many the fronts hold together; most tensors lie in front of several blocks."""
    tensors: dict[int, Tensor] = {id(x): x for f in fronts for x in (*f.exact.values(), *f.quantized.values())}
    return sum(x.numel() for x in tensors.values())
