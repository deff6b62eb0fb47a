"""The loss: labels, the float network's outputs, or both.

classifier     l_n = (1 - d) * -ln p'_y  +  d * sum_c p_c (ln p_c - ln p'_c)      p the float network's, p' the trained
anything else  l_n = ||W (y'_n - y_n)||^2                                          d = 1; W as in `heads.Reference`

d is `distill` (Hinton et al., 2015, at temperature 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ompq_deploy.evaluate.heads import Heads


class Objective:
    """`weights` are the `root_weights` of a `heads.Reference`, one per tensor of `heads`; empty for a classifier."""

    def __init__(self, heads: Heads, distill: float, weights: Sequence[Tensor] = ()) -> None:
        self.heads = heads
        self.distill = distill
        self._weights = list(weights)

    def __call__(self, outputs: Sequence[Tensor], reference: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """The sum over samples of l_n; `reference` are the float network's outputs, empty where d is 0."""
        if not self.heads.classifier:
            return torch.stack(
                [
                    ((y - y0).float().reshape(len(y0), -1) * w).square().sum()
                    for y, y0, w in zip(outputs, reference, self._weights, strict=True)
                ]
            ).sum()
        log_q = F.log_softmax(outputs[0].float().flatten(1), dim=1)
        total = log_q.new_zeros(())
        if self.distill < 1:
            assert labels is not None
            total = total + (1 - self.distill) * F.nll_loss(log_q, labels, reduction="sum")
        if self.distill > 0:
            log_p = F.log_softmax(reference[0].float().flatten(1), dim=1)
            total = total + self.distill * F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return total
