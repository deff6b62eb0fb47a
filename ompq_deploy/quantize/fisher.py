"""How much the elements of a tensor inside matter to the network: parts of its Fisher information.

    w = E_v g^2,   g = J^T v,   E v v^T = F  J: the network's outputs in the tensor, at the float network
                                             F: the metric of those outputs (`evaluate/heads.py`)
    classifier       KL(p || p') ~ 1/2 dz^T F dz,  F = diag(p) - p p^T       v = sqrt(p) r - p <sqrt(p), r>
    anything else    ||W dy||^2,                   F = W^2                   v = W r           r: random signs

z are the logits divided by `heads.SOFTENED`: at temperature 1 some 6 % of the samples have all the weight (CIFAR-10).

Li et al., "BRECQ", ICLR 2021, Eq. 10, which squares one gradient of the loss; here it is an estimate without bias of
the diagonal, for every sample, since the KL to the float network has no gradient at the float network itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ompq_deploy.artifacts import Float32, PreparedGraph, Samples
from ompq_deploy.evaluate.heads import SOFTENED, Heads
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.quantize.refine import OutputWeights
from ompq_deploy.quantize.rounding_problem import coupled
from ompq_deploy.runtime.threads import half_granted
from ompq_deploy.torch_graph.chunks import CHUNK, Tensors, in_chunks
from ompq_deploy.torch_graph.graph import TorchGraph, best_device, on_device
from ompq_deploy.torch_graph.threads import torch_threads

DRAWS = 4
POSITION_DRAWS = 2
"""Fewer do where channels are summed up."""
MOST_NUMBERS = 2**28
"""Numbers in all tensors of the rows that run at a time: 1 GiB, and as much again for gradients."""
SMALLEST = 1e-30


def fisher_weights(
    network: TorchGraph,
    heads: Heads,
    feeds: Mapping[str, Tensor],
    outputs: Sequence[str],
    fixed: int | None,
    generator: torch.Generator,
) -> Tensors:
    """A weight for every element of `outputs` and every sample, 1 on average over all of them.

    `feeds` are the tensors of the float network alive behind the block, all samples of them, `outputs` among them;
    `fixed` is the graph's batch where it has one. All weights are 1 where nothing behind depends on the block.
    """

    def squares(feed: Mapping[str, Tensor]) -> Tensors:
        gradients = _gradients(network, heads, feed, outputs, generator, DRAWS)
        return {name: g.square().mean(dim=0) for name, g in gradients.items()}

    found = in_chunks(squares, feeds, fixed)
    mean = sum(float(w.sum()) for w in found.values()) / sum(w.numel() for w in found.values())
    if mean <= SMALLEST:
        return {name: torch.ones_like(w) for name, w in found.items()}
    return {name: w / mean for name, w in found.items()}


def output_weights(
    network: TorchGraph, graph: PreparedGraph, heads: Heads, rows: Samples, samples: int, seed: int, threads: int = 0
) -> OutputWeights:
    """How much the positions and the channels of every layer's output matter; `rows` are `samples` and copies of all.

    w_np = sqrt( sum_c w_npc ), the sum as in Kim et al., "GuidedQuant", ICML 2025, Eq. 7, for one group; the
    root since it is an estimate, and without it few positions of few samples have it all (docs/maths.md).
    A = mean of g_np g_np^T over all positions, for even and odd samples apart; what fills up a fixed batch counts too.
    A layer is left out where the samples are not axis 0 of its output, or where nothing behind depends on it, its
    channels also where they are not rounded together (`rounding_problem.coupled`). Few rows run at a time where the
    graph's tensors are large: gradients need all of them at once. On `threads`, 0 for half of the cores: on both of a
    pair of hyperthreads, beside another process, small networks take many times as long.
    """
    device = best_device()
    network = network.to(device)
    index = GraphIndex(graph.model)
    most = min(max(MOST_NUMBERS // index.computed_numbers, 1), CHUNK)
    generator = torch.Generator(device).manual_seed(seed)
    parity = np.arange(len(rows)) % samples % 2
    positions: dict[str, Float32] = {}
    channels: list[dict[str, Float32]] = []
    with torch_threads(threads or half_granted()):
        for half in np.unique(parity):
            chosen = np.flatnonzero(parity == half)
            feeds = {name: on_device(x[chosen], device) for name, x in rows.inputs.items()}
            squares, products = _sums(graph, index, network, heads, feeds, most, generator)
            for node, w in squares.items():
                every = positions.setdefault(node, np.zeros((len(rows), w.shape[1]), np.float32))
                every[chosen] = w.sqrt().cpu().numpy()
            channels.append({name: _of_mean_one(a) for name, a in products.items() if float(torch.trace(a)) > SMALLEST})
    first, *others = channels
    return OutputWeights(
        positions={node: w / w.mean() for node, w in positions.items() if w.mean() > SMALLEST},
        channels={name: (a, other[name]) for other in others for name, a in first.items() if name in other},
    )


def _sums(
    graph: PreparedGraph,
    index: GraphIndex,
    network: TorchGraph,
    heads: Heads,
    feeds: Tensors,
    most: int,
    generator: torch.Generator,
) -> tuple[Tensors, Tensors]:
    """By node the squares of its output's gradients summed over channels, (rows, positions), the mean of some draws; by
    layer whose channels are rounded together their products g g^T summed over all positions, (C, C)."""
    layers = {index.nodes[node].output[0]: (node, layer) for layer in graph.layers for node in layer.nodes}
    products: Tensors = {}

    def squares(feed: Mapping[str, Tensor]) -> Tensors:
        size = len(next(iter(feed.values())))
        found = {}
        for tensor, g in _gradients(network, heads, feed, list(layers), generator, POSITION_DRAWS).items():
            node, layer = layers[tensor]
            if g.shape[1] == size:
                last = g.movedim(2 if "Conv" in layer.op else -1, -1)
                flat = last.reshape(-1, last.shape[-1])
                if coupled(layer):
                    products[layer.name] = products.get(layer.name, 0) + flat.T @ flat
                found[node] = flat.square().sum(dim=1).reshape(POSITION_DRAWS, size, -1).mean(dim=0)
        return found

    return in_chunks(squares, feeds, graph.batch, most), products


def _of_mean_one(matrix: Tensor) -> Float32:
    return (matrix * (len(matrix) / torch.trace(matrix))).cpu().numpy()


def _gradients(
    network: TorchGraph,
    heads: Heads,
    feed: Mapping[str, Tensor],
    tensors: Sequence[str],
    generator: torch.Generator,
    draws: int,
) -> Tensors:
    """J^T v of some tensors, fed or computed, for some draws of v along a new first axis."""
    roots = [torch.from_numpy(weights) for weights in heads.root_weights]
    with torch.enable_grad():
        values = network(feed, hooks=dict.fromkeys(tensors, _tracked), outputs=[*tensors, *heads.tensors])
        inside, outputs = [values[name] for name in tensors], [values[name] for name in heads.tensors]
        drawn = [_directions(outputs, heads.classifier, roots, generator) for _ in range(draws)]
        behind = [i for i, value in enumerate(outputs) if value.requires_grad]  # others were made ahead, and are fed
        moved = [outputs[i] for i in behind]
        gradients = [
            torch.autograd.grad(moved, inside, [v[i] for i in behind], retain_graph=True, materialize_grads=True)
            for v in drawn
        ]
    return dict(zip(tensors, map(torch.stack, zip(*gradients, strict=True)), strict=True))


def _tracked(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.detach().requires_grad_()


def _directions(
    values: Sequence[Tensor], classifier: bool, roots: Sequence[Tensor], generator: torch.Generator
) -> list[Tensor]:
    """v, one tensor per output, rows being samples."""
    directions = []
    for i, value in enumerate(values):
        z = value.detach().flatten(1)
        signs = torch.randint(0, 2, z.shape, generator=generator, device=z.device).to(z.dtype) * 2 - 1
        if classifier:
            p = torch.softmax(z / SOFTENED, dim=1)
            pulled = p.sqrt() * signs
            v = pulled - p * pulled.sum(dim=1, keepdim=True)
        else:
            v = roots[i].to(z.device) * signs
        directions.append(v.reshape(value.shape))
    return directions
