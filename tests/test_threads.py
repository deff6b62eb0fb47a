"""Threads: never more than the container grants, and BLAS within them while a command runs."""

from __future__ import annotations

import os
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from threadpoolctl import threadpool_info

from ompq_deploy.options import THREADS
from ompq_deploy.runtime import threads


def blas_now() -> set[int]:
    assert np.__version__  # its BLAS is loaded
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({}, 64),
    ],
)
def test_cores_a_container_grants(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert threads.granted() == cores
    assert threads.resolved(0) == (cores if cores < 64 else 0)
    assert threads.resolved(5) == 5


def test_cores_the_process_is_bound_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 5}, raising=False)
    assert threads.granted() == 3
    assert threads.resolved(0) == 3


@pytest.mark.parametrize(("flags", "expected"), [([], 4), (["--threads", "1"], 1), (["--threads", "3"], 3)])
def test_blas_keeps_to_the_flag_while_the_command_runs(
    flags: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "granted", lambda: 8)
    before, during = blas_now(), []

    @click.command()
    @THREADS
    def command(threads: int) -> None:
        during.append((threads, blas_now()))

    result = CliRunner().invoke(command, flags)
    assert result.exit_code == 0, result.output
    assert during == [(int(flags[1]) if flags else 0, {expected})]
    assert blas_now() == before
