"""Bit operations, latency tables, activation memory: the counts, and what a bad table says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ompq_deploy.artifacts import Budget
from ompq_deploy.errors import BadInput, InfeasibleBudget
from ompq_deploy.limits.activation_memory import peak_elements
from ompq_deploy.limits.latency import read_latency_table
from ompq_deploy.limits.resources import bops, resources
from ompq_deploy.planning import allocation
from ompq_deploy.prepare import prepare
from ompq_deploy.settings import PlanSettings
from tests import models
from tests.problems import layers


def test_bops_are_macs_times_both_widths(residual_model: Path) -> None:
    graph = prepare(residual_model)
    table = bops(graph.layers, [(4, 8), (8, 8)], Budget(size_bytes=0, bops=7))
    stem = 3 * 8 * 9 * 16 * 16
    assert table.cost[0].tolist() == [stem * 32, stem * 64]
    assert table.limit == 7


def test_the_papers_bops_add_five_operations_per_output(residual_model: Path) -> None:
    graph = prepare(residual_model)
    table = bops(graph.layers, [(1, 1)], Budget(size_bytes=0, size_of="paper"))
    by_name = dict(zip([layer.name for layer in graph.layers], table.cost[:, 0].tolist(), strict=True))
    assert by_name["stem"] == (3 * 9 + 5) * 8 * 16 * 16
    assert by_name["depthwise"] == (9 + 5) * 8 * 16 * 16
    assert by_name["fc"] == (2 * 16 + 1) * 10


def test_peak_memory_of_a_residual_block(residual_model: Path) -> None:
    """depthwise and its input (kept for the sum) and output: 8 x 16 x 16 each; the stem also keeps 3 x 16 x 16."""
    assert peak_elements(prepare(residual_model)) == 3 * 8 * 16 * 16


def test_peak_memory_of_a_chain_is_its_largest_neighbours(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    y = g.conv(g.conv(g.conv("x", "a", 1, 8), "b", 8, 4), "c", 4, 2)
    path = models.save(g.model(["N", 1, 10, 10], y, ["N", 2, 10, 10]), tmp_path / "m.onnx")
    assert peak_elements(prepare(path)) == (8 + 4) * 100


def test_a_pool_is_stored_and_frees_its_input(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    pooled = g.node("MaxPool", [g.conv("x", "a", 1, 8)], "pool", kernel_shape=[2, 2], strides=[2, 2])
    y = g.conv(pooled, "b", 8, 16)
    path = models.save(g.model(["N", 1, 8, 8], y, ["N", 16, 4, 4]), tmp_path / "m.onnx")
    assert peak_elements(prepare(path)) == 8 * 64 + 8 * 16


def test_unknown_shapes_end_an_activation_budget_only(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    path = models.save(g.model(["N", 3, "H", "W"], g.conv("x", "a", 3, 4), ["N", 4, "H", "W"]), tmp_path / "m.onnx")
    graph = prepare(path)
    assert {r.name for r in resources(graph, (4, 8), Budget(size_bytes=1), None)} == {"bops"}
    with pytest.raises(BadInput, match="shapes"):
        resources(graph, (4, 8), Budget(size_bytes=1, activation_bytes=5), None)


def test_activation_memory_is_met_or_infeasible(residual_model: Path) -> None:
    graph = prepare(residual_model)
    scores = np.zeros((7, 2))
    from ompq_deploy.artifacts import Scores

    loss = Scores(metric="test", bits=(4, 8), loss=scores, importance=scores[:, 0])
    peak = peak_elements(graph)
    assert allocation(graph, PlanSettings(activation_memory=f"{peak}B")).plan(loss).activation_bytes == peak
    with pytest.raises(InfeasibleBudget, match=f"activation memory is {peak} bytes") as caught:
        allocation(graph, PlanSettings(activation_memory="1KB")).plan(loss)
    assert "8 bits" in caught.value.where


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_latency_tables_from_json_and_csv_agree(tmp_path: Path) -> None:
    row = {"layer0": {"4": 10.5, "8": 20}, "layer1": {"4/8": 7, "8": 9}}
    from_json = read_latency_table(table(tmp_path / "t.json", json.dumps({"fixed_ns": 5, "layers": row})))
    from_csv = read_latency_table(
        table(tmp_path / "t.csv", "layer,bits,nanoseconds\nlayer0,4,10.5\nlayer0,8,20\nlayer1,4/8,7\nlayer1,8,9\n")
    )
    names = [layer.name for layer in layers(2)]
    for found, fixed in ((from_json, 5), (from_csv, 0)):
        resource = found.resource(names, [(4, 8), (8, 8)], 99)
        assert resource.cost.tolist() == [[11, 20], [7, 9]]
        assert (resource.fixed, resource.limit) == (fixed, 99)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a latency table"),
        ("[]", "not a latency table"),
        ('{"layers": {"layer0": 5}}', "not a latency table"),
        ('{"layers": {"layer0": {"4": "fast"}}}', "not a latency table"),
        ('{"layers": {"layer0": {"4": -1}}}', "layer0 4 has the time -1"),
        ('{"layers": {"layer0": {"4": NaN}}}', "layer0 4 has the time nan"),
    ],
)
def test_bad_latency_tables(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message):
        read_latency_table(table(tmp_path / "t.json", text))


def test_a_time_that_is_missing_is_named(tmp_path: Path) -> None:
    found = read_latency_table(table(tmp_path / "t.json", '{"layers": {"layer0": {"4": 1}}}'))
    with pytest.raises(BadInput, match="layer layer0 at 8 bits"):
        found.resource(["layer0"], [(4, 8), (8, 8)], None)
    with pytest.raises(BadInput, match="cannot read"):
        read_latency_table(tmp_path / "nowhere.json")
