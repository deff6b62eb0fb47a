"""One network of `accuracy.py`: its images, the models that tools write for it, and their figures."""

from __future__ import annotations

import json
import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import other_tools
from accuracy_cells import Cell
from accuracy_stats import pack
from networks import Case
from other_tools import Recipe
from size_sweep import EXIT_INFEASIBLE, Run, measured

from ompq_deploy.artifacts import Float32, PreparedGraph, Samples
from ompq_deploy.calib import input_specs, load_labelled, load_samples
from ompq_deploy.evaluate.accuracy import compare_outputs, label_ranks, predict
from ompq_deploy.prepare import prepare

Row = dict[str, Any]

FILES = {"qdq": "model.qdq.onnx", "integer": "model.int.onnx"}


class Bench:
    """One network with everything that is computed once for it."""

    def __init__(self, case: Case, shared: Path, samples: int, threads: int, *, further: bool = False) -> None:
        self.case = case
        self.threads = threads
        self.further = further
        self.model = shared / "models" / case.model
        self.calib = shared / "data" / case.calib
        specs = input_specs(onnx.load(self.model))
        self.calibration: Samples = load_samples(self.calib, specs, count=samples, preprocess=case.preprocess)
        self.sets = [
            load_labelled(shared / "data" / file, specs, count=count, preprocess=case.preprocess)
            for file, count in case.evaluation
        ]
        self.labels = np.concatenate([labelled.labels for labelled in self.sets])

    @cached_property
    def graph(self) -> PreparedGraph:
        return prepare(self.model)

    @cached_property
    def reference(self) -> Float32:
        return self._outputs(self.model)

    def float_row(self) -> Row:
        files = [Path(file).stem for file, _ in self.case.evaluation]
        sets = list(zip(files, map(len, self.sets), strict=True))
        return {"models": {"float": self.figures(self.model)}, "sets": sets, "samples": len(self.calibration)}

    def own_row(self, cell: Cell, effort: str) -> Row:
        """What `ompq-deploy` writes for one budget."""
        size = cell.budget(self.graph)
        with tempfile.TemporaryDirectory() as out:
            command = [
                sys.executable, "-m", "ompq_deploy", str(self.model), "--size", size, "--bits", cell.bits,
                "--effort", effort, "--target", "onnx", "--target", "integer", *cell.flags,
                "--calib", str(self.calib), *self.case.preprocess_flags,
                *(() if self.further else ("--samples", str(len(self.calibration)))),
                "--threads", str(self.threads), "--out", out, "--json", "--quiet",
            ]  # fmt: skip
            run = measured(command)
            if run.code == EXIT_INFEASIBLE:
                return {"failed": run.stderr.strip().splitlines()[0]}
            if not run.stdout:
                raise SystemExit(f"{' '.join(command)}\n{run.stderr}")
            report = json.loads(run.stdout)
            written = {name: Path(out) / file for name, file in FILES.items()}
            figures = {name: self.figures(path) for name, path in written.items() if path.exists()}
        return {
            "models": figures,
            "tool": f"ompq-deploy {report['versions']['ompq-deploy']}",
            "size": size,
            "metric": report["metric_chosen"],
            "failures": [failure["what"] for failure in report["failures"]],
            "calibration": report["calibration"]["sha256"],
            **cost(run),
        }

    def other_row(self, recipe: Recipe, python: Path) -> Row:
        """What another tool writes, or the last line of its complaint."""
        with tempfile.TemporaryDirectory() as folder:
            calibration, out = Path(folder) / "calibration.npz", Path(folder) / "model.onnx"
            np.savez(calibration, **self.calibration.inputs)
            run = measured([*map(str, (python, other_tools.__file__, recipe.name, self.model, calibration, out))])
            if run.code != 0:
                return {"failed": run.stderr.strip().splitlines()[-1]}
            figures = {"qdq": self.figures(out)}
        tool = json.loads(run.stdout.strip().splitlines()[-1])["tool"]
        return {"models": figures, "tool": tool, "calibration": self.calibration.sha256, **cost(run)}

    def figures(self, model: Path) -> Row:
        """Accuracy of one written model; `correct` packs one bit per image, so that differences can be paired later."""
        outputs = self._outputs(model)
        hits = label_ranks(outputs, self.labels) < 1
        comparison = compare_outputs(self.reference, outputs)
        return {
            "n": len(hits),
            "top1": 100 * float(hits.mean()),
            "agreement": comparison.agreement,
            "kl": comparison.kl,
            "file_bytes": model.stat().st_size,
            "correct": pack(hits),
        }

    def _outputs(self, model: Path) -> Float32:
        return np.concatenate([predict(model, labelled, threads=self.threads) for labelled in self.sets])


def cost(run: Run) -> Row:
    return {"seconds": run.seconds, "peak_mib": run.peak_mib}
