"""Numbers among a node's attributes, as onnx_ir has them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir


def number(settings: Mapping[str, ir.Attr], name: str, default: float = 0.0) -> float:
    """A numeric attribute, or `default` where the node leaves it out."""
    return float(settings[name].value) if name in settings else default
