"""Where a killed run goes on: a file that is either the old state or the new one, never half of one.

Imports torch, so it is only imported inside functions, and by modules that are.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ompq_deploy.errors import BadInput


def save(path: Path, run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write `state` with what the run is made of, `run`, in place of an earlier checkpoint."""
    unfinished = path.with_suffix(".part")
    try:
        with unfinished.open("wb") as stream:
            torch.save({"run": dict(run), "state": dict(state)}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    except OSError as e:
        unfinished.unlink(missing_ok=True)
        raise BadInput(
            f"cannot write the checkpoint: {e.strerror or e}", where=str(path), fix="give a writable --out with room"
        ) from e


def load(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a checkpoint. Raises BadInput where it is unreadable, or of another run than `run`."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        made_of, state = stored["run"], stored["state"]
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as e:
        raise BadInput(f"this is no checkpoint: {e}", where=str(path), fix="remove it to start again") from e
    changed = sorted(name for name in {*made_of, *run} if made_of.get(name) != run.get(name))
    if changed:
        raise BadInput(
            f"the checkpoint is of another run; they differ in: {', '.join(changed)}",
            where=str(path),
            fix="give the same model, plan, data and settings, or remove it to start again",
        )
    return dict(state)
