"""The report as tables, for a terminal or as a static HTML page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from html import escape
from pathlib import PurePath
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ompq_deploy.report.console import Console
from ompq_deploy.units import format_bytes

MODEL_TITLES = {"float": "float", "qdq": "Q/DQ INT4/INT8", "integer": "integer-only"}
FURTHER_BUDGETS = {"bops": "BOPs", "activation_bytes": "activation bytes", "latency_ns": "latency ns"}
HTML_WIDTH = 110
SHOWN_DIGITS = 12
"""Of the model's sha256."""


def print_report(document: Mapping[str, Any], console: Console, where: str) -> None:
    """Print the tables and where the full report lies."""
    console.print(render(document))
    console.print(f"report: {where}", highlight=False, soft_wrap=True)


def write_html(document: Mapping[str, Any]) -> str:
    """A self-contained HTML page with the same tables."""
    console = Console(record=True, width=HTML_WIDTH, file=io.StringIO())
    console.print(render(document))
    page = console.export_html(inline_styles=True)
    return page.replace("<head>", f"<head>\n<title>{escape(_model_name(document))}: ompq-deploy</title>", 1)


def render(document: Mapping[str, Any]) -> RenderableType:
    """Which model it is, the layer table, the summary, and what was skipped or failed."""
    sha256 = f"  sha256 {document['model']['sha256'][:SHOWN_DIGITS]}"
    parts: list[RenderableType] = [Text.assemble((_model_name(document), "bold"), sha256), _layer_table(document)]
    parts += [_contest_table(document["contest"])] if document.get("contest") else []
    if document.get("metric_note"):
        parts.append(_remark("yellow", f"metric {document['metric_chosen']}", document["metric_note"]))
    if document.get("rounding_note"):
        parts.append(_remark("yellow", "rounding", document["rounding_note"]))
    parts.append(_summary_table(document))
    parts += [_heads_table(document["heads"])] if document.get("heads") else []
    kind = document["model"].get("float_type", "float32")
    if kind != "float32":
        parts.append(_remark("yellow", kind, "computed in float32; the models written take and return float32"))
    calibration = document["calibration"]
    parts.append(f"calibrated on {calibration['source']}")
    if calibration.get("rounding_samples", 0) > calibration["samples"]:
        parts.append(f"weights rounded by {calibration['rounding_samples']} of them")
    parts += [_remark("yellow", f"skipped {name}", reason) for name, reason in document["skipped"].items()]
    parts += [_remark("red", "failed", f"{failure['what']} ({failure['where']})") for failure in document["failures"]]
    return Group(*parts)


def _model_name(document: Mapping[str, Any]) -> str:
    return PurePath(document["model"]["path"]).name


def _remark(style: str, about: str, text: str) -> Text:
    return Text.assemble((f"{about}:", style), f" {text}")


def _layer_table(document: Mapping[str, Any]) -> Table:
    chosen, solver = document["metric_chosen"], document["solver"]
    table = Table(title=f"bits per layer: metric {chosen}, {solver['name']} {solver['status']}", title_justify="left")
    for heading, justify in (("layer", "left"), ("op", "left"), ("weights", "right"), ("bits W/A", "right"),
                             ("bytes", "right"), ("score", "right")):  # fmt: skip
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in document["layers"]:
        widths = f"{row['weight_bits']}/{row['activation_bits']}"
        table.add_row(row["name"], row["op"], f"{row['numel']:,}", widths, f"{row['bytes']:,}", f"{row['score']:.3g}")
    return table


LOSSES = ("refined_loss", "loss")
"""Of an entry of the contest; the first that it has decides."""


