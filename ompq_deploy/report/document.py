"""report.json: the plan, the verdict, the engine record, the heads and the evaluation in one document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ompq_deploy.errors import BadInput, OmpqError


def report_document(
    plan: Mapping[str, Any],
    *,
    verdict: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    heads: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    skipped: Mapping[str, str] = MappingProxyType({}),
    failures: Sequence[OmpqError] = (),
) -> dict[str, Any]:
    """The report as JSON values, of a plan alone or with what came of it. `skipped` says, per target, why it was not
    written."""
    return {
        **plan,
        "verify": verdict,
        "engine": engine,
        "heads": heads,
        "eval": evaluation,
        "skipped": dict(skipped),
        "failures": [{"exit_code": e.exit_code, "what": e.what, "where": e.where, "fix": e.fix} for e in failures],
        "passed": not failures,
    }


def load_report(path: Path) -> dict[str, Any]:
    """A report.json read back. Raises BadInput for anything else."""
    try:
        document = json.loads(path.read_text())
    except OSError as e:
        raise BadInput(f"cannot read the report: {e.strerror}", where=str(path), fix="run ompq-deploy first") from e
    except ValueError as e:
        raise BadInput(f"this is not a report.json: {e}", where=str(path), fix="run ompq-deploy again") from e
    if not isinstance(document, dict) or "layers" not in document:
        raise BadInput("this is not a report.json", where=str(path), fix="run ompq-deploy again")
    return document
