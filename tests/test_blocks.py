"""Requantization block by block computes the same integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ompq_deploy.export.integer.emit import blocks, channels_last, integer_model, unfold
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.export.integer.program import ARITHMETICS
from tests import models
from tests.integer import assert_equal_to_reference
from tests.models import GraphBuilder
from tests.quantized import inputs, quantize_graph, with_zero_points


def test_blocks_hold_whole_channels_and_are_of_about_equal_size() -> None:
    elements = blocks.BLOCK_ELEMENTS
    assert blocks.block_lengths((None, 64, 8, 8), 1) == [64]
    assert blocks.block_lengths((None, 7, 1, elements), 1) == [1] * 7
    assert blocks.block_lengths((None, 7, 1, elements // 2), 1) == [2, 2, 2, 1]
    assert blocks.block_lengths((4, 8, 1, elements // 8), 1) == [2, 2, 2, 2]
    assert blocks.block_lengths((4, 8, 3, elements // 8), 2) == [1, 1, 1]
    assert blocks.block_lengths((None, 7, None, 100), 1) == []
    assert blocks.block_lengths((), 1) == []


def test_a_broadcast_sum_stays_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 1)
    g = GraphBuilder()
    first = g.node("Relu", [g.conv("x", "first", 3, 4)], "relu")
    mean = g.node("ReduceMean", [first, g.constant(np.array([1], np.int64), "axes")], "mean")
    added = g.node("Relu", [g.node("Add", [g.conv(first, "second", 4, 4), mean], "add")], "added")
    model = g.model(["N", 3, 6, 6], g.conv(added, "last", 4, 2), ["N", 2, 6, 6], opset=21)
    program = lower(quantize_graph(models.save(model, tmp_path / "m.onnx")))
    split = {node.input[0] for node in integer_model(program).graph.node if node.op_type == "Split"}
    assert split == {"relu_out_accumulator"}
    assert_equal_to_reference(program, inputs(program.graph))


@pytest.mark.parametrize("size", [1, 500, 1000])
def test_any_block_size_gives_the_same_integers(
    size: int, residual_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", size)
    quantized = with_zero_points(quantize_graph(residual_model), [200, 3, 128, 255, 77])
    program = lower(quantized)
    assert any(node.op_type == "Split" for node in integer_model(program).graph.node)
    assert_equal_to_reference(program, inputs(quantized.graph))


@pytest.mark.parametrize("size", [1, 500, 1 << 17])
@pytest.mark.parametrize("most_repeated", [0, 1 << 20])
def test_blocks_with_channels_last(
    size: int, most_repeated: int, residual_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind matrix products blocks are cut from the height."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", size)
    monkeypatch.setattr(channels_last, "MOST_REPEATED", most_repeated)
    monkeypatch.setattr(unfold, "FEWEST_CHANNELS", 1)
    quantized = with_zero_points(quantize_graph(residual_model), [200, 3, 128, 255, 77])
    program = lower(quantized)
    nodes = integer_model(program).graph.node
    cut = [node for node in nodes if node.op_type == "Split" and node.input[0].endswith("_accumulator_last")]
    assert len(cut) == (4 if size < 1 << 17 else 0)
    assert_equal_to_reference(program, inputs(quantized.graph))


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("channels", [1, 16])
def test_a_context_is_broadcast(
    arithmetic: str, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A convolution of one place, or of one channel, to which a whole tensor is added; blocks would not fit it."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 500)
    monkeypatch.setattr(unfold, "FEWEST_CHANNELS", 1)
    g = GraphBuilder()
    first = g.node("Relu", [g.conv("x", "first", 3, 16)], "relu")
    mean = g.node("GlobalAveragePool", [first], "mean")
    added = g.node("Add", [g.conv(mean, "context", 16, channels, kernel=1), first], "added")
    last = g.conv(g.node("Relu", [added], "added_relu"), "last", 16, 2)
    model = g.model(["N", 3, 12, 12], last, ["N", 2, 12, 12])
    program = lower(quantize_graph(models.save(model, tmp_path / "m.onnx")), arithmetic)
    assert_equal_to_reference(program, inputs(program.graph))


def test_constants_are_not_repeated_where_that_is_much(tmp_path: Path) -> None:
    """Of 16 channels and 256 places in a row, in 16 blocks."""
    g = GraphBuilder()
    first = g.node("Relu", [g.conv("x", "first", 16, 16)], "relu")
    model = g.model(["N", 16, 256, 256], g.conv(first, "last", 16, 2), ["N", 2, 256, 256])
    program = lower(quantize_graph(models.save(model, tmp_path / "m.onnx")))
    sizes = {tensor.name: tensor.ByteSize() for tensor in integer_model(program).graph.initializer}
    rule = {name: size for name, size in sizes.items() if name.startswith("relu_out_last")}
    assert len(rule) > 16
    assert max(rule.values()) < 1000


@pytest.mark.parametrize("size", [1, 20, 1 << 17])
def test_blocks_of_signals(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one spatial axis, blocks are cut from that along which constants are repeated."""
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", size)
    g = GraphBuilder()
    weights = [g.constant(g.random.standard_normal((16, 16, 3)).astype(np.float32), f"weight{i}") for i in range(2)]
    first = g.node("Relu", [g.node("Conv", ["x", weights[0]], "first", pads=[1, 1])], "relu")
    second = g.node("Conv", [first, weights[1]], "second", pads=[1, 1])
    added = g.node("Relu", [g.node("Add", [first, second], "added")], "added_relu")
    model = g.model(["N", 16, 11], g.node("MaxPool", [added], "pool", kernel_shape=[2]), ["N", 16, 10])
    program = lower(quantize_graph(models.save(model, tmp_path / "m.onnx")))
    assert any(node.op_type == "MatMulInteger" for node in integer_model(program).graph.node)
    assert_equal_to_reference(program, inputs(program.graph))
