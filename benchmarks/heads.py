"""The heads of detectors: what each loses at one width everywhere, and under a plan of the same file size.

For each network and width: every layer at that width, then the plan of `ompq-deploy` with widths 2 to 8 in as many
bytes, against the float model on 64 images that calibrated neither: with the weights rounded to nearest and all else in
float (`W`), and as the Q/DQ model (`WA8`). Relative error (`evaluate/fidelity.py`) in percent, the worst head's and the
mean. Prints a Markdown table; `--plan` gives the row of a plan.json made some other way.

    python benchmarks/heads.py --shared ../shared
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ompq_deploy.calib import Preprocess, input_specs, load_unused, make_preprocess
from ompq_deploy.evaluate.fidelity import fidelity_document
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.files.plan_file import load_plan
from ompq_deploy.limits.rules import Rules
from ompq_deploy.metrics import MetricSettings, round_weights
from ompq_deploy.pipeline import Planned, calibrated_graph, make_plan, run_quantize
from ompq_deploy.quantize import EFFORTS, QuantizeSettings
from ompq_deploy.runtime.runner import with_weights
from ompq_deploy.runtime.timing import Stopwatch
from ompq_deploy.settings import PlanSettings
from ompq_deploy.weight_scale import STEPS

CALIB = "data/imagenet_nips17dev_calib128_224.npz"
WIDTHS = (4, 5)
ALLOWED = tuple(range(2, 9))
HELD_OUT = 64
COLUMNS = ("network", "bits", "widths", "file B", "W worst", "W mean", "WA8 worst", "WA8 mean", "every head, W", "s")


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    model: str
    preprocess: Preprocess


CASES = (
    Case(name="ultraface", model="other/ultraface_slim320.onnx",
         preprocess=make_preprocess("raw", mean=(127.0,), std=(128.0,))),
    Case(name="yolox_nano", model="other/yolox_nano.onnx", preprocess=make_preprocess("raw", bgr=True)),
)  # fmt: skip


class Bench:
    """Runs of the whole command on one network."""

    def __init__(self, case: Case, shared: Path, effort: str) -> None:
        self.case = case
        self.model = shared / "models" / case.model
        self.settings = PlanSettings(
            bits=ALLOWED,
            calib=shared / CALIB,
            preprocess=case.preprocess,
            quantize=QuantizeSettings(effort=effort),
        )

    def run(self, width: int, title: str, **changes: Any) -> int:
        """Print one row; the bytes of the file."""
        started = time.perf_counter()
        settings = replace(self.settings, **changes)
        calibrated = calibrated_graph(self.model, settings)
        planned = make_plan(calibrated, settings, Stopwatch())
        quantized = run_quantize(calibrated, planned.capture, planned.plan, settings, planned.document)
        deployed = qdq_model(quantized)
        rows = self.compare(planned, {"W": rounded(planned), "WA8": deployed})
        errors = {mode: [100 * row[mode]["relative_error"] for row in rows] for mode in ("W", "WA8")}
        figures = [f"{figure:.1f}" for mode in errors for figure in (max(errors[mode]), np.mean(errors[mode]))]
        size = deployed.ByteSize()
        cells = [
            self.case.name, width, title, f"{size:,}", *figures, " ".join(f"{error:.0f}" for error in errors["W"]),
            f"{time.perf_counter() - started:.0f}",
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        return size

    def compare(self, planned: Planned, models: dict[str, onnx.ModelProto]) -> list[dict[str, Any]]:
        """The rows of every head on images left by the calibration."""
        samples = load_unused(
            self.settings.calib, input_specs(planned.graph.model), count=HELD_OUT, used=(self.settings.samples,),
            preprocess=self.case.preprocess,
        )  # fmt: skip
        rows: list[dict[str, Any]] = fidelity_document(planned.graph, models, planned.samples, samples)["rows"]
        return rows

    def fixed(self, width: int, title: str, pins: Sequence[str]) -> int:
        """The row of a plan in which every layer is pinned."""
        return self.run(width, title, rules=Rules(pins=tuple(pins)), metric=MetricSettings(name="size"))


def rounded(planned: Planned) -> onnx.ModelProto:
    """The float model with the plan's weights rounded to nearest."""
    bits = planned.plan.bits()
    rounding = round_weights(planned.graph, sorted(set(bits.values())), steps=STEPS)
    return with_weights(planned.graph, {name: rounding.rounded(name, width) for name, width in bits.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--effort", choices=EFFORTS, default="default")
    parser.add_argument("--plan", type=Path, help="a plan.json of one network: only its row")
    args = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for case in CASES:
        if args.only not in case.name:
            continue
        bench = Bench(case, args.shared, args.effort)
        for width in args.widths:
            if args.plan:
                pins = [f"{name}={bits}" for name, bits in load_plan(args.plan)[0].bits().items()]
                bench.fixed(width, args.plan.stem, pins)
                continue
            size = bench.fixed(width, "uniform", [f".*={width}"])
            bench.run(width, "planned", size=f"{size}B")


if __name__ == "__main__":
    main()
