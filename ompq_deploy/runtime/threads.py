"""How many threads onnxruntime, torch and NumPy's BLAS run on; left alone, each takes every core of the machine.

A container may be granted fewer (`docker run --cpus`, Kubernetes limits, `taskset`), and threads beyond those wait for
each other. BLAS takes half of the cores by itself: two of them are often hyperthreads of one, which have one unit to
multiply with, and its threads wait for each other actively. On such a pair ResNet-8 takes 8 to 10 s on two BLAS
threads and 6.4 s on one; beside two busy processes 27 and 15 s.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from threadpoolctl import threadpool_limits

CGROUPS = Path("/sys/fs/cgroup")


def granted() -> int:
    """Cores this process may use: those it is bound to, as far as its control group (v1 or v2) grants them."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _quota())))


def resolved(threads: int) -> int:
    """Threads for onnxruntime and torch: as asked, else the cores granted; 0, their own choice, where that is all."""
    cores = granted()
    return threads or (cores if cores < (os.cpu_count() or 1) else 0)


@contextmanager
def blas_threads(threads: int) -> Iterator[None]:
    """NumPy's BLAS on `threads` threads, 0 for half of the cores granted."""
    import numpy  # noqa: F401  the limit holds for libraries that are loaded

    with threadpool_limits(limits=threads or half_granted(), user_api="blas"):
        yield


def half_granted() -> int:
    """Half of the cores granted, at least one."""
    return max(1, granted() // 2)


def _quota() -> float:
    """Cores that the control group grants; infinity without a limit, or where there are no control groups."""
    try:
        quota, period = (CGROUPS / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((CGROUPS / "cpu" / f"cpu.cfs_{part}_us").read_text() for part in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except ValueError:  # "max"
        return math.inf
