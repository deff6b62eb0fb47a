"""What is learned of a block, as functions of free parameters.

    weight   s clip(floor + h(V), low, high)     adaround.py
    scale, step   s = s_0 exp(r)                 bias   b = b_0 + mean |b_0| d

With `drop`, every element of the block's inputs and activations is left in floating point with that probability, to
1/256 (Wei et al., "QDrop", ICLR 2022, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ompq_deploy.numerics import signed_range
from ompq_deploy.quantize.reconstruct import ReconstructSettings
from ompq_deploy.quantize.reconstruct.adaround import LearnedRounding, beta_at
from ompq_deploy.quantize.reconstruct.block import BlockNetwork
from ompq_deploy.torch_graph.chunks import Tensors
from ompq_deploy.torch_graph.fake_quant import along, fake_quantize

ROUNDING_RATE, RATIO_RATE, BIAS_RATE = 0.05, 1e-3, 1e-3
FARTHEST_RATIO = 0.3
"""Bound of |r|. Two grids that shrink by it leave a bias that had half of int32 still within it."""


class SoftBlock:
    """The learned state of a block."""

    def __init__(self, block: BlockNetwork, settings: ReconstructSettings) -> None:
        self._block, self._drop = block, settings.drop
        net = block.network
        floats = net.origin.graph.layer_weights()
        self._scales = [net.scale(i).detach().clone() for i in block.layers]
        self._rounding = []
        for i, scale in zip(block.layers, self._scales, strict=True):
            layer, weight = net.origin.layers[i].layer, net.weights[i].detach()
            step = along(scale, weight, layer)
            exact = torch.tensor(floats[layer.name], device=weight.device)
            low, high = signed_range(net.bits[i])
            codes = torch.clamp(torch.round(weight / step), low, high)
            self._rounding.append(LearnedRounding(codes, exact / step, low, high))
        self._ratios = [torch.zeros_like(scale).requires_grad_() for scale in self._scales]
        self._biases = [net.biases[i].detach().clone() for i in block.biases]
        self._shifts = [torch.zeros_like(bias).requires_grad_() for bias in self._biases]
        self._steps = [net.step(i).detach().clone() for i in block.steps]
        self._step_ratios = [torch.zeros_like(step).requires_grad_() for step in self._steps]
        self._count = sum(rounding.v.numel() for rounding in self._rounding)
        groups = [([rounding.v for rounding in self._rounding], ROUNDING_RATE)]
        groups.append(([*self._ratios, *self._step_ratios], RATIO_RATE))
        if settings.biases:
            groups.append((self._shifts, BIAS_RATE))
        self.groups = [{"params": values, "lr": rate} for values, rate in groups if values]

    def run(self, exact: Tensors, inputs: Tensors, generator: torch.Generator) -> Tensors:
        """The block's outputs with soft codes, with gradients."""
        block, grids = self._block, self._block.network.origin.grids

        def quantizer(i: int, step: Tensor) -> Callable[[Tensor], Tensor]:
            grid = grids[block.network.activations[i]]
            return lambda x: self._mixed(fake_quantize(x, step, grid.low, grid.high), x, generator)

        steps = [_scaled(s, r) for s, r in zip(self._steps, self._step_ratios, strict=True)]
        return block.run(
            {name: self._mixed(x, exact[name], generator) for name, x in inputs.items()},
            weights={i: self._weight(k, rounding.soft()) for k, (i, rounding) in enumerate(self._pairs())},
            biases=[self._bias(k) for k in range(len(self._biases))],
            quantizers=[quantizer(i, step) for i, step in zip(block.steps, steps, strict=True)],
        )

    def indecision(self, progress: float) -> Tensor:
        """R(V) over all weights of the block."""
        beta = beta_at(progress)
        return torch.stack([rounding.indecision(beta) for rounding in self._rounding]).sum() / self._count

    @torch.no_grad()
    def commit(self) -> None:
        """Write the rounded state into the network."""
        net, block = self._block.network, self._block
        for k, (i, rounding) in enumerate(self._pairs()):
            net.weights[i].copy_(self._weight(k, rounding.hard()))
            net.scales[i].copy_(_scaled(self._scales[k], self._ratios[k]))
        for k, i in enumerate(block.biases):
            net.biases[i].copy_(self._bias(k))
        for k, i in enumerate(block.steps):
            net.steps[i].copy_(_scaled(self._steps[k], self._step_ratios[k]))

    def _pairs(self) -> list[tuple[int, LearnedRounding]]:
        return list(zip(self._block.layers, self._rounding, strict=True))

    def _weight(self, k: int, codes: Tensor) -> Tensor:
        layer = self._block.network.origin.layers[self._block.layers[k]].layer
        return along(_scaled(self._scales[k], self._ratios[k]), codes, layer) * codes

    def _bias(self, k: int) -> Tensor:
        return self._biases[k] + self._biases[k].abs().mean() * self._shifts[k]

    def _mixed(self, rounded: Tensor, exact: Tensor, generator: torch.Generator) -> Tensor:
        """Elements of `exact` with probability `drop`, else of `rounded`."""
        if not self._drop:
            return rounded
        return torch.where(random_bytes(rounded.shape, generator) < round(256 * self._drop), exact, rounded)


def random_bytes(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """uint8 of a shape, eight per draw: a draw for each takes longer than the layers do."""
    draws = torch.empty(math.ceil(shape.numel() / 8), dtype=torch.int64, device=generator.device)
    return draws.random_(-(2**63), None, generator=generator).view(torch.uint8)[: shape.numel()].view(shape)


def _scaled(scale: Tensor, ratio: Tensor) -> Tensor:
    return scale * torch.exp(ratio.clamp(-FARTHEST_RATIO, FARTHEST_RATIO))
