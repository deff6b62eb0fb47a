"""Blocks follow the structure of a graph, and hold every layer once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from ompq_deploy.artifacts import PreparedGraph
from ompq_deploy.prepare import prepare
from ompq_deploy.quantize.reconstruct.blocks import MOST_LAYERS, find_blocks
from tests import models
from tests.tensorrt_helpers import branching_network
from tests.test_refine import varied_network


def layers_of(graph: PreparedGraph) -> list[list[str]]:
    return [[graph.layers[i].name for i in block.layers] for block in find_blocks(graph)]


def prepared(model: onnx.ModelProto, folder: Path) -> PreparedGraph:
    return prepare(models.save(model, folder / "model.onnx"))


def inverted_residuals() -> onnx.ModelProto:
    """An inverted residual without an Add, then one with it."""
    g = models.GraphBuilder()
    x = g.node("Relu", [g.conv("x", "expand1", 8, 32, kernel=1)], "relu1")
    x = g.node("Relu", [g.conv(x, "depthwise1", 32, 32, groups=32)], "relu2")
    short = g.conv(x, "project1", 32, 8, kernel=1)
    x = g.node("Relu", [g.conv(short, "expand2", 8, 32, kernel=1)], "relu3")
    x = g.node("Relu", [g.conv(x, "depthwise2", 32, 32, groups=32)], "relu4")
    x = g.node("Add", [g.conv(x, "project2", 32, 8, kernel=1), short], "add")
    return g.model(["N", 8, 8, 8], x, ["N", 8, 8, 8])


def transformer() -> onnx.ModelProto:
    """Attention with queries, keys and values apart, and a feed-forward branch, each with its Add; 6 tokens of 8."""
    g = models.GraphBuilder()

    def linear(x: str, name: str, c_in: int, c_out: int) -> str:
        weight = (g.random.standard_normal((c_in, c_out)) / c_in**0.5).astype(np.float32)
        return g.node("MatMul", [x, g.constant(weight, f"{name}_weight")], name)

    q, k, v = (linear("x", name, 8, 8) for name in ("query", "key", "value"))
    scores = g.node("MatMul", [q, g.node("Transpose", [k], "keys", perm=[0, 2, 1])], "scores")
    mixed = g.node("MatMul", [g.node("Softmax", [scores], "softmax", axis=-1), v], "mixed")
    x = g.node("Add", [linear(mixed, "project", 8, 8), "x"], "add1")
    hidden = g.node("Relu", [linear(x, "up", 8, 32)], "relu")
    return g.model(["N", 6, 8], g.node("Add", [linear(hidden, "down", 32, 8), x], "add2"), ["N", 6, 8])


def long_skip() -> onnx.ModelProto:
    """A tensor read once more at the very end, behind more layers than a block may hold and a residual block."""
    g = models.GraphBuilder()
    first = g.node("Relu", [g.conv("x", "first", 4, 4)], "first_relu")
    x = first
    for i in range(MOST_LAYERS):
        x = g.node("Relu", [g.conv(x, f"chain{i}", 4, 4)], f"chain{i}_relu")
    inner = g.node("Relu", [g.conv(x, "inner1", 4, 4)], "inner_relu")
    block = g.node("Add", [g.conv(inner, "inner2", 4, 4), x], "add")
    both = g.node("Concat", [block, first], "concat", axis=1)
    return g.model(["N", 4, 8, 8], g.conv(both, "last", 8, 4), ["N", 4, 8, 8])


def test_residual_blocks(residual_model: Path) -> None:
    """The depthwise and pointwise convolution lie on a residual branch; a pool begins the block of the last layer."""
    expected = [["stem"], ["depthwise", "project"], ["main1", "main2", "downsample"], ["fc"]]
    graph = prepare(residual_model)
    assert [sorted(names) for names in layers_of(graph)] == [sorted(names) for names in expected]
    assert all(len(block.inputs) == len(block.outputs) == 1 for block in find_blocks(graph))


def test_inverted_residuals_stay_whole(tmp_path: Path) -> None:
    expected = [["expand1", "depthwise1", "project1"], ["expand2", "depthwise2", "project2"]]
    assert layers_of(prepared(inverted_residuals(), tmp_path)) == expected


def test_attention_and_feed_forward_are_blocks(tmp_path: Path) -> None:
    assert layers_of(prepared(transformer(), tmp_path)) == [["query", "key", "value", "project"], ["up", "down"]]


def test_under_a_long_skip_blocks_are_found_as_elsewhere(tmp_path: Path) -> None:
    blocks = layers_of(prepared(long_skip(), tmp_path))
    assert blocks == [["first"], *[[f"chain{i}"] for i in range(MOST_LAYERS)], ["inner1", "inner2"], ["last"]]


@pytest.mark.parametrize(
    "network", [models.residual_network, branching_network, varied_network, inverted_residuals, transformer, long_skip]
)
def test_blocks_hold_every_layer_once_and_hang_together(network: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    graph = prepared(network(), tmp_path)
    blocks = find_blocks(graph)
    assert sorted(i for block in blocks for i in block.layers) == list(range(len(graph.layers)))
    known = set(graph.input_names)
    for block in blocks:
        assert set(block.inputs) <= known
        assert set(block.outputs) <= block.inside
        known |= set(block.outputs)
    assert set(graph.output_names) <= known


def test_real_networks_fall_into_blocks(shared: Callable[[str], Path]) -> None:
    resnet = layers_of(prepare(shared("models/cifar10/resnet20.onnx")))
    assert [len(names) for names in resnet] == [1, *[2] * 9, 1]
    mobilenet = layers_of(prepare(shared("models/imagenet/mobilenet_v2_1.0_224_keras.onnx")))
    assert max(len(names) for names in mobilenet) <= 4
    assert sum(len(names) == 3 for names in mobilenet) >= 15
