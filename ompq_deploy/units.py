"""Sizes, counts and times as people write them: MB is 10^6 bytes, MiB is 2^20; 75G; 2ms."""

from __future__ import annotations

import re
from decimal import Decimal

from ompq_deploy.errors import BadInput

FACTORS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
TIMES = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
LARGEST = 2**62
"""Of any amount: the solver counts in int64."""
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*|%)\s*", re.IGNORECASE)
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(text: str, float_bytes: int, flag: str = "--size") -> int:
    """Bytes meant by `text`: "6.7MB", "512KiB", "900000", or "60%" of `float_bytes`."""
    match = _SIZE.fullmatch(text)
    unit = match.group(2).lower() if match else "?"
    if match is None or (unit != "%" and unit not in FACTORS):
        raise BadInput(f"{text!r} is not a size", where=flag, fix="write it like 6.7MB, 6.4MiB, 700KB, 900000B or 60%")
    value = Decimal(match.group(1))
    size = int(min(value * (Decimal(float_bytes) / 100 if unit == "%" else Decimal(FACTORS[unit])), Decimal(LARGEST)))
    if size <= 0:
        raise BadInput(f"the size {text!r} leaves no room at all", where=flag, fix="give a positive size")
    return size


def parse_count(text: str, flag: str) -> int:
    """A number such as "75G" or "1.2e9"."""
    return _parse_units(text, COUNTS, "75G", flag)


def parse_time(text: str, flag: str) -> int:
    """Nanoseconds meant by "2ms", "350us" or "800ns"."""
    return _parse_units(text, TIMES, "2ms, 350us or 800ns", flag)


def _parse_units(text: str, units: dict[str, int], example: str, flag: str) -> int:
    match = _NUMBER.fullmatch(text)
    unit = match.group(2).lower() if match else "?"
    value = Decimal(match.group(1)) * units[unit] if match and unit in units else Decimal(-1)
    if not 0 < value <= LARGEST:
        raise BadInput(f"{text!r} is not a positive amount", where=flag, fix=f"write it like {example}")
    return int(value)


def format_count(count: int) -> str:
    """A short decimal rendering: 75.1 G."""
    for unit, factor in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return str(count)


def format_time(nanoseconds: int) -> str:
    """A short rendering: 2.1 ms."""
    for unit, factor in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if nanoseconds >= factor:
            return f"{nanoseconds / factor:.4g} {unit}"
    return f"{nanoseconds} ns"


def format_bytes(count: int) -> str:
    """A short decimal rendering: 1.08 MB, 512 B."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 100 * factor else f"{count / factor:.0f} {unit}"
    return f"{count} B"
