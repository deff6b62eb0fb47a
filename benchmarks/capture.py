"""Claim: capture, ORM and solver together cost at most 3 plain forward passes of the same images, and at most 2 s.

All runs share one process and alternate; the table gives medians. `plain` runs a session that exists; `plain, new`
creates one first, as a capture must. A capture starts from the prepared graph: its time includes instrumenting,
both sessions it creates and the run. Peak memory is that of a child process of its own for each variant, above
what the child held before (imports, prepared graph, images).

    python benchmarks/capture.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ompq_deploy.allocate import allocate
from ompq_deploy.artifacts import BitPlan, Budget, Capture, PreparedGraph, Samples, Scores, SizeTable
from ompq_deploy.capture import capture
from ompq_deploy.metrics.orm import importance, orm_matrix
from ompq_deploy.prepare import prepare

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODEL = SHARED / "models/imagenet/mobilenet_v2_1.0_224_keras.onnx"
IMAGES = SHARED / "data/imagenet_nips17dev_calib128_224.npz"
BITS = (4, 8)
SHARE = 0.75
"""The budget, as a share of one byte per weight."""
COUNTS = (32, 64)
VARIANTS = ("plain", "capture")


def main() -> None:
    arguments = parse()
    graph = prepare(arguments.model)
    if arguments.measure:
        print(peak_mib(arguments.measure, graph, images(graph, arguments.images, arguments.count)))
        return
    for count in COUNTS:
        samples = images(graph, arguments.images, count)
        seconds = measure(graph, samples, arguments.repeats)
        total = seconds["capture"] + seconds["orm"] + seconds["solve"]
        memory = {variant: child_peak_mib(arguments, variant, count) for variant in VARIANTS}
        print(f"N = {count}")
        print("  " + "   ".join(f"{name} {value:.3f} s" for name, value in seconds.items()))
        print(f"  capture + ORM + solve {total:.3f} s")
        for name in ("plain", "plain, new"):
            print(f"    = {total / seconds[name]:.2f} x {name}")
        print("  peak memory " + "   ".join(f"{name} {value:.0f} MiB" for name, value in memory.items()))
        print(f"    = {memory['capture'] / memory['plain']:.2f} x plain")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--images", type=Path, default=IMAGES, help="npz with uint8 images (N, H, W, 3)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--measure", choices=VARIANTS, help="print the peak memory of one variant and stop")
    parser.add_argument("--count", type=int, default=COUNTS[0], help="samples for --measure")
    return parser.parse_args()


def images(graph: PreparedGraph, path: Path, count: int) -> Samples:
    """The first images, scaled to [-1, 1], float32 (N, 3, H, W)."""
    with np.load(path) as archive:
        pixels = archive["images"][:count]
    x = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - 1, dtype=np.float32)
    return Samples(inputs={graph.input_names[0]: x}, labels=None, source=str(path), sha256="")


def measure(graph: PreparedGraph, samples: Samples, repeats: int) -> dict[str, float]:
    """Median seconds of each step over interleaved repeats, after one round that is not counted."""
    session = plain_session(graph)
    first = capture(graph, samples)
    theta = orm(graph, first)
    steps: dict[str, Callable[[], object]] = {
        "plain": lambda: session.run(None, dict(samples.inputs)),
        "plain, new": lambda: plain_session(graph).run(None, dict(samples.inputs)),
        "capture": lambda: capture(graph, samples),
        "orm": lambda: orm(graph, first),
        "solve": lambda: solve(graph, theta),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def orm(graph: PreparedGraph, captured: Capture) -> np.ndarray:
    """Importance of every layer, float64 (L,)."""
    return importance(orm_matrix([captured.grams[layer.name] for layer in graph.layers]))


def solve(graph: PreparedGraph, theta: np.ndarray) -> BitPlan:
    """The plan of least sum_i theta_i 4^-b_i within `SHARE` of one byte per weight."""
    numel = np.array([layer.numel for layer in graph.layers])
    scores = Scores(metric="orm", bits=BITS, loss=theta[:, None] * 4.0 ** -np.array(BITS), importance=theta)
    sizes = SizeTable(fixed=0, bytes=(numel[:, None] * np.array(BITS) + 7) // 8)
    return allocate(graph.layers, scores, sizes, Budget(size_bytes=int(SHARE * numel.sum()), size_of="weights"))


def plain_session(graph: PreparedGraph) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(graph.model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def peak_mib(variant: str, graph: PreparedGraph, samples: Samples) -> float:
    """Growth of the resident set's high-water mark over one run in a fresh session."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark of what came before
    held = resident_mib("VmHWM")
    if variant == "plain":
        plain_session(graph).run(None, dict(samples.inputs))
    else:
        capture(graph, samples)
    return resident_mib("VmHWM") - held


def resident_mib(field: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def child_peak_mib(arguments: argparse.Namespace, variant: str, count: int) -> float:
    command = [sys.executable, __file__, "--model", arguments.model, "--images", arguments.images]
    command += ["--measure", variant, "--count", str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
