"""SGD with momentum over a FakeQuantGraph, every parameter in units of its own.

    weight channel w_c           g <- (s_c / s)^2 g                  s_c its scale at the start, s^2 the mean of s_c^2
    its scale s_c                g <- (s_c / s)^2 g / ||q_c||^2      q_c the codes of the channel
    step of an activation        g <- g / sqrt(F q)                  F values per sample, q the largest code

Folding BatchNorm into a weight multiplies channel c by gamma_c / sigma_c and its gradient by the inverse. The square
undoes that: a step changes a channel as it would have before folding. Plain SGD throws channels that BatchNorm has all
but switched off, with scales of 1e-5 of their neighbours', about until the loss is NaN (ResNet-20, 10 steps).

A scale moves all weights of its channel, each by its code, so the loss curves ||q_c||^2 times as much along it as along
one weight. LSQ divides by a root (Esser et al., ICLR 2020, section 2.2), for networks whose BatchNorm takes out what a
scale does; without BatchNorm the loss grew with it. Steps of activations are those of LSQ. All scales and steps stay
within a factor of `REACH` of where they began, so that none reaches zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ompq_deploy.torch_graph.fake_quant import FakeQuantGraph, along

REACH = 4.0


class Optimizer:
    """`values` per sample of every activation of the network, in its order. Only weights decay."""

    def __init__(self, network: FakeQuantGraph, values: Sequence[int], momentum: float, weight_decay: float) -> None:
        self.factors: list[tuple[nn.Parameter, Tensor | float]] = []
        for i, q in enumerate(network.origin.layers):
            weight, scale = network.weights[i], network.scales[i]
            relative = (scale / scale.square().mean().sqrt()).detach().square()
            codes = np.moveaxis(q.codes.astype(np.float32), q.layer.channel_axis, 0).reshape(len(scale), -1)
            energy = torch.from_numpy(np.square(codes).sum(axis=1)).clamp_min(1).to(scale.device)
            self.factors.append((weight, along(relative, weight, q.layer)))
            self.factors.append((scale, relative / energy))
        for i, (step, count) in enumerate(zip(network.steps, values, strict=True)):
            self.factors.append((step, 1 / math.sqrt(count * network.grid(i).largest)))
        rest = [*network.scales, *network.steps, *network.biases]
        self.ranges = [(p, p.detach() / REACH, p.detach() * REACH) for p in (*network.scales, *network.steps)]
        groups: list[dict[str, Any]] = [
            {"params": list(network.weights), "weight_decay": weight_decay},
            {"params": rest},
        ]
        self.sgd = torch.optim.SGD(groups, lr=0.0, momentum=momentum)

    def gradients(self) -> list[Tensor]:
        """The gradients there are, in a fixed order."""
        parameters = [p for group in self.sgd.param_groups for p in group["params"]]
        return [p.grad for p in parameters if p.grad is not None]

    def step(self, lr: float, scaler: torch.amp.GradScaler) -> None:
        """One step at rate `lr`, skipped where the scaler finds a gradient of 16 bits that is not finite."""
        for parameter, factor in self.factors:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        for group in self.sgd.param_groups:
            group["lr"] = lr
        scaler.step(self.sgd)
        scaler.update()
        self.sgd.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, least, most in self.ranges:
                parameter.clamp_(least, most)

    def state_dict(self) -> dict[str, Any]:
        """Momenta and rates."""
        return self.sgd.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from an earlier `state_dict`."""
        self.sgd.load_state_dict(state)
