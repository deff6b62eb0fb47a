"""`--effort extensive`: the integers of the closed form learned on, one block of the graph after the other, from the
last one as far as that helps.

`blocks.py` cuts the graph, `adaround.py` holds the maths of rounding and `../fisher.py` those of the weighted loss;
`fronts.py` has the samples in front of every block, `learn.py` improves one block, and `walk.py` goes through them.
All but this file and `blocks.py` import torch, so they are only imported inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ompq_deploy.artifacts import QuantizedGraph, Samples
from ompq_deploy.errors import BadInput
from ompq_deploy.runtime.timing import Listener
from ompq_deploy.torch_graph import require_torch

CHECKPOINT_FILE = ".ompq-resume"
FISHER = "fisher"
LOSSES = ("squared", FISHER)


@dataclass(frozen=True, kw_only=True)
class ReconstructSettings:
    """`iterations` per block at most; `loss` says how the elements of a block's output are weighted (`learn.py`);
    `drop` is the share of activations left unrounded while learning (QDrop). Images are
    repeated, augmented as `augment` says, until they are `rows`. `biases` tells whether biases may move."""

    iterations: int = 400
    loss: str = "squared"
    drop: float = 0.5
    augment: str = "none"
    rows: int = 256
    biases: bool = True
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        limits = {
            "iterations": self.iterations >= 1,
            "loss": self.loss in LOSSES,
            "drop": 0 <= self.drop < 1,
            "rows": self.rows >= 1,
        }
        for name, holds in limits.items():
            if not holds:
                raise BadInput(
                    f"{getattr(self, name)!r} cannot be used",
                    where=f"reconstruction: {name}",
                    fix=f"choose one of {', '.join(LOSSES)}" if name == "loss" else "read docs/maths.md",
                )


def reconstruct_blocks(
    start: QuantizedGraph,
    samples: Samples,
    settings: ReconstructSettings | None = None,
    *,
    checkpoint: Path | None = None,
    tell: Listener | None = None,
) -> QuantizedGraph:
    """Integers of the same widths whose blocks are at least as close to the float ones as those of `start`.

    After every block the state goes to `checkpoint`, and a run of the same model, samples, integers and settings goes
    on from there; the file of any other run is overwritten. It stays until the caller removes it. `tell` hears how many
    blocks are done and how much time is left. On a GPU where torch sees one.

    Raises BackendMissing without torch, or for an operator the torch executor does not know.
    """
    require_torch("--effort extensive", "choose --effort default")
    from ompq_deploy.quantize.reconstruct.walk import walk

    return walk(start, samples, settings or ReconstructSettings(), checkpoint, tell or (lambda *_: None))
