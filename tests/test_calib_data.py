"""The bundled photographs are those of the manifest, free to use, and spread over the whole range of values."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ompq_deploy.calib import bundled
from ompq_deploy.calib.bundled import bundled_folder, bundled_images
from ompq_deploy.errors import BadInput

FOLDER = bundled_folder()
ROWS: list[dict[str, Any]] = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["images"]
LIMIT_BYTES = 2_500_000


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_each_file_is_the_one_the_manifest_describes(row: dict[str, Any]) -> None:
    path = FOLDER / row["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("RGB", (224, 224))
    left, top, right, bottom = row["box"]
    assert right - left == bottom - top == pytest.approx(224 / row["scale"], rel=1e-3)
    assert row["licence"].startswith(("public domain", "CC0"))
    assert row["author"]
    assert row["source"]


def test_the_manifest_lists_every_file_once() -> None:
    listed = [path.name for path in bundled_images()]
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.jpg"))
    assert len(listed) == len(set(listed)) == 64
    assert len({row["sha256"] for row in ROWS}) == 64


def test_the_folder_stays_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < LIMIT_BYTES


def test_the_readme_counts_what_is_there() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for source in {row["source"] for row in ROWS}:
        count = sum(row["source"] == source for row in ROWS)
        assert f"| {source.rpartition('/')[2]} | {count} |" in readme


def test_values_span_the_whole_range_of_every_colour() -> None:
    pixels = np.stack([np.asarray(Image.open(path)) for path in bundled_images()]).reshape(-1, 3)
    assert pixels.min(axis=0).tolist() == [0, 0, 0]
    assert pixels.max(axis=0).tolist() == [255, 255, 255]
    assert (pixels.std(axis=0) > 50).all()


def test_a_missing_folder_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundled, "PACKAGE", tmp_path / "ompq_deploy")
    with pytest.raises(BadInput, match="not installed") as caught:
        bundled_images()
    assert "--calib" in caught.value.fix
