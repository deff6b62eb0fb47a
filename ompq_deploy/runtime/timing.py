"""Measure the stages of a run and tell a listener as they begin and end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

Listener = Callable[[str, float | None], None]
"""Called with a stage's name and None when it begins, and with its seconds when it ends; in between with None and how
far a long stage has come."""


class Stopwatch:
    """Seconds per stage, in the order the stages ran."""

    def __init__(self, listener: Listener | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.listener = listener

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self.listener:
            self.listener(name, None)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        if self.listener:
            self.listener(name, self.seconds[name])


def within(stage: str, listener: Listener | None) -> Listener | None:
    """A listener for a part of `stage`, who tells `listener` where it belongs."""
    if listener is None:
        return None
    return lambda name, seconds: listener(f"{stage}: {name}", seconds)


def counted(items: Sequence[T], name: str, listener: Listener | None) -> Iterator[T]:
    """The `items`, each told before it is handed out: "layer 3/54"."""
    for number, item in enumerate(items, 1):
        if listener:
            listener(f"{name} {number}/{len(items)}", None)
        yield item
