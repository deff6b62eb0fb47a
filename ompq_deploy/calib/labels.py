"""Class indices for a directory of images.

`labels.csv` (rows `name,label`; the name is a file's path below the root, its bare name, or a class folder) comes
first, then the class folder an image lies in. A label or folder is a class index (`7`, `0007`) or a name whose
line number in `classes.txt` (from 0) is the index. Without either file, folders whose names are no numbers count
in sorted order, and then have to be as many as the model has classes.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ompq_deploy.errors import BadInput

TWICE = -1


def folder_labels(root: Path, files: Sequence[Path]) -> tuple[NDArray[np.int64], int | None]:
    """int64 (N,), and the number of class folders where the labels rest on their sorted order, else None."""
    relative = [file.relative_to(root) for file in files]
    indices = _class_indices(root)
    if (root / "labels.csv").is_file():
        table = _read_table(root / "labels.csv", indices)
        return np.array([_from_table(root, name, table) for name in relative], np.int64), None
    for name in relative:
        if len(name.parts) == 1:
            raise BadInput(
                f"image {name} lies in no class folder",
                where=str(root),
                fix="put every image in a folder named after its class index, or add labels.csv (filename,label)",
            )
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    in_order = not indices and not all(folder.isdecimal() for folder in folders)
    if in_order:
        indices = {folder: index for index, folder in enumerate(folders)}
    labels = [_class_index(name.parts[0], indices, str(root)) for name in relative]
    return np.array(labels, np.int64), len(folders) if in_order else None


def _class_indices(root: Path) -> dict[str, int]:
    """By name the line number in classes.txt; `TWICE` for a name on two lines, as ImageNet has some."""
    path = root / "classes.txt"
    if not path.is_file():
        return {}
    indices: dict[str, int] = {}
    for index, line in enumerate(_read_text(path).splitlines()):
        if name := line.strip():
            indices[name] = TWICE if name in indices else index
    return indices


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"the file cannot be read: {e}", where=str(path), fix="save it as UTF-8 text") from e


def _class_index(label: str, indices: Mapping[str, int], where: str) -> int:
    if indices.get(label) == TWICE:
        raise BadInput(
            f"class {label!r} stands on two lines of classes.txt", where=where, fix="name it by its index (0007)"
        )
    if label in indices:
        return indices[label]
    if label.isdecimal():
        return int(label)
    raise BadInput(
        f"class {label!r} has no index", where=where, fix="name it by its index (0007), or add it to classes.txt"
    )


def _read_table(path: Path, indices: Mapping[str, int]) -> dict[str, int]:
    lines = csv.reader(_read_text(path).splitlines())
    rows = [(number, row) for number, row in enumerate(lines, start=1) if row]
    table: dict[str, int] = {}
    for position, (number, row) in enumerate(rows):
        if len(row) < 2:
            raise BadInput("a row needs a name and a label", where=f"{path}, line {number}", fix="write filename,label")
        name, label = row[0].strip(), row[1].strip()
        header = position == 0 and label not in indices and not label.isdecimal()
        if not header:
            index = _class_index(label, indices, f"{path}, line {number}")
            if table.setdefault(name, index) != index:
                raise BadInput(f"{name!r} has two labels", where=f"{path}, line {number}", fix="remove one of the rows")
    return table


def _from_table(root: Path, name: Path, table: Mapping[str, int]) -> int:
    for key in (name.as_posix(), name.name, name.parts[0]):
        if key in table:
            return table[key]
    raise BadInput(
        f"image {name.as_posix()} has no row", where=str(root / "labels.csv"), fix="add filename,label, or remove it"
    )
