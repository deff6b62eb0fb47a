"""The Markdown of `accuracy.py`: the targets, one table per network, and every setting of the other tools.

Another tool's row shows its best setting on the evaluation images, top-1 first and then KL, which is in its favour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accuracy_cells import NETWORKS, TARGETS, Target, cells_of
from accuracy_stats import paired_drop, unpack, verdict
from other_tools import MODELOPT, RECIPES

MARKER = "<!-- written by benchmarks/accuracy.py -->"
EFFORTS = ("quick", "default", "extensive")
FLOAT_KEY = "float/float"

Row = Mapping[str, Any]
Rows = Mapping[str, Row]


def write_page(path: Path, rows: Rows) -> None:
    """Replace everything behind `MARKER` in a page; the words before it are kept."""
    words, _, _ = path.read_text().partition(MARKER) if path.exists() else ("", "", "")
    path.write_text(f"{words}{MARKER}\n\n{markdown(rows)}")


def markdown(rows: Rows) -> str:
    """All tables of the networks whose float row is there."""
    networks = [name for name in NETWORKS if f"{name}/{FLOAT_KEY}" in rows]
    for name in networks:
        check_same_samples(rows, name)
    parts = [_tools(rows), "## Targets", _targets(rows, networks)]
    for name in networks:
        parts += [f"## {_title(rows, name)}", _table(rows, name), *_failures(rows, name)]
    return "\n\n".join([*parts, "## Every setting of the other tools", _settings(rows, networks)]) + "\n"


def check_same_samples(rows: Rows, network: str) -> None:
    """Rows of a network compare only if all were calibrated on the same samples."""
    found: dict[str, str] = {}
    for key, row in rows.items():
        if key.startswith(f"{network}/") and "calibration" in row:
            found.setdefault(row["calibration"], key)
    if len(found) > 1:
        raise SystemExit(f"calibrated on different samples: {' and '.join(found.values())}; compute them --again")


def _tools(rows: Rows) -> str:
    tools = sorted({row["tool"] for row in rows.values() if "tool" in row})
    missing = "" if any(tool.startswith(MODELOPT) for tool in tools) else f" Not measured: {MODELOPT}."
    return f"Tools: {', '.join(tools)}.{missing}"


def _title(rows: Rows, network: str) -> str:
    row = rows[f"{network}/{FLOAT_KEY}"]
    hits = unpack(row["models"]["float"])
    parts, start = [], 0
    for name, count in row["sets"]:
        parts.append(f"{100 * hits[start : start + count].mean():.1f} on {count} of {name}")
        start += count
    return f"{network}: float top-1 {100 * hits.mean():.1f} ({', '.join(parts)}), {row['samples']} calibration images"


def _targets(rows: Rows, networks: Sequence[str]) -> str:
    lines = [
        "| network | size | effort | drop at most | Q/DQ drop | verdict | integer-only drop |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_target(rows, target) for target in TARGETS if target.network in networks]
    return "\n".join(lines)


def _target(rows: Rows, target: Target) -> str:
    start = f"| {target.network} | {target.cell} | {target.effort} | {target.limit:g} "
    row = rows.get(f"{target.network}/{target.cell}/{target.effort}")
    if row is None:
        return f"{start}| | not measured | |"
    if "failed" in row:
        return f"{start}| | {row['failed']} | |"
    reference = unpack(rows[f"{target.network}/{FLOAT_KEY}"]["models"]["float"])
    drops = {name: paired_drop(reference, unpack(figures)) for name, figures in row["models"].items()}
    return f"{start}| {drops['qdq']} | {verdict(drops['qdq'], target.limit)} | {drops.get('integer', '-')} |"


def _table(rows: Rows, network: str) -> str:
    columns = [cell.name for cell in cells_of(network)]
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for effort in EFFORTS:
        for model, label in (("qdq", effort), ("integer", f"{effort}, integer-only")):
            entries = [_entry(rows, network, rows.get(f"{network}/{column}/{effort}"), model) for column in columns]
            if any(entries):
                lines.append(f"| {label} | " + " | ".join(entries) + " |")
    for method in dict.fromkeys(recipe.method for recipe in RECIPES.values()):
        entries = [_best_entry(rows, network, column, method) for column in columns]
        if any(entries):
            lines.append(f"| {method} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def _failures(rows: Rows, network: str) -> list[str]:
    """What did not work, one line per row."""
    lines = []
    for key, row in rows.items():
        name, cell, method = key.split("/", 2)
        if name == network and method not in RECIPES:
            reasons = row.get("failures", []) + ([row["failed"]] if "failed" in row else [])
            lines += [f"- {method}, {cell}: {reason}" for reason in reasons]
    return ["\n".join(lines)] if lines else []


def _entry(rows: Rows, network: str, row: Row | None, model: str) -> str:
    """top-1, drop ± interval; agreement, KL; bytes, time, memory."""
    if row is None or ("failed" not in row and model not in row["models"]):
        return ""
    if "failed" in row:
        return "fails"
    figures = row["models"][model]
    drop = paired_drop(unpack(rows[f"{network}/{FLOAT_KEY}"]["models"]["float"]), unpack(figures))
    spent = f", {row['seconds']:.0f} s, {row['peak_mib']:.0f} MiB" if model == "qdq" else ""
    return (
        f"**{figures['top1']:.1f}**, drop {drop}<br>{figures['agreement']:.1f} %, KL {figures['kl']:.4f}<br>"
        f"{figures['file_bytes']:,} B{spent}"
    )


def _best_entry(rows: Rows, network: str, column: str, method: str) -> str:
    tried = {name: row for name, row in _settings_of(rows, network, method).items() if row["column"] == column}
    working = {name: row for name, row in tried.items() if "failed" not in row}
    if not working:
        return "fails" if tried else ""
    setting = best(working)
    return f"{_entry(rows, network, working[setting], 'qdq')}<br>{setting}; best of {len(tried)}"


def best(settings: Rows) -> str:
    """The setting of largest top-1; of equal ones that of least KL."""
    figures = {name: row["models"]["qdq"] for name, row in settings.items()}
    return max(figures, key=lambda name: (figures[name]["top1"], -figures[name]["kl"]))


def _settings_of(rows: Rows, network: str, method: str) -> dict[str, dict[str, Any]]:
    """Finished rows of one method of another tool by setting, with the column each belongs to."""
    found = {}
    for key, row in rows.items():
        name, column, recipe = key.split("/", 2)
        if name == network and recipe in RECIPES and RECIPES[recipe].method == method:
            found[RECIPES[recipe].setting] = {**row, "column": column}
    return found


def _settings(rows: Rows, networks: Sequence[str]) -> str:
    lines = [
        "| network | method | setting | top-1 | agreement % | KL | bytes | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for network in networks:
        for method in dict.fromkeys(recipe.method for recipe in RECIPES.values()):
            for setting, row in _settings_of(rows, network, method).items():
                start = f"| {network} | {method} | {setting} |"
                if "failed" in row:
                    lines.append(f"{start} fails: {row['failed']} | | | | |")
                    continue
                figures = row["models"]["qdq"]
                lines.append(
                    f"{start} {figures['top1']:.1f} | {figures['agreement']:.1f} | {figures['kl']:.4f} "
                    f"| {figures['file_bytes']:,} | {row['seconds']:.0f} |"
                )
    return "\n".join(lines)
