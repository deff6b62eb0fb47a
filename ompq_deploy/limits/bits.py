"""Weight widths as the command line spells them."""

from __future__ import annotations

from ompq_deploy.errors import BadInput

SUPPORTED = tuple(range(2, 9))


def parse_bits(text: str) -> tuple[int, ...]:
    """Widths meant by "4,8", "2-8" or "2-4,8", ascending and without repeats."""
    widths: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            low, high = int(first), int(last or first)
        except ValueError as e:
            raise BadInput(f"{text!r} is not a list of widths", where="--bits", fix="write 4,8 or 2-8") from e
        if not SUPPORTED[0] <= low <= high <= SUPPORTED[-1]:
            raise BadInput(
                f"{part!r} is no range of widths within {SUPPORTED[0]} to {SUPPORTED[-1]}",
                where="--bits",
                fix="write 4,8 or 2-8",
            )
        widths.update(range(low, high + 1))
    return tuple(sorted(widths))
