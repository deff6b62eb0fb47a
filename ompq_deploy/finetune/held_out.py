"""How a network does on the samples kept from training, each process running its share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ompq_deploy.finetune.batches import Batch
from ompq_deploy.finetune.distributed import World


@dataclass(frozen=True, kw_only=True)
class Held:
    """Mean loss, and top-1 in percent where there are labels."""

    loss: float
    top1: float | None

    def __str__(self) -> str:
        return f"{self.loss:.4f}" + (f" ({self.top1:.2f} %)" if self.top1 is not None else "")

    def recorded(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {"held_out_loss": self.loss, "held_out_top1": self.top1}


@torch.no_grad()
def measure(
    run: Callable[[Batch], tuple[Tensor, list[Tensor]]], batches: Iterable[Batch], count: int, world: World
) -> Held:
    """The figures over the `count` samples that the batches of all processes hold.

    `run` gives the sum of the losses and the outputs, logits first. Convolutions run in whole float32, so that the
    figures are those of the Q/DQ model.
    """
    sums = torch.zeros(3, device=world.device, dtype=torch.float64)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for batch in batches:
            loss, outputs = run(batch)
            sums[0] += loss
            if batch.labels is not None:
                sums[1] += (outputs[0].flatten(1).argmax(dim=1) == batch.labels).sum()
                sums[2] += len(batch.labels)
    world.add_up([sums])
    loss_sum, hits, labelled = sums.tolist()
    return Held(loss=loss_sum / count, top1=100 * hits / labelled if labelled else None)
