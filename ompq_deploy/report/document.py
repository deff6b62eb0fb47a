"""report.json: the plan, the verdict, the engine record and the evaluation in one document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ompq_deploy.errors import OmpqError


def report_document(
    plan: Mapping[str, Any],
    *,
    verdict: Mapping[str, Any] | None,
    engine: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
    skipped: Mapping[str, str],
    failures: Sequence[OmpqError],
) -> dict[str, Any]:
    """The report as JSON values. `skipped` says, per target, why it was not written."""
    return {
        **plan,
        "verify": verdict,
        "engine": engine,
        "eval": evaluation,
        "skipped": dict(skipped),
        "failures": [{"exit_code": e.exit_code, "what": e.what, "where": e.where, "fix": e.fix} for e in failures],
        "passed": not failures,
    }
