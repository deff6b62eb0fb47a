"""What a later stage renews in the folder of a deployment besides its own files: lock and report.

The lock keeps what earlier stages wrote as long as it is of the same integers. The verdict is about the files as they
were, so it goes when one is written; the report follows both.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ompq_deploy.errors import BadInput, OmpqError
from ompq_deploy.files.lock import PLAN_FILE, VERDICT_FILE, lock_files, sha256_of
from ompq_deploy.files.outputs import OutputFolder
from ompq_deploy.files.plan_file import load_plan
from ompq_deploy.finish import ENGINE_RECORD, REPORT_FILE, write_report
from ompq_deploy.onnx_files import TENSORRT_FILE
from ompq_deploy.report import load_report, renewed_report

NOTHING: Mapping[str, str] = MappingProxyType({})


def files_kept(folder: Path, document: dict[str, Any], written: Collection[str]) -> dict[str, str]:
    """The lock's entries of the files that `folder` holds besides those written now. Raises BadInput where they are of
    other integers than the document's."""
    if not (folder / PLAN_FILE).exists():
        return {}
    earlier = load_plan(folder / PLAN_FILE)[1]
    files: dict[str, str] = earlier.get("files", {})
    others = {name: digest for name, digest in files.items() if name not in written and (folder / name).exists()}
    if others and earlier.get("integers") != document["integers"]:
        raise BadInput(
            f"{', '.join(others)} would stay here with other integers than those written now",
            where=str(folder),
            fix="give another --out, or remove those files",
        )
    return others


def commit_stage(
    out: OutputFolder,
    document: dict[str, Any],
    engine: dict[str, Any] | None,
    skipped: Mapping[str, str] = NOTHING,
    failures: Sequence[OmpqError] = (),
) -> None:
    """Lock what a stage has staged, beside the files its document records already, and renew the report; `skipped` and
    `failures` are the stage's own."""
    lock_files(document, out.staged(), beside=out.path)
    out.write_json(PLAN_FILE, document)
    out.supersede((VERDICT_FILE,))
    renew_report(out, document, engine=engine, skipped=skipped, failures=failures)


def recorded_engine(folder: Path, document: dict[str, Any]) -> dict[str, Any] | None:
    """engine.json, where it is the one that plan.json locks, and can be read."""
    path, locked = folder / ENGINE_RECORD, document.get("files", {}).get(ENGINE_RECORD)
    if not path.exists() or sha256_of(path) != locked:
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except ValueError:
        return None
    return record


def renew_report(
    out: OutputFolder,
    document: dict[str, Any],
    *,
    verdict: dict[str, Any] | None = None,
    engine: dict[str, Any] | None,
    skipped: Mapping[str, str] = NOTHING,
    failures: Sequence[OmpqError] = (),
) -> None:
    """The report in step with plan.json's document, the verdict and the engine; what else it told stays where it holds.
    A report that cannot be read is made anew."""
    try:
        earlier = load_report(out.path / REPORT_FILE)
    except BadInput:
        earlier = {}
    settled = {VERDICT_FILE, *(failure.where for failure in failures), *((TENSORRT_FILE,) if engine else ())}
    report = renewed_report(
        earlier, document, verdict=verdict, engine=engine, skipped=skipped, failures=failures, settled=settled
    )
    write_report(out, report)
