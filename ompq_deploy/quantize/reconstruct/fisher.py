"""How much each element of a block's output matters to the network: the diagonal of its Fisher information.

    w = E_v (J^T v)^2,   E v v^T = F         J: the network's outputs in the block's, at the float network
                                             F: the metric of those outputs (`heads.py`)
    classifier       KL(p || p') ~ 1/2 dz^T F dz,  F = diag(p) - p p^T       v = sqrt(p) r - p <sqrt(p), r>
    anything else    ||W dy||^2,                   F = W^2                   v = W r           r: random signs

Li et al., "BRECQ", ICLR 2021, Eq. 10, which squares one gradient of the loss; here it is an estimate without bias of
the diagonal, for every sample, since the KL to the float network has no gradient at the float network itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ompq_deploy.heads import Heads
from ompq_deploy.quantize.reconstruct.prefix import Tensors, in_chunks
from ompq_deploy.torch_graph.graph import TorchGraph

DRAWS = 4
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
    roots = [torch.from_numpy(weights) for weights in heads.root_weights]

    def squares(feed: Mapping[str, Tensor]) -> Tensors:
        with torch.enable_grad():
            leaves = {name: feed[name].detach().requires_grad_() for name in outputs}
            values = list(network({**feed, **leaves}, outputs=heads.tensors).values())
            drawn = [_directions(values, heads.classifier, roots, generator) for _ in range(DRAWS)]
            gradients = [
                torch.autograd.grad(values, list(leaves.values()), v, retain_graph=True, materialize_grads=True)
                for v in drawn
            ]
        sums = (torch.stack(column).square().mean(dim=0) for column in zip(*gradients, strict=True))
        return dict(zip(leaves, sums, strict=True))

    found = in_chunks(squares, feeds, fixed)
    mean = sum(float(w.sum()) for w in found.values()) / sum(w.numel() for w in found.values())
    if mean <= SMALLEST:
        return {name: torch.ones_like(w) for name, w in found.items()}
    return {name: w / mean for name, w in found.items()}


def _directions(
    values: Sequence[Tensor], classifier: bool, roots: Sequence[Tensor], generator: torch.Generator
) -> list[Tensor]:
    """v, one tensor per output, rows being samples."""
    directions = []
    for i, value in enumerate(values):
        z = value.detach().flatten(1)
        signs = torch.randint(0, 2, z.shape, generator=generator, device=z.device).to(z.dtype) * 2 - 1
        if classifier:
            p = torch.softmax(z, dim=1)
            pulled = p.sqrt() * signs
            v = pulled - p * pulled.sum(dim=1, keepdim=True)
        else:
            v = roots[i].to(z.device) * signs
        directions.append(v.reshape(value.shape))
    return directions
