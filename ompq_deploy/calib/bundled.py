"""The default calibration set in calib_data/: photographs in the public domain, listed in its manifest."""

from __future__ import annotations

import json
from pathlib import Path

from ompq_deploy.errors import BadInput

PACKAGE = Path(__file__).resolve().parents[1]


def bundled_folder() -> Path:
    """calib_data/: inside the package when installed, beside it in a source checkout."""
    for folder in (PACKAGE / "calib_data", PACKAGE.parent / "calib_data"):
        if (folder / "manifest.json").is_file():
            return folder
    raise BadInput(
        "the bundled calibration images are not installed",
        where=str(PACKAGE / "calib_data"),
        fix="pass your own with --calib, or install the package again",
    )


def bundled_images() -> list[Path]:
    """The files of the default set, in the manifest's order."""
    folder = bundled_folder()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return [folder / entry["file"] for entry in manifest["images"]]
