"""Time and memory of the integer-only model, in both arithmetics, as ratios to the float model's.

Targets: at most 8 (MobileNetV2) and 4 (ResNet-56) times as long under `dyadic`, at most as long under `tensorrt`, at
most twice the memory. docs/results.md has the figures, and says which are missed with two threads.

All models of a row share one process and alternate; figures are medians of wall time and of the processor time of the
whole process, which other work on the machine disturbs less. Peak memory is that of a child process of its own for each
model, above what the child held before it made the session. Weights are of 8 bits or `--bits`, rounded to nearest;
grids are the defaults.

    python benchmarks/integer_speed.py --json speed.json --table speed.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from networks import Case, selected

from ompq_deploy.artifacts import BitPlan, Budget, PlannedLayer, PreparedGraph, QuantizedGraph, Samples, SolverRecord
from ompq_deploy.calib import input_specs, load_samples
from ompq_deploy.capture import capture
from ompq_deploy.export.integer.emit import integer_model
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import ARITHMETICS
from ompq_deploy.export.qdq import qdq_model
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize import QuantizeSettings, quantize

SHARED = Path(__file__).resolve().parents[2] / "shared"
BATCHES = {"mobilenet_v2": (1, 8), "resnet56": (1, 16)}
THREADS = (1, 2)
CALIBRATION = 32
WARM_UP = 3
Feed = Mapping[str, np.ndarray]


def main() -> None:
    arguments = parse()
    if arguments.measure:
        print(peak_mib(arguments.measure, arguments.feed))
        return
    rows = []
    for case in selected(list(BATCHES), {}):
        quantized, samples = quantized_case(case, arguments.shared, arguments.bits)
        models = {"float": quantized.graph.model, "qdq": qdq_model(quantized)}
        models |= {arithmetic: integer_model(lower(quantized, arithmetic)) for arithmetic in ARITHMETICS}
        for batch in BATCHES[case.name]:
            feed = {name: array[:batch] for name, array in samples.inputs.items()}
            memory = peaks(models, feed)
            for threads in THREADS:
                times = measure(models, feed, threads, arguments.repeats)
                row = {"network": case.name, "batch": batch, "threads": threads, "models": times, "peak_mib": memory}
                rows.append(row)
                print(table_row(row), flush=True)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"repeats": arguments.repeats, "bits": arguments.bits, "rows": rows}, indent=2) + "\n"
        )
    if arguments.table:
        arguments.table.write_text("\n".join([HEADER, *map(table_row, rows)]) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with models/ and data/")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--bits", type=int, default=8, help="width of all weights")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--table", type=Path, help="write the table here")
    parser.add_argument("--measure", type=Path, metavar="MODEL", help="print the peak memory of one model and stop")
    parser.add_argument("--feed", type=Path, help="npz with its inputs, for --measure")
    return parser.parse_args()


def quantized_case(case: Case, shared: Path, bits: int) -> tuple[QuantizedGraph, Samples]:
    """A network with all weights at one width, and its calibration samples."""
    graph = prepare(shared / "models" / case.model)
    samples = load_samples(
        shared / "data" / case.calib, input_specs(graph.model), count=CALIBRATION, preprocess=case.preprocess, seed=0
    )
    settings = QuantizeSettings(effort="quick")
    captured = capture(graph, samples, histograms=True)
    return quantize(graph, captured, uniform(graph, bits), settings, samples=samples), samples


def uniform(graph: PreparedGraph, bits: int) -> BitPlan:
    rows = tuple(
        PlannedLayer(
            name=layer.name,
            op=layer.op,
            weight_bits=bits,
            activation_bits=8,
            numel=layer.numel,
            bytes=layer.numel * bits // 8,
            score=0.0,
        )
        for layer in graph.layers
    )
    size = sum(row.bytes for row in rows)
    solver = SolverRecord(name="uniform", status="FIXED", objective=0.0, bound=0.0, seconds=0.0)
    return BitPlan(layers=rows, budget=Budget(size_bytes=size), size_bytes=size, metric="none", solver=solver)


def measure(
    models: Mapping[str, onnx.ModelProto], feed: Feed, threads: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds of each model over interleaved repeats: wall time and processor time."""
    sessions = {name: session(model.SerializeToString(), threads) for name, model in models.items()}
    wall: dict[str, list[float]] = {name: [] for name in models}
    processor: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(WARM_UP + repeats):
        for name, running in sessions.items():
            started, used = time.perf_counter(), time.process_time()
            running.run(None, dict(feed))
            wall[name].append(1e3 * (time.perf_counter() - started))
            processor[name].append(1e3 * (time.process_time() - used))
    return {
        name: {
            "wall_ms": statistics.median(wall[name][WARM_UP:]),
            "processor_ms": statistics.median(processor[name][WARM_UP:]),
        }
        for name in models
    }


def session(model: bytes | str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # many sessions share the cores
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def peaks(models: Mapping[str, onnx.ModelProto], feed: Feed) -> dict[str, float]:
    """Peak memory of each model in MiB, in a child process of its own."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "feed.npz", **feed)  # type: ignore[arg-type]
        for name, model in models.items():
            path = Path(folder) / f"{name}.onnx"
            onnx.save(model, path)
            command = [sys.executable, __file__, "--measure", path, "--feed", Path(folder) / "feed.npz"]
            found[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def peak_mib(model: Path, feed: Path) -> float:
    """Growth of the resident set's high-water mark over making a session and two runs."""
    with np.load(feed) as archive:
        arrays = dict(archive)
    Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark of what came before
    held = resident_mib("VmHWM")
    running = session(str(model), 1)
    for _ in range(2):
        running.run(None, arrays)
    return resident_mib("VmHWM") - held


def resident_mib(field: str) -> float:
    """A line of /proc/self/status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


HEADER = """\
| network | batch | threads | float ms | Q/DQ | dyadic | tensorrt | float MiB | Q/DQ | dyadic | tensorrt |
|---|---|---|---|---|---|---|---|---|---|---|"""


def table_row(row: dict[str, Any]) -> str:
    """The float model's milliseconds and MiB, and the others' ratios to them."""
    times, memory = row["models"], row["peak_mib"]
    clock = "processor_ms" if row["threads"] == 1 else "wall_ms"
    others = [name for name in times if name != "float"]
    cells = [row["network"], str(row["batch"]), str(row["threads"]), f"{times['float'][clock]:.1f}"]
    cells += [f"{times[name][clock] / times['float'][clock]:.2f}" for name in others]
    cells += [f"{memory['float']:.0f}", *(f"{memory[name] / memory['float']:.2f}" for name in others)]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
