"""A budget on the engine file: kept by the engine that was measured, or refused with the smallest one's size."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from ompq_deploy import pipeline
from ompq_deploy.artifacts import BitPlan, Budget, Capture, PlannedLayer, PreparedGraph, SizeTable, SolverRecord
from ompq_deploy.errors import InfeasibleBudget
from ompq_deploy.limits.engine_fit import fit_engine, refuse_too_small, stored_constants

SIZES = SizeTable(fixed=0, bytes=np.array([[50, 100], [200, 400], [500, 1000]]))


def plan_of(columns: list[int], size: int) -> BitPlan:
    rows = tuple(
        PlannedLayer(name=str(i), op="Conv", weight_bits=(4, 8)[c], activation_bits=8, numel=1, bytes=0, score=0.0)
        for i, c in enumerate(columns)
    )
    solver = SolverRecord(name="none", status="NONE", objective=0, bound=0, seconds=0)
    return BitPlan(layers=rows, budget=Budget(size_bytes=1), size_bytes=size, metric="none", solver=solver)


def widest_within(budget: int) -> Callable[[SizeTable], BitPlan]:
    """Of the eight plans, the largest one the table lets into the budget."""

    def solve(sizes: SizeTable) -> BitPlan:
        plans = [[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)]
        bytes_of = {tuple(p): sizes.fixed + int(sizes.bytes[np.arange(3), p].sum()) for p in plans}
        best = max((p for p in plans if bytes_of[tuple(p)] <= budget), key=lambda p: bytes_of[tuple(p)])
        return plan_of(best, bytes_of[tuple(best)])

    return solve


def engine_with(overhead: int, per_wide_layer: int) -> Callable[[BitPlan], int]:
    def measure(plan: BitPlan) -> int:
        wide = [row.weight_bits == 8 for row in plan.layers]
        return overhead + int(SIZES.bytes[np.arange(3), np.array(wide, int)].sum()) + per_wide_layer * sum(wide)

    return measure


@pytest.mark.parametrize("budget", [1900, 2300, 2800, 4000])
@pytest.mark.parametrize("per_wide_layer", [0, 130, 700])
def test_the_measured_engine_keeps_the_budget(budget: int, per_wide_layer: int) -> None:
    measure = engine_with(1000, per_wide_layer)
    refuse_too_small([plan_of([0, 0, 0], 750)], budget, measure)
    plan = fit_engine(SIZES, budget, measure, widest_within(budget))
    assert measure(plan) == plan.size_bytes <= budget


def test_all_the_room_is_used_where_engines_grow_with_it() -> None:
    plan = fit_engine(SIZES, 2500, engine_with(1000, 0), widest_within(2500))
    assert plan.size_bytes == 1000 + 100 + 400 + 1000


def test_the_engine_of_the_same_widths_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(model: str, backend: object) -> SimpleNamespace:
        built.append(model)
        return SimpleNamespace(plan=bytes(len(model)))

    stand_ins: dict[str, Callable[..., Any]] = {
        "find_backend": lambda name: object(),
        "quantize": lambda graph, captured, plan, settings: plan,
        "tensorrt_graph": lambda plan: "x" * sum(plan.bits().values()),
        "build_engine": build,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(pipeline, name, stand_in)
    measure = pipeline.engine_measure(cast(PreparedGraph, None), cast(Capture, None))
    narrow, wide = plan_of([0, 0, 0], 750), plan_of([1, 1, 1], 1500)
    assert [measure(plan) for plan in (narrow, wide, narrow, wide)] == [12, 24, 12, 24]
    assert len(built) == 2


def test_a_budget_below_the_smallest_engine_names_it() -> None:
    with pytest.raises(InfeasibleBudget, match="1750 bytes"):
        refuse_too_small([plan_of([0, 0, 0], 750), plan_of([1, 1, 1], 1500)], 1700, engine_with(1000, 0))


def test_constants_as_tensorrt_stores_them() -> None:
    assert [stored_constants(10, 2, bits) for bits in (2, 4, 5, 8)] == [21, 21, 26, 26]
    assert stored_constants(9, 2, 4) == 25
