"""ompq-deploy: from a float ONNX network to a mixed INT4/INT8 deployment under a hard size budget."""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ompq_deploy.finish import Deployment

__all__ = ["deploy"]


def deploy(
    model: str | PathLike[str], size: str | int | None = None, out: str | PathLike[str] | None = None, **settings: Any
) -> Deployment:
    """Do the whole job of `ompq-deploy MODEL --size SIZE`; the same result object as the command.

    `settings` are the command's flags, spelled with _ for -: `bits="2-8"` or `(4, 8)`, `target="onnx"` or
    `("onnx", "integer")`, `effort="quick"`, `metric="orm"`, `calib="photos"`, `eval="val"`, `max_drop=1.0`,
    `pin=["fc=8"]`, `dry_run=True`. Paths may be Path objects, and `preprocess` a `calib.Preprocess`. Raises
    `errors.OmpqError` where the command does no work; gates and targets that fail are the result's `failures`.
    """
    from dataclasses import replace
    from pathlib import Path

    from ompq_deploy import pipeline
    from ompq_deploy.calib import Preprocess
    from ompq_deploy.cli import deploy as command
    from ompq_deploy.keywords import parsed
    from ompq_deploy.options import deploy_settings

    given = {"size": size, "out": out, **settings}
    preprocess = given.pop("preprocess") if isinstance(given.get("preprocess"), Preprocess) else None
    with parsed(command, fspath(model), given, "ompq_deploy.deploy") as flags:
        wanted = deploy_settings(flags)
        if preprocess is not None:
            wanted = replace(wanted, plan=replace(wanted.plan, preprocess=preprocess))
        return pipeline.deploy(Path(model), wanted)
