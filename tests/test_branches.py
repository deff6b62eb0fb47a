"""A tensor that a branch of an If reads is read: nothing may change it for the other readers' sake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ompq_deploy import deploy
from ompq_deploy.artifacts import Samples
from ompq_deploy.evaluate.head_search import find_heads
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.metrics import round_weights
from ompq_deploy.metrics.output_error import output_error
from ompq_deploy.passes.equalize import equalize
from ompq_deploy.pipeline import calibrated_graph
from ompq_deploy.prepare import prepare
from ompq_deploy.settings import PlanSettings
from tests import models

COUNT = 32


def branching() -> onnx.ModelProto:
    """Two layers, and between them a tensor of very uneven channels that an If reads too: y and y2."""
    g = models.GraphBuilder()
    inner = g.node("Relu", [g.gemm("x", "first", 16, 32)], "relu")
    model = g.model(["N", 16], g.gemm(inner, "second", 32, 10), ["N", 10])
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, factor in (("first_weight", 0.002), ("first_bias", 0.002), ("second_weight", 500)):
        value = onnx.numpy_helper.to_array(weights[name]).copy()
        value[(slice(None), slice(0, None, 2)) if name == "second_weight" else slice(0, None, 2)] *= factor
        weights[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "zero"))

    def branch(name: str, op: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, [inner, "zero"], ["result"])], name, [], [result])

    model.graph.node.extend(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], name="sum", keepdims=0),
            helper.make_node("Greater", ["sum", "zero"], ["positive"], name="greater"),
            helper.make_node(
                "If", ["positive"], ["y2"], name="if",
                then_branch=branch("then", "Add"), else_branch=branch("else", "Sub"),
            ),
        ]
    )  # fmt: skip
    model.graph.output.append(helper.make_tensor_value_info("y2", TensorProto.FLOAT, ["N", 32]))
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return models.save(branching(), tmp_path / "m.onnx")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((COUNT, 16)).astype(np.float32))
    return tmp_path / "x.npy"


def run(model: onnx.ModelProto, data: Path) -> list[np.ndarray]:
    return ort.InferenceSession(model.SerializeToString()).run(["y", "y2"], {"x": np.load(data)})


def test_neither_smoothing_nor_equalization_changes_what_the_branch_reads(path: Path, data: Path) -> None:
    expected = run(onnx.load(path), data)
    smoothed = calibrated_graph(path, PlanSettings(size="50%", calib=data)).graph
    for graph in (smoothed, equalize(prepare(path)).graph):
        for found, value in zip(run(graph.model, data), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-4)


def test_a_layer_moves_what_its_branches_make(path: Path, data: Path) -> None:
    graph = prepare(path)
    samples = Samples(inputs={"x": np.load(data)}, labels=None, source="noise", sha256="")
    heads = find_heads(graph, samples)
    before = output_error(graph, heads, samples, round_weights(graph, (2, 8))).loss
    assert {node.op_type for node in GraphIndex(graph.model).consumers("relu_out")} == {"Gemm", "If"}
    only = prepare(models.save(without_second(), path.with_name("only.onnx")))
    alone = output_error(only, find_heads(only, samples), samples, round_weights(only, (2, 8))).loss
    assert before[0, 0] > alone[0, 0] / 4 > 0


def without_second() -> onnx.ModelProto:
    """The same network with the branches' output alone."""
    model = branching()
    del model.graph.output[0]
    return model


def test_the_whole_job(path: Path, data: Path, tmp_path: Path) -> None:
    result = deploy(path, size="60%", calib=data, calibration_method="mse", out=tmp_path / "o", effort="quick")
    assert result.report["passed"]
    _, expected = run(onnx.load(path), data)
    _, found = run(onnx.load(tmp_path / "o" / "model.qdq.onnx"), data)
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
