"""report.json: the plan, the verdict, the engine record, the heads and the evaluation in one document."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
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


def renewed_report(
    earlier: Mapping[str, Any],
    plan: Mapping[str, Any],
    *,
    verdict: Mapping[str, Any] | None,
    engine: Mapping[str, Any] | None,
    skipped: Mapping[str, str],
    failures: Sequence[OmpqError],
    settled: Collection[str],
) -> dict[str, Any]:
    """The report after a later stage, which skipped `skipped` and failed in `failures`. Of the earlier one, empty where
    there is none, heads, evaluation, what was skipped and other failures stay if integers and arithmetic are the same,
    but for failures at a place in `settled`."""
    kept = earlier if all(earlier.get(key) == plan.get(key) for key in ("integers", "arithmetic")) else {}
    before = {name: why for name, why in kept.get("skipped", {}).items() if not (name == "engine" and engine)}
    document = report_document(
        plan,
        verdict=verdict,
        engine=engine,
        heads=kept.get("heads"),
        evaluation=kept.get("eval"),
        skipped={**before, **skipped},
        failures=failures,
    )
    document["failures"] += [failure for failure in kept.get("failures", []) if failure["where"] not in settled]
    document["passed"] = not document["failures"]
    return document


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
