"""Accuracy at equal size: ompq-deploy at every effort, and what users would pick instead, on the same images.

For each network and size: top-1, its drop with paired 95 % intervals, agreement and output KL against the float
network, file bytes, seconds and peak memory. `ompq-deploy` runs as a user would call it, and every other tool from
Python, one process per row; what they write is evaluated here by onnxruntime, all on the same images, and all are
calibrated on the same samples.

    python benchmarks/accuracy.py --shared ../shared --results accuracy.json --table docs/accuracy.md \\
        --efforts quick default extensive --other-python OTHER/bin/python

OTHER is an environment with `requirements-other-tools.txt`; without it the rows of the tools that need it are left
out. Rows are written to the results file as they are finished, and not computed again unless `--again` asks for it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import other_tools
from accuracy_bench import Bench, Row
from accuracy_cells import INT4, INT8, INT8_SYMMETRIC, cells_of
from accuracy_table import FLOAT_KEY, write_page
from networks import CASES, CIFAR_SHIFTED, Case, selected
from other_tools import MODELOPT, ONNXRUNTIME, RECIPES

from ompq_deploy.calib import DEFAULT_SAMPLES

COLUMNS = dict(zip(other_tools.KINDS, (INT8, INT8_SYMMETRIC, INT4), strict=True))


def wanted(case: Case, efforts: Sequence[str], pythons: Mapping[str, Path]) -> dict[str, Callable[[Bench], Row]]:
    """How to compute each row of a network, by `network/cell/method`."""
    rows: dict[str, Callable[[Bench], Row]] = {f"{case.name}/{FLOAT_KEY}": Bench.float_row}
    for cell in cells_of(case.name):
        for effort in efforts:
            rows[f"{case.name}/{cell.name}/{effort}"] = partial(Bench.own_row, cell=cell, effort=effort)
    for recipe in RECIPES.values():
        if recipe.tool in pythons and case.name in (recipe.networks or [case.name]):
            key = f"{case.name}/{COLUMNS[recipe.kind]}/{recipe.name}"
            rows[key] = partial(Bench.other_row, recipe=recipe, python=pythons[recipe.tool])
    return rows


def main() -> None:
    args = parse()
    results: dict[str, Row] = json.loads(args.results.read_text()) if args.results.exists() else {}
    pythons = {ONNXRUNTIME: Path(sys.executable)} if ONNXRUNTIME in args.tools else {}
    if MODELOPT in args.tools and args.other_python:
        pythons[MODELOPT] = args.other_python
    for case in selected(args.models, {CIFAR_SHIFTED: args.shifted}):
        rows = wanted(case, args.efforts, pythons)
        asked = [key for key in rows if args.only in key or key.endswith(FLOAT_KEY)]
        missing = [key for key in asked if args.again or key not in results]
        if not missing:
            continue
        bench = Bench(case, args.shared, args.samples, args.threads, further=args.further)
        for key in missing:
            results[key] = rows[key](bench)
            save(args.results, results)
            print(f"{key}: {summary(results[key])}", flush=True)
    if args.table:
        write_page(args.table, results)


def summary(row: Row) -> str:
    if "failed" in row:
        return row["failed"]
    return ", ".join(f"{name} {figures['top1']:.2f}" for name, figures in row["models"].items())


def save(path: Path, results: dict[str, Row]) -> None:
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(results, indent=1))
    beside.replace(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--results", type=Path, default=Path("accuracy.json"), help="finished rows, read and written")
    parser.add_argument("--table", type=Path, help="Markdown page to write from all finished rows")
    parser.add_argument("--models", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--efforts", nargs="*", default=["quick", "default"], help="of ompq-deploy; none for no rows")
    parser.add_argument("--tools", nargs="*", default=[ONNXRUNTIME, MODELOPT], choices=[ONNXRUNTIME, MODELOPT])
    parser.add_argument("--other-python", type=Path, help=f"Python of the environment that holds {MODELOPT}")
    parser.add_argument("--only", default="", help="float, and rows whose network/cell/method holds this")
    parser.add_argument("--again", action="store_true", help="compute finished rows again")
    parser.add_argument("--samples", type=int, default=DEFAULT_SAMPLES, help="calibration images, for every tool")
    parser.add_argument("--further", action="store_true", help="let ompq-deploy round by further images, its default")
    parser.add_argument("--shifted", type=int, default=1000, help="JPEG-recompressed CIFAR images beside the lossless")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime in ompq-deploy and in the evaluation")
    return parser.parse_args()


if __name__ == "__main__":
    main()
