"""The integer programme of HAWQ-V3 (Yao et al., ICML 2021) on the layer table of a ResNet, solved exactly.

    min  sum_i Omega_i(b_i)          Omega_i(b) = Tr(H_i) / n_i * ||Q_b(w_i) - w_i||^2,   b in {(4, 4), (8, 8)}
    s.t. sum_i M_i(b_i) <= size      weights and BatchNorm
         sum_i G_i(b_i) <= BOPs      MACs * b_w * b_a
         sum_i Q_i(b_i) <= latency   a table of nanoseconds, where one is given

First and last layer at 8 bits; a downsample convolution has the width of its block's last. Without trained weights the
error is that of He-initialized Gaussian weights on a grid over four standard deviations, and Tr(H_i) / n_i is 1
unless a JSON file gives it per layer. So the limits and the optimality are real, the preference among layers is not.

    python benchmarks/hawq_v3_ilp.py --network resnet18 --size-mib 6.7 --gbops 72
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from layer_tables import resnet18, resnet50

from ompq_deploy.allocate.problem import Problem, Solution
from ompq_deploy.allocate.solvers import SOLVERS
from ompq_deploy.artifacts import Budget, Layer, Resource
from ompq_deploy.limits.latency import read_latency_table
from ompq_deploy.limits.resources import bops
from ompq_deploy.limits.sizes import paper_count

PAIRS = ((4, 4), (8, 8))
MIB = 2**20
NETWORKS = {"resnet18": resnet18, "resnet50": resnet50}


def omega(layer: Layer, bits: int, trace: float) -> float:
    """Omega_i(b) of Gaussian weights: n steps^2 / 12 on a grid of 2^b - 1 steps over 8 standard deviations."""
    deviation = np.sqrt(2.0 / np.prod(layer.shape[1:]))
    step = 8.0 * deviation / (2**bits - 1)
    return float(trace * layer.numel * step**2 / 12)


def programme(
    layers: list[Layer],
    traces: dict[str, float],
    *,
    size: int | None = None,
    gbops: float | None = None,
    latency: Resource | None = None,
) -> Problem:
    """The instance. Limits are None where there are none."""
    names = [layer.name for layer in layers]
    edges = np.isin(np.arange(len(layers)), [0, len(layers) - 1])
    size_cost = np.array([[-(-paper_count(layer) * w // 8) for w, _ in PAIRS] for layer in layers], np.int64)
    limit = None if gbops is None else int(gbops * 1e9)
    operations = bops(layers, PAIRS, Budget(size_bytes=0, bops=limit))
    return Problem(
        names=tuple(names),
        choices=PAIRS,
        loss=np.array([[omega(layer, w, traces.get(layer.name, 1.0)) for w, _ in PAIRS] for layer in layers]),
        resources=(
            Resource(name="size", cost=size_cost, limit=size),
            operations,
            *([latency] if latency else []),
        ),
        allowed=np.stack([~edges, np.ones(len(layers), bool)], axis=1),
        group=np.array([_block_end(names, name) for name in names]),
    )


def _block_end(names: list[str], name: str) -> int:
    """The layer whose width a layer shares: a downsample that of its block's last convolution."""
    if not name.endswith("downsample"):
        return names.index(name)
    block = name.removesuffix("downsample")
    return max(i for i, other in enumerate(names) if other.startswith(f"{block}conv"))


def describe(problem: Problem, solution: Solution) -> str:
    size, operations, *_ = problem.resources
    widths = "".join(str(problem.choices[c][0]) for c in solution.choice.tolist())
    return (
        f"{solution.status:11} Omega {problem.loss_of(solution.choice):9.3f} (bound {solution.bound:9.3f})  "
        f"{size.used(solution.choice) / MIB:6.3f} MiB  {operations.used(solution.choice) / 1e9:7.2f} G BOPs  {widths}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="resnet18")
    parser.add_argument("--size-mib", type=float, default=6.7)
    parser.add_argument("--gbops", type=float, default=72.0)
    parser.add_argument("--latency-table", type=Path, help="as for ompq-deploy, with widths 4/4 and 8/8")
    parser.add_argument("--latency-ns", type=int)
    parser.add_argument("--traces", type=Path, help="JSON: mean Hessian trace per layer")
    args = parser.parse_args()
    layers = NETWORKS[args.network]()
    traces = json.loads(args.traces.read_text()) if args.traces else {}
    latency = None
    if args.latency_table:
        names, table = [layer.name for layer in layers], read_latency_table(args.latency_table)
        latency = table.resource(names, PAIRS, args.latency_ns)
    limits = {
        "size": {"size": int(args.size_mib * MIB)},
        "BOPs": {"gbops": args.gbops},
        "all": {"size": int(args.size_mib * MIB), "gbops": args.gbops, "latency": latency},
    }
    failed = False
    for title, kept in limits.items():
        problem = programme(layers, traces, **kept)
        for name in ("cp-sat", "mpqco-greedy", "ompq-lp"):
            started = time.perf_counter()
            solution = SOLVERS[name](problem, 0, None)
            seconds = time.perf_counter() - started
            if solution is None:
                print(f"{title:5} {name:13} infeasible")
                failed |= name == "cp-sat"
                continue
            print(f"{title:5} {name:13} {seconds:6.3f} s  {describe(problem, solution)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
