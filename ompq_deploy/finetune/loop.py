"""Quantization-aware training: SGD with momentum on the network whose integers are written.

Every forward pass rounds weights, biases and activations as the Q/DQ model does (`torch_graph/fake_quant.py`). After
every epoch the held-out samples run in float32; the epoch of least loss is kept, the integers training started from
included.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ompq_deploy.artifacts import QuantizedGraph
from ompq_deploy.errors import BadInput
from ompq_deploy.files import checkpoint
from ompq_deploy.finetune.batches import Batch, Batches
from ompq_deploy.finetune.distributed import World
from ompq_deploy.finetune.held_out import Held, measure
from ompq_deploy.finetune.objective import Objective
from ompq_deploy.finetune.optimizer import Optimizer
from ompq_deploy.finetune.schedule import rate
from ompq_deploy.finetune.settings import TrainSettings
from ompq_deploy.finetune.start import centred, values_per_sample
from ompq_deploy.runtime.timing import Listener
from ompq_deploy.torch_graph.graph import TorchGraph

TELL_EVERY = 1.0
"""Seconds between two messages of progress."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: the integers to begin with, the samples, the loss, and where checkpoints go.

    `run` is what a checkpoint is bound to, as JSON values.
    """

    start: QuantizedGraph
    batches: Batches
    objective: Objective
    settings: TrainSettings
    checkpoint: Path
    run: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The integers kept, and the record of the training as JSON values."""

    quantized: QuantizedGraph
    record: dict[str, Any]


@dataclass
class _Progress:
    """What changes while training: the step to come, the figures of every epoch done, the best network so far."""

    step: int = 0
    seconds: float = 0.0
    total: float = 0.0
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)


def train(task: Task, world: World, *, resume: bool = False, tell: Listener | None = None) -> Outcome:
    """Train, and return the best integers. Raises BadInput where training diverges, or the checkpoint is another's."""
    return _Trainer(task, world, tell or (lambda *_: None)).run(resume)


class _Trainer:
    def __init__(self, task: Task, world: World, tell: Listener) -> None:
        self.task, self.world, self.tell = task, world, tell
        settings = task.settings
        self.network = centred(task.start).to(world.device)
        self.reference = TorchGraph(task.start.graph).to(world.device)
        self.fixed = task.start.graph.batch
        self.tensors = task.objective.heads.tensors
        self.autocast = _precision(settings.precision, world.device)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.autocast == torch.float16)
        data = task.batches.data
        self.steps = len(data.training) // settings.batch
        sizes = values_per_sample(self.network, data.take(data.training[: self.fixed or 1])[0])
        self.optimizer = Optimizer(self.network, sizes, settings.momentum, settings.weight_decay)
        self.progress = _Progress()

    def run(self, resume: bool) -> Outcome:
        resumed_at = self._restore() if resume else None
        settings, progress = self.task.settings, self.progress
        if not progress.best:
            self._keep_best(0, self.held_out())
        began = time.perf_counter() - progress.seconds
        while progress.step < settings.epochs * self.steps:
            self._epoch(progress.step // self.steps, began)
        if self.task.batches.data.held_out.size:
            self.network.load_state_dict(progress.best["network"])
        record = {
            "epochs": progress.epochs,
            "kept_epoch": progress.best["epoch"] if self.task.batches.data.held_out.size else settings.epochs,
            "steps_per_epoch": self.steps,
            "processes": self.world.size,
            "device": self.world.device.type,
            "seconds": round(progress.seconds, 1),
            "resumed_at_step": resumed_at,
        }
        return Outcome(quantized=self.network.quantized(), record=record)

    def _epoch(self, number: int, began: float) -> None:
        settings, progress = self.task.settings, self.progress
        entered, told = time.perf_counter(), 0.0
        for batch in self.task.batches.epoch(number, progress.step % self.steps):
            factor = rate(progress.step, settings.epochs * self.steps, settings.warmup)
            progress.total += float(self.step(batch, settings.lr * factor))
            progress.step += 1
            progress.seconds = time.perf_counter() - began
            if time.perf_counter() - told > TELL_EVERY:
                told = time.perf_counter()
                self.tell(self._message(number, began), None)
            if progress.step % settings.checkpoint_every == 0:
                self._save()
        loss = progress.total / self.steps
        held = self.held_out()
        progress.total = 0.0
        progress.epochs.append({"epoch": number + 1, "loss": loss, **(held.recorded() if held else {})})
        self._keep_best(number + 1, held)
        self._save()
        figures = f"loss {loss:.4f}" + (f", held out {held}" if held else "")
        self.tell(f"epoch {number + 1}/{settings.epochs}: {figures}", time.perf_counter() - entered)

    def step(self, batch: Batch, lr: float) -> Tensor:
        """One step of the optimizer; the mean loss of the whole batch before it."""
        total = torch.zeros((), device=self.world.device)
        for piece in batch.pieces(self.fixed):
            with torch.autocast(self.world.device.type, self.autocast, enabled=self.autocast is not None):
                loss = self._run(piece)[0] / batch.whole
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self.world.add_up([total, *self.optimizer.gradients()])
        if not torch.isfinite(total):
            raise BadInput(
                f"the loss is no longer finite after {self.progress.step} steps", where="--lr", fix="lower --lr"
            )
        self.optimizer.step(lr, self.scaler)
        return total

    def held_out(self) -> Held | None:
        """How the network as it is does on the held-out samples, in float32; None where there are none."""
        count = self.task.batches.data.held_out.size
        pieces = (piece for batch in self.task.batches.held_out() for piece in batch.pieces(self.fixed))
        return measure(self._run, pieces, count, self.world) if count else None

    def _run(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The sum of the losses of a batch, and the network's outputs."""
        reference: list[Tensor] = []
        if self.task.objective.distill > 0:
            with torch.no_grad():
                reference = list(self.reference(batch.feeds, outputs=self.tensors).values())
        outputs = list(self.network(batch.feeds, self.tensors).values())
        return self.task.objective(outputs, reference, batch.labels), outputs

    def _keep_best(self, epoch: int, held: Held | None) -> None:
        least = self.progress.best.get("loss", math.nan)
        if held is not None and (held.loss < least or math.isnan(least)):
            network = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
            self.progress.best = {"epoch": epoch, "loss": held.loss, "network": network}

    def _save(self) -> None:
        if self.world.first:
            state = {
                **vars(self.progress),
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            checkpoint.save(self.task.checkpoint, self.task.run, state)

    def _restore(self) -> int | None:
        """Go on from the checkpoint, if there is one; the step it was written at."""
        path = self.task.checkpoint
        state = self.world.share(lambda: checkpoint.load(path, self.task.run) if path.exists() else None)
        if state is None:
            return None
        self.network.load_state_dict(state.pop("network"))
        self.optimizer.load_state_dict(state.pop("optimizer"))
        self.scaler.load_state_dict(state.pop("scaler"))
        self.progress = _Progress(**state)
        return self.progress.step

    def _message(self, epoch: int, began: float) -> str:
        progress, epochs = self.progress, self.task.settings.epochs
        done = progress.step - epoch * self.steps
        left = (epochs * self.steps - progress.step) * (time.perf_counter() - began) / progress.step
        return (
            f"epoch {epoch + 1}/{epochs}, step {done}/{self.steps}, loss {progress.total / done:.4f}, "
            f"{left / 60:.1f} min left"
        )


def _precision(asked: str, device: torch.device) -> torch.dtype | None:
    """The type of autocast for the training steps; None for none."""
    if asked == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[asked]
