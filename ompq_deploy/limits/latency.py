"""A supplied table of how long each layer takes at each width, in nanoseconds.

JSON   {"fixed_ns": 20000, "layers": {"conv1": {"4": 1200, "8": 1900}, ...}}        fixed_ns may be left out
CSV    layer,bits,nanoseconds                                                      one line per layer and width

A width is "4", or "4/8" for weight and activation width.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ompq_deploy.artifacts import Resource
from ompq_deploy.errors import BadInput

FLAG = "--latency-table"
LONGEST = 86_400e9
FORM = 'write {"layers": {NAME: {"4": ns, "8": ns}}} as .json, or layer,bits,nanoseconds as .csv'


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """`times[layer][width]` nanoseconds, finite and nonnegative; `fixed` is what the network takes beside them."""

    fixed: int
    times: Mapping[str, Mapping[str, float]]
    source: str

    def resource(self, names: Sequence[str], choices: Sequence[tuple[int, int]], limit: int | None) -> Resource:
        """The latency of every layer and (weight, activation) choice, rounded up to whole nanoseconds; BadInput
        where one is missing."""
        cost = [[math.ceil(self._time(name, *choice)) for choice in choices] for name in names]
        return Resource(name="latency", cost=np.array(cost, np.int64), fixed=self.fixed, limit=limit)

    def _time(self, name: str, width: int, activation_bits: int) -> float:
        row = self.times.get(name, {})
        for key in (f"{width}/{activation_bits}", str(width)):
            if key in row:
                return row[key]
        raise BadInput(
            f"the table has no time for layer {name} at {width} bits",
            where=f"{FLAG} {self.source}",
            fix="add it, or leave that width out of --bits",
        )


def read_latency_table(path: Path) -> LatencyTable:
    """A table read from JSON or, by its name, CSV."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = _from_csv(text) if path.suffix.lower() == ".csv" else json.loads(text)
        times = {name: {str(w): float(ns) for w, ns in row.items()} for name, row in document["layers"].items()}
        fixed = float(document.get("fixed_ns", 0))
    except OSError as e:
        raise BadInput(f"cannot read the latency table: {e.strerror}", where=str(path), fix="check the path") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise BadInput(f"this is not a latency table: {e!r}", where=f"{FLAG} {path}", fix=FORM) from e
    for name, row in [("fixed_ns", {"": fixed}), *times.items()]:
        for width, nanoseconds in row.items():
            if not 0 <= nanoseconds <= LONGEST:
                raise BadInput(
                    f"{name} {width} has the time {nanoseconds}",
                    where=f"{FLAG} {path}",
                    fix="give nanoseconds, from zero to those of a day",
                )
    return LatencyTable(fixed=math.ceil(fixed), times=times, source=str(path))


def _from_csv(text: str) -> dict[str, Any]:
    layers: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(text.splitlines()):
        layers.setdefault(row["layer"], {})[row["bits"].strip()] = row["nanoseconds"]
    return {"layers": layers}
