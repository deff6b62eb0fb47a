"""Sizes as people write them: MB is 10^6 bytes, MiB is 2^20."""

from __future__ import annotations

import re

from ompq_deploy.errors import BadInput

FACTORS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*|%)\s*", re.IGNORECASE)


def parse_size(text: str, float_bytes: int) -> int:
    """Bytes meant by `text`: "6.7MB", "512KiB", "900000", or "60%" of `float_bytes`."""
    match = _SIZE.fullmatch(text)
    unit = match.group(2).lower() if match else "?"
    if match is None or (unit != "%" and unit not in FACTORS):
        raise BadInput(
            f"{text!r} is not a size", where="--size", fix="write it like 6.7MB, 6.4MiB, 700KB, 900000B or 60%"
        )
    value = float(match.group(1))
    size = int(value * float_bytes / 100) if unit == "%" else int(value * FACTORS[unit])
    if size <= 0:
        raise BadInput(f"the size {text!r} leaves no room at all", where="--size", fix="give a positive size")
    return size


def format_bytes(count: int) -> str:
    """A short decimal rendering: 1.08 MB, 512 B."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 100 * factor else f"{count / factor:.0f} {unit}"
    return f"{count} B"
