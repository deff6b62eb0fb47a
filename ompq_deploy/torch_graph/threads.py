"""How many threads torch runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ompq_deploy.runtime.threads import resolved


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch on `count` threads, 0 for as many as it likes of the cores granted."""
    before = torch.get_num_threads()
    torch.set_num_threads(resolved(count) or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
