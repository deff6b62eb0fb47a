"""How long an exact allocation takes: CP-SAT beside the dynamic programme, on random and on repeated layers.

Every row is the worst of several seeds, on one worker: the time to the proven optimum, model building included.
The dynamic programme solves the one-budget rows as a check; both must agree. Exits 1 where a target is missed.

    python benchmarks/solver.py
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np

from ompq_deploy.allocate import cp_sat, dynamic
from ompq_deploy.allocate.problem import Problem
from ompq_deploy.artifacts import Resource

BITS = tuple(range(2, 9))
SHARES = (0.2, 0.4, 0.7)
"""Where the budget lies between all-narrowest and all-widest."""


@dataclass(frozen=True, kw_only=True)
class Case:
    layers: int
    kinds: int | None
    budgets: int
    target: float

    @property
    def title(self) -> str:
        kinds = f" of {self.kinds} kinds" if self.kinds else ""
        return f"{self.layers} layers{kinds}, {'size + BOPs' if self.budgets == 2 else 'size'}"


CASES = (
    Case(layers=21, kinds=None, budgets=1, target=0.2),
    Case(layers=200, kinds=None, budgets=1, target=0.5),
    Case(layers=1000, kinds=None, budgets=1, target=5.0),
    Case(layers=1000, kinds=4, budgets=1, target=1.0),
    Case(layers=200, kinds=None, budgets=2, target=2.0),
)


def instance(case: Case, seed: int, share: float) -> Problem:
    """Random losses that fall with the width, random layer sizes and operations."""
    random = np.random.default_rng(seed)
    count = case.kinds or case.layers
    loss = np.sort(random.random((count, len(BITS))), axis=1)[:, ::-1]
    weights = random.integers(1_000, 2_000_000, count)
    operations = random.integers(10**6, 2 * 10**8, count)
    kind = random.integers(0, count, case.layers) if case.kinds else np.arange(count)
    size = (weights[kind, None] * np.array(BITS) + 7) // 8
    bops = operations[kind, None] * np.array(BITS) * 8
    tables = [("size", size), ("bops", bops)][: case.budgets]
    return Problem(
        names=tuple(f"layer{i}" for i in range(case.layers)),
        choices=tuple((bits, 8) for bits in BITS),
        loss=loss[kind],
        resources=tuple(Resource(name=name, cost=cost, limit=_between(cost, share)) for name, cost in tables),
        allowed=np.ones((case.layers, len(BITS)), bool),
        group=np.arange(case.layers),
    )


def _between(cost: np.ndarray, share: float) -> int:
    least, most = cost.min(axis=1).sum(), cost.max(axis=1).sum()
    return int(least + share * (most - least))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    print("| instance | runs | median s | worst s | target s | proved | dp median s | dp worst s |\n|" + "---|" * 8)
    missed = 0
    for case in CASES:
        seconds, programme, proved = [], [], 0
        for seed in range(seeds):
            for share in SHARES:
                problem = instance(case, seed, share)
                started = time.perf_counter()
                solution = cp_sat.solve(problem)
                seconds.append(time.perf_counter() - started)
                assert solution is not None
                proved += solution.status == "OPTIMAL"
                if case.budgets == 1:
                    started = time.perf_counter()
                    check = dynamic.solve(problem)
                    programme.append(time.perf_counter() - started)
                    assert check is not None
                    agreed = np.isclose(problem.loss_of(check.choice), problem.loss_of(solution.choice), rtol=1e-5)
                    assert agreed, "the two exact solvers differ"
        missed += max(seconds) > case.target or proved < len(seconds)
        checked = f"{np.median(programme):.3f} | {max(programme):.3f}" if programme else "- | -"
        print(
            f"| {case.title} | {len(seconds)} | {np.median(seconds):.3f} | {max(seconds):.3f} | {case.target} "
            f"| {proved}/{len(seconds)} | {checked} |",
            flush=True,
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
