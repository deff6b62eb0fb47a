"""Sizes and widths as people write them."""

from __future__ import annotations

import pytest

from ompq_deploy.errors import BadInput
from ompq_deploy.limits.bits import parse_bits
from ompq_deploy.units import format_bytes, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6.7MB", 6_700_000),
        ("6.7 mb", 6_700_000),
        ("1MiB", 2**20),
        ("512KiB", 2**19),
        ("700KB", 700_000),
        ("900000", 900_000),
        ("900000B", 900_000),
        ("60%", 600),
        (".5KB", 500),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, float_bytes=1000) == size


@pytest.mark.parametrize("text", ["0", "0%", "0.0MB"])
def test_no_room_at_all(text: str) -> None:
    with pytest.raises(BadInput, match="no room"):
        parse_size(text, 1000)


@pytest.mark.parametrize("text", ["banana", "", "-5MB", "5XB", "MB", "1e6"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(BadInput, match="is not a size"):
        parse_size(text, 1000)


@pytest.mark.parametrize(("text", "bits"), [("4,8", (4, 8)), ("2-4,8", (2, 3, 4, 8)), ("8", (8,)), ("8,4,8", (4, 8))])
def test_widths(text: str, bits: tuple[int, ...]) -> None:
    assert parse_bits(text) == bits


@pytest.mark.parametrize("text", ["", "a", "1", "9", "4,16", "8-4"])
def test_what_are_not_widths(text: str) -> None:
    with pytest.raises(BadInput):
        parse_bits(text)


def test_format_bytes() -> None:
    assert [format_bytes(n) for n in (12, 1500, 6_700_000, 123_456_789)] == ["12 B", "1.5 KB", "6.7 MB", "123 MB"]
