"""The verbs that write nothing: `eval` and `doctor`."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from ompq_deploy.calib import Preprocess, input_specs, load_labelled
from ompq_deploy.evaluate.accuracy import evaluate
from ompq_deploy.export.tensorrt.backend import BACKENDS, Backend, probe
from ompq_deploy.files.plan_file import versions
from ompq_deploy.prepare import load_model


def eval_model(model: Path, data: Path, preprocess: Preprocess | None, threads: int) -> dict[str, Any]:
    """The verb `eval`: {"n", "top1", "top5"} of any of the three models."""
    loaded = load_model(model)
    result = evaluate(loaded, load_labelled(data, input_specs(loaded), preprocess=preprocess), threads=threads)
    return {"n": result.n, "top1": result.top1, "top5": result.top5}


def installed() -> dict[str, Any]:
    """The verb `doctor`: versions installed, and the engine backends with why one is missing."""
    backends = {}
    for name in BACKENDS:
        found = probe(name)
        backends[name] = found.version if isinstance(found, Backend) else found.reason
    return {"packages": {"python": platform.python_version(), **versions()}, "backends": backends}
