"""Fixtures: the real networks and images beside the checkout, and small graphs made here."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ompq_deploy import cli
from ompq_deploy.export.integer.emit import unfold
from tests import models

Run = Callable[..., tuple[int, str, str]]
SHARED = Path(__file__).resolve().parents[2] / "shared"

# A shell has its jobs in the background ignore Ctrl-C, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Path of a file in the shared folder beside the checkout; skips the test where it is absent."""

    def locate(relative: str) -> Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"needs ../shared/{relative}")
        return path

    return locate


@pytest.fixture
def residual_model(tmp_path: Path) -> Path:
    """A small residual network with a depthwise layer, every fusion the pipeline knows, and random weights."""
    return models.save(models.residual_network(), tmp_path / "residual.onnx")


@pytest.fixture
def unfold_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions as matrix products: small ones too, and those whose columns are many."""
    monkeypatch.setattr(unfold, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(unfold, "MOST_BYTES", 1 << 20)


@pytest.fixture
def run_telling(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, progress told: (exit code, standard output, standard error)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ompq-deploy", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def run(run_telling: Run) -> Run:
    """The same, quietly."""
    return lambda *arguments: run_telling(*arguments, "--quiet")
