"""A Pareto front as a table for the terminal and as an SVG picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from rich.table import Table

from ompq_deploy.units import format_bytes, format_count, format_time

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 90, 40, 40, 60
TICKS = 5
AXES: dict[str, tuple[str, str, Callable[[int], str]]] = {
    "size": ("size_bytes", "size", format_bytes),
    "bops": ("bops", "bit operations", format_count),
    "latency": ("latency_ns", "latency", format_time),
}
LOG_FROM_RATIO = 20.0
"""The loss is drawn on a logarithmic axis where it spans more than this."""


def front_table(document: Mapping[str, Any]) -> Table:
    """One line per plan."""
    key, title, show = AXES[document["over"]]
    table = Table(title=f"loss over {title}: metric {document['metric']}", title_justify="left")
    for heading in (title, "loss", "bound", "mean bits", "status", "s"):
        table.add_column(heading, justify="right")
    for point in document["points"]:
        bits = list(point["bits"].values())
        table.add_row(
            show(point[key]), f"{point['loss']:.4g}", f"{point['bound']:.4g}", f"{sum(bits) / len(bits):.2f}",
            point["status"], f"{point['seconds']:.2f}",
        )  # fmt: skip
    return table


def front_svg(document: Mapping[str, Any]) -> str:
    """The loss over the resource, one dot per plan."""
    key, title, show = AXES[document["over"]]
    resource = [point[key] for point in document["points"]]
    loss = [point["loss"] for point in document["points"]]
    logarithmic = min(loss) > 0 and max(loss) > LOG_FROM_RATIO * min(loss)
    heights = [math.log10(value) for value in loss] if logarithmic else loss
    across, up = _axis(resource, LEFT, WIDTH - RIGHT), _axis(heights, HEIGHT - BOTTOM, TOP)
    dots = [(across(x), up(y)) for x, y in zip(resource, heights, strict=True)]
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(middle_x, TOP / 2, f"{document['model']}: metric {document['metric']}", "middle", 14),
        _text(middle_x, HEIGHT - 15, title, "middle"),
        f'<g transform="rotate(-90 20 {middle_y})">{_text(20, middle_y, "loss", "middle")}</g>',
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="black"/>',
    ]
    for value in _spread(resource):
        x = across(value)
        lines.append(f'<path d="M{x:.1f} {HEIGHT - BOTTOM}v5" stroke="black"/>')
        lines.append(_text(x, HEIGHT - BOTTOM + 20, show(round(value)), "middle"))
    for value in _spread(heights):
        y = up(value)
        lines.append(f'<path d="M{LEFT} {y:.1f}h-5" stroke="black"/>')
        lines.append(_text(LEFT - 10, y + 4, f"{10**value if logarithmic else value:.3g}", "end"))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
    lines.append(f'<polyline points="{path}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>')
    lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#1f77b4"/>' for x, y in dots]
    return "\n".join([*lines, "</svg>", ""])


def _axis(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = min(values), max(values)
    step = (end - start) / (high - low) if high > low else 0.0
    return lambda value: start + (value - low) * step


def _spread(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [low + (high - low) * i / (TICKS - 1) for i in range(TICKS)] if high > low else [low]


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
