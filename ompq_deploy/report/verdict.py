"""What `verify` found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def verdict_tables(document: Mapping[str, Any]) -> RenderableType:
    """Every layer against the Q/DQ model, what an engine computed if that was given, and every check."""
    layers = [_layers(document)] if document["layers"] else []
    engine = [_engine(document["engine_outputs"])] if document.get("engine_outputs") else []
    return Group(*layers, *engine, _checks(document))


def decision(document: Mapping[str, Any]) -> str:
    """One line: whether it passed, how much is equal, and the first layer that departs."""
    failed = ", ".join(check["name"] for check in document["checks"] if not check["passed"])
    word = f"FAILED ({failed})" if failed else "passed"
    if not document["samples"]:
        return f"{word}: the models could not be compared"
    line = f"{word}: {100 * document['exact_fraction']:.4f} % equal, largest difference {document['max_lsb']} steps"
    departure = document["first_departure"]
    return f"{line}; first departure: {departure['layer']}" if departure else line


def _layers(document: Mapping[str, Any]) -> Table:
    table = Table(title="integers against the Q/DQ model's", title_justify="left", caption_justify="left")
    table.add_column("tensor", overflow="fold")
    for heading in ("equal %", "steps", "SQNR dB", "end to end %", "SQNR dB"):
        table.add_column(heading, justify="right")
    for row in document["layers"]:
        table.add_row(
            row["name"],
            f"{100 * row['exact_fraction']:.3f}",
            str(row["max_lsb"]),
            _decibels(row["sqnr_db"]),
            f"{100 * row['end_to_end_exact_fraction']:.2f}",
            _decibels(row["end_to_end_sqnr_db"]),
        )
    table.caption = f"{document['samples']} samples; the first three figures with the same integers fed to every layer"
    return table


def _engine(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="the engine's outputs", title_justify="left")
    for heading in ("output", "against"):
        table.add_column(heading, overflow="fold")
    for heading in ("largest difference", "SQNR dB", "required", "agreement %"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["output"],
            row["model"],
            f"{row['max_difference']:.4g}",
            _decibels(row["sqnr_db"]),
            "" if row["required_db"] is None else f"{row['required_db']:.1f}",
            "" if row["agreement"] is None else f"{100 * row['agreement']:.2f}",
        )
    return table


def _checks(document: Mapping[str, Any]) -> Table:
    table = Table(title="checks", title_justify="left")
    table.add_column("check")
    table.add_column("result")
    table.add_column("layer", overflow="fold")
    table.add_column("what is wrong", overflow="fold")
    for check in document["checks"]:
        result = Text("passed") if check["passed"] else Text("FAILED", style="red")
        table.add_row(check["name"], result, check["layer"], check["detail"])
    return table


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"
