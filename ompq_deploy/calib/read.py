"""Read what lies on disk: lists of image files, pixels, and the arrays of npy and npz files. Never a pickle."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ompq_deploy.calib.input_spec import InputSpec
from ompq_deploy.errors import BadInput

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
DEEP_MODES = ("I", "F")
UNREADABLE_IMAGES = (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError)
UNREADABLE_ARRAYS = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def list_images(root: Path) -> list[Path]:
    """Every image file below `root`, folders that are links included, hidden files and folders left out, sorted by
    path."""
    files = sorted(path for path in _visible(root) if path.suffix.lower() in SUFFIXES)
    if not files:
        raise BadInput(
            "the directory holds no images",
            where=str(root),
            fix=f"give a directory with images ({', '.join(sorted(SUFFIXES))}), in it or in folders below",
        )
    return files


def _visible(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """The files below a folder. A link back to one of the folders `above` ends there."""
    place = folder.resolve()
    if place in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _visible(path, above | {place})
        elif path.is_file():
            yield path


def open_image(path: Path, channels: int) -> Image.Image:
    """The decoded image with 8 bits per channel: RGB for 3 channels, grey for 1."""
    try:
        with Image.open(path) as stored:
            deep = stored.mode.split(";")[0] in DEEP_MODES
            image = stored.convert("RGB" if channels == 3 else "L")
    except UNREADABLE_IMAGES as e:
        raise BadInput(
            f"the image cannot be read: {e}", where=str(path), fix="replace or remove the file, then run again"
        ) from e
    if deep:
        raise BadInput(
            "the image has more than 8 bits per channel", where=str(path), fix="convert it to 8 bits, or remove it"
        )
    return image


def read_arrays(path: Path, inputs: Sequence[InputSpec]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64] | None]:
    """The arrays of a .npy or .npz file by input name, and the labels stored beside them, if any.

    An .npz is keyed by input name, or holds `images` for a model with one input.
    """
    try:
        with path.open("rb") as stream:
            stored = np.load(path if path.suffix.lower() == ".npy" else stream, mmap_mode="r", allow_pickle=False)
            if isinstance(stored, np.lib.npyio.NpzFile):
                keys = _keys(path, stored.files, inputs)
                arrays = {name: stored[key] for name, key in keys.items()}
                labels = stored["labels"] if "labels" in stored.files else None
            else:
                arrays, labels = {_only_input(path, inputs).name: stored}, None
    except UNREADABLE_ARRAYS as e:
        raise BadInput(
            f"the arrays cannot be read: {e}",
            where=str(path),
            fix="save them again with numpy.save or numpy.savez; pickled (object) arrays are refused",
        ) from e
    return arrays, None if labels is None else _checked_labels(path, labels, arrays)


def _keys(path: Path, found: Sequence[str], inputs: Sequence[InputSpec]) -> dict[str, str]:
    names = [spec.name for spec in inputs]
    if set(names) <= set(found):
        return {name: name for name in names}
    if len(names) == 1 and "images" in found:
        return {names[0]: "images"}
    raise BadInput(
        f"the file has the keys {', '.join(map(repr, found)) or '(none)'}, but the model reads "
        f"{', '.join(map(repr, names))}",
        where=str(path),
        fix="key the arrays by input name" + (", or store `images`, uint8 N x H x W x 3" if len(names) == 1 else ""),
    )


def _only_input(path: Path, inputs: Sequence[InputSpec]) -> InputSpec:
    if len(inputs) == 1:
        return inputs[0]
    raise BadInput(
        f"one array for a model with {len(inputs)} inputs",
        where=str(path),
        fix=f"give an .npz with the keys {', '.join(spec.name for spec in inputs)}",
    )


def _checked_labels(path: Path, labels: NDArray[Any], arrays: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise BadInput(
            f"labels are {labels.dtype} {labels.shape}", where=str(path), fix="store them as whole numbers, shape (N,)"
        )
    for name, array in arrays.items():
        if array.shape[:1] != labels.shape:
            raise BadInput(
                f"{len(labels)} labels for {name!r} of shape {array.shape}",
                where=str(path),
                fix="store one label per sample",
            )
    return labels.astype(np.int64)
