"""Make the default calibration images: 224 x 224 JPEG crops of public-domain photographs in scikit-image's wheel.

    pip install scikit-image==0.26.0 && python calib_data/make.py

Each source is cut on grids of square regions: (side, columns, rows) spreads columns x rows regions of side x side
pixels evenly from edge to edge; a region larger than 224 is scaled down to it (scale = 224 / side).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
SIDE = 224
QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """One source image, whose licence is quoted from the docstring of its function in skimage/data/_fetchers.py."""

    file: str
    author: str
    licence: str
    origin: str
    grids: tuple[tuple[int, int, int], ...]


PHOTOGRAPHS = (
    Photograph(
        file="astronaut.png",
        author="NASA",
        licence="public domain (No known copyright restrictions, released into the public domain)",
        origin="https://flic.kr/p/r9qvLn",
        grids=((224, 3, 3), (352, 2, 2), (512, 1, 1)),
    ),
    Photograph(
        file="coffee.png",
        author="Rachel Michetti, courtesy of Pikolo Espresso Bar",
        licence="CC0 (No copyright restrictions. CC0 by the photographer)",
        origin="scikit-image",
        grids=((224, 4, 2), (312, 3, 1), (400, 2, 1)),
    ),
    Photograph(
        file="rocket.jpg",
        author="SpaceX",
        licence="public domain (captured by SpaceX and released in the public domain)",
        origin="https://www.flickr.com/photos/spacexphotos/16511594820",
        grids=((224, 4, 2), (320, 3, 1), (427, 2, 1)),
    ),
    Photograph(
        file="chelsea.png",
        author="Stefan van der Walt",
        licence="CC0 (No copyright restrictions. CC0 by the photographer)",
        origin="scikit-image",
        grids=((224, 3, 2), (262, 2, 1), (300, 2, 1)),
    ),
    Photograph(
        file="hubble_deep_field.jpg",
        author="NASA",
        licence="public domain (captured by NASA and may be freely used in the public domain)",
        origin="http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        grids=((290, 3, 2), (436, 1, 1), (872, 1, 1)),
    ),
    Photograph(
        file="retina.jpg",
        author="Mikael Häggström",
        licence="CC0 (Creative Commons CC0 1.0 Universal Public Domain Dedication)",
        origin="https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
        grids=((600, 1, 1), (704, 2, 2), (1411, 1, 1)),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder skimage/data of an unpacked wheel (default: the installed)")
    source = parser.parse_args().source or installed_source(parser)
    for old in HERE.glob("*.jpg"):
        old.unlink()
    images = [entry for photograph in PHOTOGRAPHS for entry in make_crops(source, photograph)]
    manifest = {"made_by": "calib_data/make.py", "side": SIDE, "jpeg_quality": QUALITY, "images": images}
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (HERE / "manifest.json").write_text(text, encoding="utf-8")
    print(f"{len(images)} images, {sum(path.stat().st_size for path in HERE.glob('*.jpg'))} bytes")


def installed_source(parser: argparse.ArgumentParser) -> Path:
    """skimage/data of the scikit-image that is installed, without importing it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        parser.error("scikit-image is not installed: pip install scikit-image==0.26.0, or pass --source")
    return Path(spec.origin).parent / "data"


def make_crops(source: Path, photograph: Photograph) -> list[dict[str, object]]:
    """Write the crops of one photograph, and return their rows of the manifest."""
    path = source / photograph.file
    image = Image.open(path).convert("RGB")
    rows: list[dict[str, object]] = []
    for number, (left, top, side) in enumerate(regions(image.width, image.height, photograph.grids)):
        box = (left, top, left + side, top + side)
        target = HERE / f"{path.stem}_{number:02d}.jpg"
        crop = image.crop(box)
        if side != SIDE:
            crop = crop.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        crop.save(target, quality=QUALITY, optimize=True)
        rows.append(
            {
                "file": target.name,
                "sha256": sha256_of(target),
                "source": f"scikit-image skimage/data/{path.name}",
                "source_sha256": sha256_of(path),
                "origin": photograph.origin,
                "author": photograph.author,
                "licence": photograph.licence,
                "box": box,
                "scale": round(SIDE / side, 4),
            }
        )
    return rows


def regions(width: int, height: int, grids: tuple[tuple[int, int, int], ...]) -> Iterator[tuple[int, int, int]]:
    """(left, top, side) of every region, in pixels."""
    for side, columns, rows in grids:
        for top in spread(height - side, rows):
            for left in spread(width - side, columns):
                yield left, top, side


def spread(room: int, count: int) -> list[int]:
    """`count` offsets from 0 to `room`, evenly; the middle for one."""
    if count == 1:
        return [room // 2]
    return [room * i // (count - 1) for i in range(count)]


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
