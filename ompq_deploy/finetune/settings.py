"""Everything a user can choose about training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ompq_deploy.augment import AUGMENTATIONS
from ompq_deploy.calib import Preprocess
from ompq_deploy.errors import BadInput

CHECKPOINT_FILE = "finetune.ckpt"
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train. `batch` counts the samples of all processes together.

    `lr` is the rate after `warmup` (a share of all steps), before the cosine takes it to zero. `distill` is the share
    of the loss that compares with the float network; at 1 labels are not read. `hold_out` is the share of the training
    data that decides which epoch is kept; at 0 it is the last. `augment` "auto" is flip+crop for images and none for
    arrays. `precision` is that of the training steps, "auto" 16 bits on a GPU; held-out samples run in float32.
    """

    epochs: int = 10
    batch: int = 128
    lr: float = 0.002
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.05
    distill: float = 0.5
    augment: str = "auto"
    hold_out: float = 0.05
    precision: str = "auto"
    device: str = "auto"
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "epochs": self.epochs >= 1,
            "batch": self.batch >= 1,
            "lr": self.lr > 0,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "warmup": 0 <= self.warmup < 1,
            "distill": 0 <= self.distill <= 1,
            "hold_out": 0 <= self.hold_out < 1,
            "checkpoint_every": self.checkpoint_every >= 1,
            "seed": self.seed >= 0,
            "augment": self.augment in AUGMENTATIONS,
            "precision": self.precision in PRECISIONS,
            "device": self.device in DEVICES,
        }
        for name, holds in limits.items():
            if not holds:
                raise BadInput(
                    f"{getattr(self, name)!r} cannot be used",
                    where=f"--{name.replace('_', '-')}",
                    fix="read the ranges in docs/qat.md",
                )

    def recorded(self) -> dict[str, Any]:
        """The settings that decide the result, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in ("device", "checkpoint_every")}


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """A whole run: the plan, where its integers start, the data, what to write, how to judge it.

    `start` is the folder of an earlier run whose integers to begin with; None rounds as the plan's settings say.
    `preprocess` is that of the training and evaluation data; None is that of the plan. `resume` goes on from the
    checkpoint in `out`, if there is one.
    """

    plan: Path
    train: tuple[Path, ...]
    out: Path
    training: TrainSettings
    start: Path | None = None
    preprocess: Preprocess | None = None
    eval_data: Path | None = None
    max_drop: float | None = None
    targets: tuple[str, ...] = ("auto",)
    resume: bool = False
    threads: int = 0
