"""ompq-deploy: from a float ONNX network to a mixed INT4/INT8 deployment under a hard size budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ompq_deploy.pipeline import Deployment

__all__ = ["deploy"]


def deploy(model: str, size: str, out: str | None = None, **settings: Any) -> Deployment:
    """Do the whole job of `ompq-deploy MODEL --size SIZE`; the same result object as the command.

    `settings` are fields of `settings.PlanSettings` (calib, bits, samples, metric, ...) and
    `settings.DeploySettings` (targets, arithmetic, eval_data, max_drop, dry_run). Raises `errors.OmpqError`.
    """
    from dataclasses import fields
    from pathlib import Path

    from ompq_deploy import pipeline
    from ompq_deploy.settings import DeploySettings, PlanSettings

    planning = {field.name for field in fields(PlanSettings)}
    plan = PlanSettings(size=size, **{name: value for name, value in settings.items() if name in planning})
    rest = {name: value for name, value in settings.items() if name not in planning}
    folder = Path(out) if out else Path(f"{Path(model).stem}.ompq")
    return pipeline.deploy(Path(model), DeploySettings(plan=plan, out=folder, **rest))
