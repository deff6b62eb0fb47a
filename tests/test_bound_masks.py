"""Masks in front of a Softmax are bounded, so that the integer-only model keeps the scores beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.passes.bound_masks import MASKED
from ompq_deploy.prepare import prepare
from tests import models
from tests.conftest import Run
from tests.test_prepare import assert_equivalent

TOKENS, WIDTH = 5, 12
SEEN = np.tri(TOKENS, dtype=bool)
LOWEST = float(np.finfo(np.float32).min)


def attention(value: float, how: str = "add") -> onnx.ModelProto:
    """One head over 5 tokens of 12 numbers, each seeing those up to its own; `value` is what hides the others."""
    g = models.GraphBuilder(1)
    weights = {n: g.constant(g.random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 3, n) for n in "QKVO"}
    q, k, v = (g.node("MatMul", ["x", weights[n]], n.lower()) for n in "QKV")
    scores = g.node("MatMul", [q, g.node("Transpose", [k], "turned", perm=[0, 2, 1])], "scores")
    fill = g.constant(np.float32(value), "fill")
    if how == "where":
        scores = g.node("Where", [g.constant(SEEN, "seen"), scores, fill], "masked")
    elif how == "where not":
        scores = g.node("Where", [g.constant(~SEEN, "hidden"), fill, scores], "masked")
    else:
        added = np.where(SEEN, 0, value).astype(np.float32)
        scores = g.node("Add", [scores, g.constant(added, "mask")], "masked")
    if how == "moved":
        apart = g.node("Unsqueeze", [scores, g.constant(np.array([1]), "one")], "apart")
        scores = g.node("Squeeze", [apart, g.constant(np.array([1]), "one_again")], "together")
    shares = g.node("Softmax", [scores], "softmax", axis=-1)
    if how == "guarded":
        undefined = g.node("IsNaN", [shares], "undefined")
        shares = g.node("Where", [undefined, g.constant(np.float32(0), "nothing"), shares], "guarded")
    mixed = g.node("MatMul", [shares, v], "mixed")
    return g.model(["N", TOKENS, WIDTH], g.node("MatMul", [mixed, weights["O"]], "o"), ["N", TOKENS, WIDTH])


CASES = [
    (-np.inf, "add"),
    (LOWEST, "add"),
    (-1e4, "moved"),
    (-np.inf, "where"),
    (-1e9, "where not"),
    (-np.inf, "guarded"),
]


@pytest.mark.parametrize(("value", "how"), CASES)
def test_the_scores_survive_in_integers(value: float, how: str, tmp_path: Path, run: Run) -> None:
    path = models.save(attention(value, how), tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    data, out = tmp_path / "x.npz", tmp_path / "out"
    np.savez(data, x=np.random.default_rng(0).standard_normal((48, TOKENS, WIDTH)).astype(np.float32))
    code, text, errors = run(path, "--size", "1MB", "--metric", "size", "--calib", data, "--preprocess", "none",
                             "--target", "onnx", "--target", "integer", "--out", out)  # fmt: skip
    assert code == 0, text + errors
    (head,) = json.loads((out / "report.json").read_text())["heads"]["rows"]
    assert head["integer"]["sqnr_db"] > 25


@pytest.mark.parametrize(("value", "how"), [(-100.0, "add"), (-100.0, "where")])
def test_what_a_grid_can_hold_stays(value: float, how: str, tmp_path: Path) -> None:
    index = GraphIndex(prepare(models.save(attention(value, how), tmp_path / "m.onnx")).model)
    (masked,) = (node for node in index.graph.node if node.name == "masked")
    assert masked.op_type == ("Add" if how == "add" else "Where")
    values = [index.constant(name) for name in masked.input if index.is_constant(name)]
    assert min(float(v.min()) for v in values if v.dtype == np.float32) == value


def test_a_sum_that_others_read_stays(tmp_path: Path) -> None:
    model = attention(-1e9)
    model.graph.output.append(onnx.helper.make_tensor_value_info("masked_out", onnx.TensorProto.FLOAT, ["N", 5, 5]))
    path = models.save(model, tmp_path / "m.onnx")
    graph = prepare(path)
    assert_equivalent(path, graph)
    index = GraphIndex(graph.model)
    assert index.constant(index.nodes["masked"].input[1]).min() < MASKED


def test_a_guard_stays_where_a_computed_mask_may_hide_a_whole_row(tmp_path: Path) -> None:
    model = attention(-np.inf, "guarded")
    (added,) = (node for node in model.graph.node if node.name == "masked")
    place = list(model.graph.node).index(added)
    model.graph.node.insert(place, helper.make_node("Log", ["positive"], ["computed"], name="log"))
    model.graph.node.insert(place, helper.make_node("Relu", [added.input[0]], ["positive"], name="relu"))
    added.input[1] = "computed"
    graph = prepare(models.save(model, tmp_path / "m.onnx"))
    assert "IsNaN" in {node.op_type for node in graph.model.graph.node}
