"""Equalization changes the weights' ranges and nothing that the network computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.passes.equalize import equalize, input_ranges, output_ranges
from ompq_deploy.prepare import prepare
from tests import models


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def chain(groups: int = 1, activation: str = "Relu") -> onnx.ModelProto:
    """Conv, activation, Conv, nothing, Conv, activation, Conv, with channels of very different ranges."""
    g = models.GraphBuilder(3)
    x = "x"
    for i, (c_in, c_out, kernel, group) in enumerate([(3, 8, 3, 1), (8, 8, 3, groups), (8, 12, 1, 1), (12, 4, 3, 1)]):
        x = g.conv(x, f"conv{i}", c_in, c_out, kernel=kernel, groups=group)
        if i in (0, 2) and activation == "Clip":
            bounds = [g.constant(np.float32(0), f"low{i}"), g.constant(np.float32(6), f"high{i}")]
            x = g.node("Clip", [x, *bounds], f"act{i}")
        elif i in (0, 2):
            x = g.node(activation, [x], f"act{i}")
    for tensor in g.initializers:
        if tensor.name.endswith("_weight"):
            value = numpy_helper.to_array(tensor)
            spread = 10 ** np.random.default_rng(len(tensor.name)).uniform(-1.5, 1.5, (len(value), 1, 1, 1))
            tensor.CopyFrom(numpy_helper.from_array((value * spread).astype(np.float32), tensor.name))
    return g.model(["N", 3, 8, 8], x, ["N", 4, 8, 8])


def ranges(graph: PreparedGraph, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    layers, weights = {layer.name: layer for layer in graph.layers}, graph.layer_weights()
    return output_ranges(layers[first], weights[first]), input_ranges(layers[second], weights[second])


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_outputs_stay_and_ranges_meet(tmp_path: Path, groups: int) -> None:
    graph = prepare(models.save(chain(groups), tmp_path / "chain.onnx"))
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    result = equalize(graph)
    assert result.pairs == (("conv0", "conv1"), ("conv1", "conv2"), ("conv2", "conv3"))
    before, after = run(graph.model, x), run(result.graph.model, x)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    for pair in result.pairs:
        first, second = ranges(graph, *pair)
        assert np.abs(np.log(first / second)).max() > 0.5
        first, second = ranges(result.graph, *pair)
        np.testing.assert_allclose(first, second, rtol=0.05)


def test_relu6_refuses(tmp_path: Path) -> None:
    graph = prepare(models.save(chain(activation="Clip"), tmp_path / "chain.onnx"))
    assert equalize(graph).pairs == (("conv1", "conv2"),)


def test_tensors_with_two_readers_refuse(residual_model: Path) -> None:
    graph = prepare(residual_model)
    result = equalize(graph)
    assert result.pairs == (("main1", "main2"),)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(run(result.graph.model, x), run(graph.model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("first", ["Conv", "MatMul"])
def test_channels_on_different_axes_refuse(first: str, tmp_path: Path) -> None:
    """As many channels as positions, so that sizes alone do not tell one from the other."""
    g = models.GraphBuilder(4)
    weight = g.constant(g.random.standard_normal((8, 8)).astype(np.float32), "product_weight")
    kernel = g.constant(g.random.standard_normal((8, 8, 3)).astype(np.float32), "conv_weight")
    x = "x"
    for op in ("Conv", "MatMul") if first == "Conv" else ("MatMul", "Conv"):
        settings = {"pads": [1, 1]} if op == "Conv" else {}
        x = g.node("Relu", [g.node(op, [x, kernel if op == "Conv" else weight], op, **settings)], f"{op}_relu")
    graph = prepare(models.save(g.model(["N", 8, 8], x, ["N", 8, 8]), tmp_path / "m.onnx"))
    assert len(graph.layers) == 2
    assert equalize(graph).pairs == ()


def test_the_given_graph_is_left_alone(tmp_path: Path) -> None:
    graph = prepare(models.save(chain(), tmp_path / "chain.onnx"))
    before = graph.model.SerializeToString()
    equalize(graph)
    assert graph.model.SerializeToString() == before
