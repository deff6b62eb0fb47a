"""Fixtures: the real networks and images beside the checkout, and small graphs made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import models

SHARED = Path(__file__).resolve().parents[2] / "shared"


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
