"""What the whole command delivers at shrinking budgets, on real networks with labelled images.

For each network and each share of its INT8 size (one byte per weight): the budget, the file on disk, top-1 of the
float, Q/DQ and integer-only models on the same images, engine bytes, wall time and peak memory of the whole run.
Runs `ompq-deploy` as a user would, one process per row, and prints a Markdown table.

    python benchmarks/size_sweep.py --shared ../shared
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import onnx

EXIT_INFEASIBLE = 3
COLUMNS = ("network", "of INT8", "budget B", "file B", "float", "Q/DQ", "integer", "agree %", "engine B", "s", "MiB")


@dataclass(frozen=True, kw_only=True)
class Case:
    model: str
    calib: str
    labelled: str
    preprocess: str


CASES = (
    Case(
        model="imagenet/mobilenet_v2_1.0_224_keras.onnx",
        calib="imagenet_nips17dev_calib128_224.npz",
        labelled="imagenet_nips17dev_500_224.npz",
        preprocess="tf",
    ),
    Case(
        model="cifar10/resnet20.onnx",
        calib="cifar10_train_4000.npz",
        labelled="cifar10_test_593.npz",
        preprocess="torchvision",
    ),
    Case(
        model="cifar10/resnet56.onnx",
        calib="cifar10_train_4000.npz",
        labelled="cifar10_test_593.npz",
        preprocess="torchvision",
    ),
    Case(
        model="cifar10/mlperf_tiny_resnet8.onnx",
        calib="cifar10_train_4000.npz",
        labelled="cifar10_test_593.npz",
        preprocess="raw",
    ),
)


def int8_bytes(path: Path) -> int:
    """One byte per float weight or bias."""
    floats = [t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    return sum(int(onnx.numpy_helper.to_array(t).size) for t in floats)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished process: what it printed, how long it took, and its own peak resident memory."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    peak_mib: float


def measured(command: list[str]) -> Run:
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        stdout.seek(0)
        stderr.seek(0)
        return Run(
            code=os.waitstatus_to_exitcode(status),
            stdout=stdout.read(),
            stderr=stderr.read(),
            seconds=seconds,
            peak_mib=usage.ru_maxrss / 1024,
        )


def row(case: Case, share: int, shared: Path, extra: list[str]) -> list[str] | None:
    """One line of the table, or None where the budget is infeasible."""
    model = shared / "models" / case.model
    budget = int8_bytes(model) * share // 100
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable, "-m", "ompq_deploy", str(model), "--size", f"{budget}B", "--out", out, "--json",
            "--calib", str(shared / "data" / case.calib), "--eval", str(shared / "data" / case.labelled),
            "--preprocess", case.preprocess, "--quiet", *extra,
        ]  # fmt: skip
        run = measured(command)
    if run.code == EXIT_INFEASIBLE:
        print(f"{case.model} at {share} %: {run.stderr.strip().splitlines()[0]}", file=sys.stderr)
        return None
    if run.code not in (0, 1):
        raise SystemExit(run.stderr)
    report = json.loads(run.stdout)
    scores = report["eval"]
    engine = report["engine"]
    top1 = [f"{scores[name]['top1']:.2f}" if name in scores else "-" for name in ("float", "qdq", "integer")]
    return [
        Path(case.model).stem,
        f"{share} %",
        f"{budget:,}",
        f"{report['achieved']['file_bytes']:,}",
        *top1,
        f"{scores['qdq']['agreement']:.1f}",
        f"{engine['file_bytes']:,}" if engine else "-",
        f"{run.seconds:.1f}",
        f"{run.peak_mib:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--shares", type=int, nargs="+", default=[110, 80, 60, 50, 40, 30])
    parser.add_argument("--only", default="", help="networks whose path contains this")
    parser.add_argument("--flags", default="", help="further flags for ompq-deploy, such as '--bits 2-8'")
    args = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for case in CASES:
        if args.only in case.model:
            for share in args.shares:
                cells = row(case, share, args.shared, args.flags.split())
                if cells:
                    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
