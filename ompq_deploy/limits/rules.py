"""What the user fixes beforehand: layers pinned to a width, kept at 8 bits, or tied to each other.

A pattern means the layer of exactly that name, or else every layer whose whole name the regular expression
matches. A pattern that matches nothing is an error. Pins and exclusions go before the first-and-last rule.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.errors import BadInput
from ompq_deploy.limits.bits import SUPPORTED

Bool = NDArray[np.bool_]
Int64 = NDArray[np.int64]

EXCLUDED_BITS = 8
NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Rules:
    """`pins` are "PATTERN=BITS"; `exclude` and `ties` are patterns; `first_last_bits` is None for no rule;
    `tie_residual` ties the layers whose outputs one Add sums, such as a downsample and its block's last conv."""

    pins: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    first_last_bits: int | None = None
    ties: tuple[str, ...] = ()
    tie_residual: bool = False

    @classmethod
    def from_recorded(cls, values: dict[str, Any]) -> Rules:
        """The rules a lock file holds, where tuples have become lists."""
        lists = {name: tuple(values.get(name, ())) for name in ("pins", "exclude", "ties")}
        return cls(
            **lists, first_last_bits=values.get("first_last_bits"), tie_residual=values.get("tie_residual", False)
        )

    def widths(self, bits: Sequence[int]) -> tuple[int, ...]:
        """Every width a plan may hold: those offered, and those only a rule asks for."""
        extra = [_parse_pin(pin)[1] for pin in self.pins]
        extra += [EXCLUDED_BITS] if self.exclude else []
        extra += [self.first_last_bits] if self.first_last_bits is not None else []
        return tuple(sorted({*bits, *extra}))


def fixed_widths(rules: Rules, names: Sequence[str]) -> dict[str, int]:
    """The layers whose width is no longer a choice."""
    fixed: dict[str, int] = {}
    for pattern, width, flag in [
        *((*_parse_pin(pin), "--pin") for pin in rules.pins),
        *((pattern, EXCLUDED_BITS, "--exclude") for pattern in rules.exclude),
    ]:
        for name in matching(pattern, names, flag):
            if fixed.setdefault(name, width) != width:
                raise BadInput(
                    f"layer {name} is given both {fixed[name]} and {width} bits",
                    where=f"{flag} {pattern}",
                    fix="give every layer one width",
                )
    if rules.first_last_bits is not None:
        for name in (names[0], names[-1]):
            fixed.setdefault(name, rules.first_last_bits)
    return fixed


def allowed_choices(fixed: dict[str, int], names: Sequence[str], widths: Sequence[int], offered: Sequence[int]) -> Bool:
    """Which columns, one per entry of `widths`, each layer may take, bool (L, C)."""
    columns = np.asarray(widths)
    free = np.isin(columns, list(offered))
    return np.stack([columns == fixed[name] if name in fixed else free for name in names])


def tied_groups(rules: Rules, names: Sequence[str], pairs: Sequence[Sequence[str]] = ()) -> Int64:
    """A label per layer, equal for layers that share a width; `pairs` are further ties by name."""
    label = {name: i for i, name in enumerate(names)}
    for tied in [*(matching(pattern, names, "--tie") for pattern in rules.ties), *pairs]:
        labels = {label[name] for name in tied}
        label = {name: min(labels) if old in labels else old for name, old in label.items()}
    return np.array([label[name] for name in names], np.int64)


def spread_over_ties(fixed: dict[str, int], names: Sequence[str], group: Int64) -> dict[str, int]:
    """The fixed widths, each with the layers tied to its layer; BadInput where two of a group differ."""
    spread: dict[str, int] = {}
    for label in np.unique(group):
        tied = [names[i] for i in np.flatnonzero(group == label).tolist()]
        widths = {name: fixed[name] for name in tied if name in fixed}
        if len(set(widths.values())) > 1:
            raise BadInput(
                "tied layers are fixed to different widths",
                where=", ".join(f"{name} {width} bits" for name, width in widths.items()),
                fix="give them one width, or untie them",
            )
        if widths:
            spread |= dict.fromkeys(tied, next(iter(widths.values())))
    return spread


def matching(pattern: str, names: Sequence[str], flag: str) -> list[str]:
    """The layers a pattern names, in order; BadInput where there are none."""
    if pattern in names:
        return [pattern]
    try:
        expression = re.compile(pattern)
    except re.error as e:
        raise BadInput(
            f"{pattern!r} is neither a layer nor a regular expression: {e}",
            where=flag,
            fix="escape it, or name a layer",
        ) from e
    found = [name for name in names if expression.fullmatch(name)]
    if not found:
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        raise BadInput(
            f"no layer matches {pattern!r}",
            where=flag,
            fix=f"the pattern must match a whole name; the layers are {shown}",
        )
    return found


def _parse_pin(text: str) -> tuple[str, int]:
    pattern, _, width = text.rpartition("=")
    if not pattern or not width.isdigit() or int(width) not in SUPPORTED:
        raise BadInput(
            f"{text!r} is not a pin",
            where="--pin",
            fix=f"write PATTERN=BITS with {SUPPORTED[0]} to {SUPPORTED[-1]} bits, such as fc=8 or 'layer4.*=4'",
        )
    return pattern, int(width)
