"""Which sensitivity decides best? Every metric at equal size, on real classifiers, before any rounding refinement.

For each network, each mean width (bits 2 to 8 allowed, size = mean width * weights / 8 bytes) and each method: top-1,
agreement with the float network and mean output KL, first with rounded weights only (`W`), then with all activations
on int8 grids as well (`WA8`, symmetric, by `mse`). Top-1 differences to `size` are paired over the images, with 95 %
intervals. Every method gets the same 64 calibration images, `auto` scores on 48 and decides on 16.

    python benchmarks/ablation.py --shared ../shared --results ablation.json --table docs/ablation.md

Rows are written to the results file as they are finished, and not computed again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ablation_table import write_page
from networks import CASES, CIFAR_SHIFTED, Case, selected
from onnx import helper, numpy_helper

from ompq_deploy.allocate import allocate
from ompq_deploy.artifacts import BitPlan, Budget, Capture, Grid, PreparedGraph, Samples, Scores, SizeTable
from ompq_deploy.calib import input_specs, load_samples
from ompq_deploy.capture import capture
from ompq_deploy.evaluate.head_search import find_heads
from ompq_deploy.evaluate.heads import log_softmax
from ompq_deploy.metrics import CONTESTANTS, Evidence, MetricSettings, round_weights, score
from ompq_deploy.metrics.rounding import Rounding
from ompq_deploy.numerics import packed_bytes, signed_range
from ompq_deploy.planning.contest import captured_rows, hold_contest, split
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize.activations import activation_grids
from ompq_deploy.runtime.runner import run_samples
from ompq_deploy.weight_scale import STEPS

BITS = tuple(range(2, 9))
WIDTHS = (2.5, 3.0, 3.5, 4.0, 5.0)
MODES = ("W", "WA8")
RANDOM_SEEDS = 5
CALIBRATION = 64

ORM = MetricSettings(name="orm")
METHODS: dict[str, MetricSettings] = {
    "size": MetricSettings(name="size"),
    "mse": MetricSettings(name="mse"),
    "Eq. 10": replace(ORM, estimator="paper", form="linear"),
    "orm paper": replace(ORM, estimator="paper"),
    "orm cka": replace(ORM, estimator="cka"),
    "orm debiased": replace(ORM, estimator="debiased"),
    "hawq": MetricSettings(name="hawq"),
    "mpqco": MetricSettings(name="mpqco"),
    "kl": MetricSettings(name="kl"),
    **{f"random {seed}": MetricSettings(name="random", seed=seed) for seed in range(RANDOM_SEEDS)},
}
STUDIED = replace(ORM, beta=0.1)
ORM_STUDY: dict[str, MetricSettings] = {
    "size": MetricSettings(name="size"),
    **{f"beta {beta:g}": replace(ORM, beta=beta) for beta in (0.01, 0.03, 0.1, 0.3, 1.0)},
    **{f"cka beta {beta:g}": replace(ORM, beta=beta, estimator="cka") for beta in (0.03, 0.3, 1.0)},
    **{f"function {name}": replace(STUDIED, function=name) for name in ("log", "linear", "cubic", "negexp")},
    **{f"granularity {name}": replace(STUDIED, granularity=name) for name in ("block", "stage", "net")},
}
ROW_ORDER = ("uniform", "size", "random", *[m for m in METHODS if m != "size" and "random" not in m], "auto")


class Bench:
    """One network with everything that is computed once for it."""

    def __init__(self, case: Case, shared: Path, results: dict[str, Any], threads: int) -> None:
        self.case = case
        self.results = results
        self.threads = threads
        self.data = shared / "data"
        self.graph = prepare(shared / "models" / case.model)
        self.samples = self._load(case.calib, CALIBRATION)
        self.evaluation = [self._load(file, count) for file, count in case.evaluation]
        self.labels = np.concatenate([samples.labels for samples in self.evaluation])
        self.heads = find_heads(self.graph, self.samples)
        self.logits: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    @cached_property
    def captured(self) -> Capture:
        return capture(self.graph, self.samples, histograms=True)

    @cached_property
    def coarse(self) -> Rounding:
        return round_weights(self.graph, BITS)

    @cached_property
    def fine(self) -> Rounding:
        return round_weights(self.graph, BITS, steps=STEPS)

    def score_of(self, method: str, settings: MetricSettings, *, held_out: bool = False) -> Scores:
        """Scores do not depend on the budget, so each is computed once and kept with the results."""
        key = f"scores/{self.case.name}/{'auto ' if held_out else ''}{method}"
        if key not in self.results:
            started = time.perf_counter()
            evidence = Evidence(graph=self.graph, rounding=self.coarse, samples=self.samples, capture=self.captured)
            if held_out:
                parts = split(self.samples)
                evidence = replace(
                    evidence, samples=parts.scored, capture=captured_rows(self.captured, parts.scored_rows)
                )
            self.results[key] = score(evidence, settings).loss.tolist()
            print(f"  {self.case.name}: {method} scored in {time.perf_counter() - started:.1f} s", flush=True)
        loss = np.array(self.results[key])
        return Scores(metric=settings.name, bits=BITS, loss=loss, importance=loss[:, 0])

    def plan(self, scores: Scores, width: float) -> BitPlan:
        layers = self.graph.layers
        table = np.array([[packed_bytes(layer.numel, b) for b in BITS] for layer in layers], np.int64)
        budget = Budget(size_bytes=int(width * sum(layer.numel for layer in layers) / 8) + len(layers))
        return allocate(layers, scores, SizeTable(fixed=0, bytes=table), budget)

    def auto_plan(self, width: float) -> BitPlan:
        def plan_under(metric: str) -> BitPlan:
            return self.plan(self.score_of(metric, MetricSettings(name=metric), held_out=True), width)

        return hold_contest(self.graph, plan_under, CONTESTANTS, split(self.samples), self.coarse).plan

    def uniform(self, width: float) -> dict[str, int]:
        return dict.fromkeys((layer.name for layer in self.graph.layers), int(width))

    def run(self, mode: str, bits: Mapping[str, int] | None) -> np.ndarray:
        """Logits on all evaluation images; `bits` None is the float network."""
        key = (mode, tuple(bits.values()) if bits else ())
        if key not in self.logits:
            graph = self.activations_rounded if mode == "WA8" and bits else self.graph
            weights = {name: self.fine.rounded(name, b) for name, b in bits.items()} if bits else {}
            parts = [run_samples(graph, weights, self.heads.tensors, x, self.threads)[0] for x in self.evaluation]
            self.logits[key] = np.concatenate(parts)
        return self.logits[key]

    @cached_property
    def activations_rounded(self) -> PreparedGraph:
        """The graph with every tensor that carries a grid rounded to it, in plain float operators: onnxruntime
        moves QuantizeLinear through Slice wrongly (1.31)."""
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        grids = activation_grids(self.captured, "mse", symmetric=True)
        low, high = (np.float32(code) for code in signed_range(8))
        model.graph.initializer.append(numpy_helper.from_array(low, "a8_low"))
        model.graph.initializer.append(numpy_helper.from_array(high, "a8_high"))
        nodes = [node for name in self.graph.input_names for node in self._grid(model, name, grids)]
        for node in model.graph.node:
            renamed = onnx.NodeProto()
            renamed.CopyFrom(node)
            del renamed.input[:]
            renamed.input.extend(f"{name}_a8" if name in grids else name for name in node.input)
            nodes.append(renamed)
            nodes += [added for name in node.output for added in self._grid(model, name, grids)]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        return replace(self.graph, model=model)

    def _grid(self, model: onnx.ModelProto, name: str, grids: Mapping[str, Grid]) -> list[onnx.NodeProto]:
        if name not in grids:
            return []
        scale, codes = np.float32(grids[name].scale), f"{name}_a8_codes"
        model.graph.initializer.append(numpy_helper.from_array(scale, f"{name}_a8_scale"))
        return [
            helper.make_node("Div", [name, f"{name}_a8_scale"], [f"{codes}_exact"]),
            helper.make_node("Round", [f"{codes}_exact"], [f"{codes}_wide"]),
            helper.make_node("Clip", [f"{codes}_wide", "a8_low", "a8_high"], [codes]),
            helper.make_node("Mul", [codes, f"{name}_a8_scale"], [f"{name}_a8"]),
        ]

    def row(self, mode: str, bits: Mapping[str, int]) -> dict[str, Any]:
        """Figures of one plan; `correct` packs one bit per image, so that differences can be paired later."""
        reference, logits = self.run(mode, None), self.run(mode, bits)
        correct = logits.argmax(axis=1) == self.labels
        log_p, log_q = log_softmax(reference), log_softmax(logits)
        return {
            "bits": list(bits.values()),
            "top1": 100 * float(correct.mean()),
            "agreement": 100 * float((logits.argmax(axis=1) == reference.argmax(axis=1)).mean()),
            "kl": float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1))),
            "n": len(correct),
            "correct": np.packbits(correct).tobytes().hex(),
        }

    def _load(self, file: str, count: int) -> Samples:
        return load_samples(
            self.data / file, input_specs(self.graph.model), count=count, preprocess=self.case.preprocess
        )


def fill(
    results: dict[str, Any], benches: Callable[[Case], Bench], cases: Iterable[Case], widths: Iterable[float],
    modes: Iterable[str], study: bool, only: Sequence[str], save: Callable[[], None],
) -> None:  # fmt: skip
    """Compute every row that is missing."""
    methods = ORM_STUDY if study else METHODS
    prefix = "study/" if study else ""
    for mode in modes:
        for case in cases:
            for width in widths:
                started = time.perf_counter()
                wanted = [*methods] if study else ["float", "uniform", *methods, "auto"]
                wanted = [m for m in wanted if not only or m in only]
                missing = [m for m in wanted if f"{prefix}{case.name}/{mode}/{width}/{m}" not in results]
                if not missing:
                    continue
                bench = benches(case)
                for method in missing:
                    if method == "float":
                        row = float_row(bench)
                    elif method == "uniform":
                        row = bench.row(mode, bench.uniform(width))
                    elif method == "auto":
                        plan = bench.auto_plan(width)
                        row = bench.row(mode, plan.bits()) | {"winner": plan.metric}
                    else:
                        scores = bench.score_of(prefix + method, methods[method])
                        row = bench.row(mode, bench.plan(scores, width).bits())
                    results[f"{prefix}{case.name}/{mode}/{width}/{method}"] = row
                save()
                print(f"{prefix}{case.name} {mode} {width}: {time.perf_counter() - started:.1f} s", flush=True)


def float_row(bench: Bench) -> dict[str, Any]:
    """The float network's own figures, per evaluation set too."""
    correct = bench.run("W", None).argmax(axis=1) == bench.labels
    edges = np.cumsum([0, *(len(samples) for samples in bench.evaluation)])
    parts = [100 * float(correct[a:b].mean()) for a, b in pairwise(edges)]
    return {"top1": 100 * float(correct.mean()), "agreement": 100.0, "kl": 0.0, "n": len(correct), "parts": parts,
            "correct": np.packbits(correct).tobytes().hex()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--results", type=Path, default=Path("ablation.json"), help="finished rows, read and written")
    parser.add_argument("--table", type=Path, help="Markdown file to write from all finished rows")
    parser.add_argument("--models", nargs="+", default=[case.name for case in CASES])
    parser.add_argument("--widths", nargs="+", type=float, default=list(WIDTHS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--study", action="store_true", help="ORM's parameters instead of the methods")
    parser.add_argument("--methods", nargs="+", default=[], help="only these rows of the table")
    parser.add_argument("--shifted", type=int, default=1000, help="JPEG-recompressed CIFAR images beside the lossless")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime, for the evaluation")
    args = parser.parse_args()
    results: dict[str, Any] = json.loads(args.results.read_text()) if args.results.exists() else {}
    known: dict[str, Bench] = {}

    def benches(case: Case) -> Bench:
        if case.name not in known:
            known[case.name] = Bench(case, args.shared, results, args.threads)
        return known[case.name]

    def save() -> None:
        beside = args.results.with_suffix(".partial")
        beside.write_text(json.dumps(results))
        beside.replace(args.results)

    counts = {CIFAR_SHIFTED: args.shifted}
    cases = selected(args.models, counts)
    fill(results, benches, cases, args.widths, args.modes, args.study, args.methods, save)
    if args.table:
        write_page(args.table, results, ROW_ORDER)


if __name__ == "__main__":
    main()
