"""What the integer program does not cover, collected completely before anything is refused."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from ompq_deploy.errors import BackendMissing
from ompq_deploy.passes.input_sizes import HINT, open_axes, with_fixed_batch

FLOAT_BETWEEN = "floating point between integer layers"


@dataclass(frozen=True, kw_only=True)
class Uncovered:
    """A node without an integer form, and why."""

    name: str
    op: str
    reason: str


Uncoveredness = dict[str, Uncovered]
"""Uncovered nodes by name."""


class NotCovered(Exception):
    """Raised while one node is lowered; `lower` collects these, so it never reaches a user."""

    def __init__(self, node: onnx.NodeProto, reason: str) -> None:
        super().__init__(reason)
        self.uncovered = Uncovered(name=node.name, op=node.op_type, reason=reason)


def _other_batch(model: onnx.ModelProto) -> str:
    """What a fixed batch may do for a model that leaves it open: what is computed from the batch alone is constant."""
    shape = with_fixed_batch(model)
    return f"fix the batch, if it will be one, with {shape}; else " if shape else ""


def refuse(uncovered: Iterable[Uncovered], model: onnx.ModelProto) -> BackendMissing:
    """One error that lists every uncovered node of `model`, by operator and reason; those last that are only in the way
    of others."""
    by_kind: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item in sorted(uncovered, key=lambda item: (item.reason == FLOAT_BETWEEN, item.op, item.reason)):
        by_kind[item.op, item.reason].append(item.name)
    kinds = "; ".join(f"{op} ({len(names)} nodes: {reason})" for (op, reason), names in by_kind.items())
    otherwise = f"{_other_batch(model)}use --target onnx, or replace or split these operators"
    return BackendMissing(
        f"the integer-only model does not cover: {kinds}",
        where="; ".join(f"{op}: {', '.join(names)}" for (op, _), names in by_kind.items()),
        fix=HINT if open_axes(model) else otherwise,
    )