def _contest_table(contest: Mapping[str, Any]) -> Table:
    """Every metric's plan on the samples held out, the best first and those skipped last; finalists are refined too."""
    table = Table(title="contest of the metrics", title_justify="left", caption_justify="left")
    for heading in ("metric", contest["measure"], "refined", "bytes", "seconds", ""):
        table.add_column(heading, justify="left" if heading in ("metric", "") else "right")
    entries = sorted(contest["entries"], key=lambda e: tuple(math.inf if e[k] is None else e[k] for k in LOSSES))
    for entry in entries:
        refined, loss = ("" if entry[k] is None else f"{entry[k]:.5g}" for k in LOSSES)
        size = "" if entry["size_bytes"] is None else f"{entry['size_bytes']:,}"
        remark = "chosen" if entry["metric"] == contest["winner"] else entry["skipped"]
        table.add_row(entry["metric"], loss, refined, size, f"{entry['seconds']:.2f}", remark)
    decided = contest.get("refined_samples") or contest["held_out_samples"]
    table.caption = f"scored on {contest['scored_samples']} samples, decided on {decided}"
    return table


def _summary_table(document: Mapping[str, Any]) -> Table:
    table = Table(title="before and after", title_justify="left")
    for heading in ("model", "size", "top-1 %", "top-5 %", "agreement %", "output KL"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    achieved = document["achieved"]
    sizes = {"float": document["model"]["fp32_bytes"], "qdq": achieved["file_bytes"]}
    scores = document["eval"] or {}
    for name, title in MODEL_TITLES.items():
        if name == "integer" and document["verify"] is None:
            continue
        score = scores.get(name, {})
        figures = [
            _figure(score.get(key), digits) for key, digits in (("top1", 2), ("top5", 2), ("agreement", 2), ("kl", 4))
        ]
        table.add_row(title, format_bytes(sizes[name]) if sizes.get(name) else "", *figures)
    if document["engine"]:
        engine = document["engine"]
        table.add_row(f"{engine['backend']} engine", format_bytes(engine["file_bytes"]), "", "", "", "")
        if engine["weight_bytes"] is not None:
            table.add_row("  of which weights", format_bytes(engine["weight_bytes"]), "", "", "", "")
    budget = document["budget"]
    table.caption = f"budget {budget['size_bytes']:,} bytes of {budget['size_of']}, used {_used(document):,}"
    table.caption += "".join(
        f"; {title} {budget[key]:,}, used {achieved[key]:,}"
        for key, title in FURTHER_BUDGETS.items()
        if budget.get(key) is not None
    )
    table.caption_justify = "left"
    if document["verify"]:
        verdict = document["verify"]
        table.caption += (
            f"\ninteger-only model {'verified' if verdict['passed'] else 'NOT verified'}: layer by layer "
            f"{100 * verdict['exact_fraction']:.4f} % of its integers equal the Q/DQ model's, largest difference "
            f"{verdict['max_lsb']} step; end to end {100 * verdict['end_to_end_exact_fraction']:.2f} %"
        )
    return table


def _heads_table(heads: Mapping[str, Any]) -> Table:
    """How far every head is from the float model's, one line per head."""
    table = Table(title="heads against float", title_justify="left", caption_justify="left")
    for heading, justify in (("output", "left"), ("shape", "right"), ("made by", "left"), ("error %", "right"),
                             ("SQNR dB", "right"), ("cosine", "right"), ("integer error %", "right")):  # fmt: skip
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in heads["rows"]:
        qdq, integer = row["qdq"], row.get("integer")
        table.add_row(
            row["tensor"], " x ".join(map(str, row["shape"])), ", ".join(row["layers"]),
            f"{100 * qdq['relative_error']:.2f}", _figure(qdq["sqnr_db"], 1), f"{qdq['cosine']:.4f}",
            f"{100 * integer['relative_error']:.2f}" if integer else "",
        )  # fmt: skip
    kind = "held out from calibration" if heads["held_out"] else "of the calibration itself"
    table.caption = f"error relative to how much a head varies, samples {kind}\n{heads['source']}"
    return table


def _used(document: Mapping[str, Any]) -> int:
    achieved = document["achieved"]
    on_disk = document["budget"]["size_of"] == "file" and achieved["file_bytes"] is not None
    used: int = achieved["file_bytes"] if on_disk else achieved["size_bytes"]
    return used


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
