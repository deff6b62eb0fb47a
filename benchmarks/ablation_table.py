"""The Markdown of `ablation.py`: summary, one table per network and mode, and the study of ORM's parameters.

delta = mean_n (correct_n - correct_n of `size`),  95 % interval 1.96 sd_n / sqrt(N), paired over the same images
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REFERENCE = "size"
NORMAL_95 = 1.96
MARKER = "<!-- written by benchmarks/ablation.py -->"
SMALLEST_KL = 1e-5
TITLES = {"W": "Weights only", "WA8": "Weights and activations (W*/A8)"}

Rows = Mapping[str, Mapping[str, Any]]
Cells = dict[tuple[str, str, float], dict[str, dict[str, Any]]]


def write_page(path: Path, results: Rows, methods: Sequence[str]) -> None:
    """Replace everything behind `MARKER` in a page; the words before it are kept."""
    words, _, _ = path.read_text().partition(MARKER) if path.exists() else ("", "", "")
    path.write_text(f"{words}{MARKER}\n\n{markdown(results, methods)}")


def markdown(results: Rows, methods: Sequence[str]) -> str:
    """All tables."""
    cells, study = _cells(results, ""), _cells(results, "study/")
    parts = ["## Summary", *_summaries(cells, methods)]
    for mode, title in TITLES.items():
        models = list(dict.fromkeys(model for model, m, _ in cells if m == mode))
        parts += [f"## {title}"] if models else []
        parts += [block for model in models for block in _model_table(cells, model, mode, methods)]
    if study:
        parts += ["## ORM's parameters, weights only", *_study(study)]
    return "\n\n".join(parts) + "\n"


def _cells(results: Rows, prefix: str) -> Cells:
    """Finished rows by (network, mode, width), `random` being the mean over its seeds."""
    cells: Cells = {}
    for key, row in results.items():
        if not key.startswith(prefix) or key.startswith("scores/") or (not prefix and key.startswith("study/")):
            continue
        model, mode, width, method = key[len(prefix) :].split("/")
        correct = np.unpackbits(np.frombuffer(bytes.fromhex(row["correct"]), np.uint8), count=row["n"])
        cells.setdefault((model, mode, float(width)), {})[method] = {**row, "hits": correct.astype(float)}
    for cell in cells.values():
        seeds = [cell.pop(method) for method in list(cell) if method.startswith("random ")]
        if seeds:
            cell["random"] = {
                key: np.mean([row[key] for row in seeds], axis=0) for key in ("top1", "agreement", "kl", "hits")
            }
    return cells


def _summaries(cells: Cells, methods: Sequence[str]) -> list[str]:
    parts = []
    for mode, title in TITLES.items():
        whole = [cell for (_, m, _), cell in cells.items() if m == mode and all(method in cell for method in methods)]
        if not whole:
            continue
        lines = [
            f"{title}, {len(whole)} cells (network and width):",
            "",
            "| method | top-1 | agreement | KL (geometric mean) | best KL in | delta top-1 to size | worst delta |",
            "|---|---|---|---|---|---|---|",
        ]
        for method in methods:
            rows = [cell[method] for cell in whole]
            kl = float(np.exp(np.mean([np.log(max(row["kl"], SMALLEST_KL)) for row in rows])))
            best = sum(cell[method]["kl"] <= min(cell[m]["kl"] for m in methods) for cell in whole)
            deltas = [100 * float(np.mean(cell[method]["hits"] - cell[REFERENCE]["hits"])) for cell in whole]
            lines.append(
                f"| {method} | {_mean(rows, 'top1'):.1f} | {_mean(rows, 'agreement'):.1f} | {kl:.3f} | {best} "
                f"| {np.mean(deltas):+.1f} | {min(deltas):+.1f} |"
            )
        parts.append("\n".join(lines))
    return parts


def _model_table(cells: Cells, model: str, mode: str, methods: Sequence[str]) -> list[str]:
    widths = sorted(width for name, m, width in cells if (name, m) == (model, mode))
    first = cells[model, mode, widths[0]]
    reference = first.get("float") or next(iter(first.values()))
    parts = ", ".join(f"{part:.1f}" for part in reference.get("parts", ()))
    title = (
        f"### {model} ({reference['n']} images, float {reference['top1']:.1f}{f': {parts}' if ',' in parts else ''})"
    )
    lines = ["| method | " + " | ".join(f"{width:g} bits" for width in widths) + " |", "|---" * (len(widths) + 1) + "|"]
    for method in methods:
        entries = [_entry(cells[model, mode, width], method) for width in widths]
        lines.append(f"| {method} | " + " | ".join(entries) + " |")
    return [title, "\n".join(lines)]


def _entry(cell: Mapping[str, Mapping[str, Any]], method: str) -> str:
    """top-1 (delta +- interval) agreement, KL."""
    if method not in cell:
        return "-"
    row = cell[method]
    figures = f"{row['agreement']:.1f}, {row['kl']:.3f}"
    winner = f" ({row['winner']})" if "winner" in row else ""
    if method == REFERENCE or REFERENCE not in cell:
        return f"{row['top1']:.1f}; {figures}{winner}"
    difference = 100 * (row["hits"] - cell[REFERENCE]["hits"])
    interval = NORMAL_95 * difference.std(ddof=1) / np.sqrt(len(difference))
    return f"{row['top1']:.1f} ({difference.mean():+.1f} ± {interval:.1f}); {figures}{winner}"


def _study(cells: Cells) -> list[str]:
    methods = list(next(iter(cells.values())))
    whole = [cell for cell in cells.values() if all(method in cell for method in methods)]
    lines = ["| setting | top-1 | agreement | KL (geometric mean) |", "|---|---|---|---|"]
    for method in methods:
        rows = [cell[method] for cell in whole]
        kl = float(np.exp(np.mean([np.log(max(row["kl"], SMALLEST_KL)) for row in rows])))
        lines.append(f"| {method} | {_mean(rows, 'top1'):.2f} | {_mean(rows, 'agreement'):.2f} | {kl:.4f} |")
    return ["\n".join(lines), f"Means over {len(whole)} cells."]


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))
