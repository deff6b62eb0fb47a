"""`--effort extensive`: the integers of `--effort default`, learned on, one block of the graph after the other.

`blocks.py` cuts the graph and `adaround.py` holds the maths of rounding; `learn.py` improves one block, `prefix.py`
carries the samples from block to block, and `walk.py` goes through them all. All but this file and `blocks.py` import
torch, so they are only imported inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ompq_deploy.artifacts import QuantizedGraph, Samples
from ompq_deploy.timing import Listener
from ompq_deploy.torch_graph import require_torch

CHECKPOINT_FILE = ".ompq-resume"


@dataclass(frozen=True, kw_only=True)
class ReconstructSettings:
    """`iterations` per block at most; `drop` is the share of activations left unrounded while learning (QDrop);
    `biases` tells whether they may move."""

    iterations: int = 800
    drop: float = 0.0
    biases: bool = True
    seed: int = 0
    threads: int = 0


def reconstruct(
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
