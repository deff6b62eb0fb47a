"""Measure the stages of a run and tell a listener as they begin and end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, float | None], None]
"""Called with a stage's name and None when it begins, and with its seconds when it ends; in between with None and how
far a long stage has come."""


class Stopwatch:
    """Seconds per stage, in the order the stages ran."""

    def __init__(self, listener: Listener | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._listener = listener

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self._listener:
            self._listener(name, None)
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        if self._listener:
            self._listener(name, self.seconds[name])
