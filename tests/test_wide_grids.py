"""Which tensors get a 16-bit grid, what that grid holds, and the file that keeps it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ompq_deploy.artifacts import Grid, Samples
from ompq_deploy.capture import capture
from ompq_deploy.errors import BadInput
from ompq_deploy.export.integer.lower import lower
from ompq_deploy.files.grids_file import GRIDS_FILE, grids_document, read_wide_grids
from ompq_deploy.files.outputs import OutputFolder
from ompq_deploy.graph.wide_grids import constant_grid, wide_grid, wide_grids
from ompq_deploy.prepare import prepare
from tests import models
from tests.integer import assert_equal_to_reference
from tests.models import GraphBuilder
from tests.quantized import inputs, quantize_graph


def silu_network(path: Path, batch: int | str = "N") -> Path:
    """Conv, SiLU, Conv, LayerNorm over the width, Conv: two tensors between layers stay in floating point."""
    g = GraphBuilder()
    first = g.conv("x", "first", 3, 4)
    active = g.node("Mul", [first, g.node("Sigmoid", [first], "gate")], "active")
    parameters = [g.constant(np.ones(8, np.float32), name) for name in ("gamma", "beta")]
    normal = g.node("LayerNormalization", [g.conv(active, "second", 4, 4), *parameters], "normal", axis=-1)
    return models.save(g.model([batch, 3, 8, 8], g.conv(normal, "third", 4, 2), [batch, 2, 8, 8]), path)


def test_what_functions_and_normalizations_read_is_wide(tmp_path: Path) -> None:
    graph = prepare(silu_network(tmp_path / "m.onnx"))
    assert graph.activations == ("x", "active_out", "normal_out")
    assert graph.wide == ("first_out", "second_out")


def test_convolutional_networks_need_no_wide_grid(residual_model: Path) -> None:
    assert prepare(residual_model).wide == ()


@pytest.mark.parametrize(
    "name",
    ["cifar10/resnet20_rawexport.onnx", "imagenet/mobilenet_v2_1.0_224_keras.onnx", "other/ultraface_slim320.onnx"],
)
def test_nor_do_real_ones(name: str, shared: Callable[[str], Path]) -> None:
    assert prepare(shared(f"models/{name}")).wide == ()


@pytest.mark.parametrize("batch", ["N", 1])
def test_their_ranges_are_those_of_the_float_network(batch: int | str, tmp_path: Path) -> None:
    graph = prepare(silu_network(tmp_path / "m.onnx", batch))
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8), np.float32)
    found = capture(graph, Samples(inputs={"x": x}, labels=None, source="", sha256=""))
    assert set(found.wide_ranges) == {"first_out", "second_out"}
    assert set(found.ranges) == set(graph.activations)
    gate = found.ranges["active_out"]
    low, high = found.wide_ranges["first_out"]
    assert high / (1 + np.exp(-high)) == pytest.approx(gate[1], rel=1e-5)
    assert low < gate[0] < 0


@pytest.mark.parametrize("ends", [(-3.0, 5.0), (0.0, 7.0), (-2.0, 0.0), (1.0, 2.0), (-1e-30, 1e-30)])
def test_a_wide_grid_holds_its_range_with_room(ends: tuple[float, float]) -> None:
    grid = wide_grid(*ends)
    assert grid.bits == 16
    assert 0 <= grid.zero_point < 1 << 16
    assert np.float32(grid.scale) == grid.scale > 0
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    assert grid.low * grid.scale <= 1.4 * low
    assert grid.high * grid.scale >= 1.4 * high
    assert (grid.high - grid.low) * grid.scale <= 2.1 * (high - low) or high - low < 1e-20


def test_a_tensor_that_was_always_zero_leaves_the_model_covered(tmp_path: Path) -> None:
    model = onnx.load(silu_network(tmp_path / "m.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name.startswith("first"):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name))
    quantized = quantize_graph(models.save(model, tmp_path / "zero.onnx"))
    program = lower(quantized)
    assert program.grids["first_out"] == Grid(scale=1.0, zero_point=128, bits=8)
    assert_equal_to_reference(program, inputs(quantized.graph, 2))


def test_ranges_that_are_not_finite_get_no_grid() -> None:
    assert set(wide_grids({"mask": (-np.inf, 0.0), "scores": (-1.0, 1.0)})) == {"scores"}


def test_a_constants_largest_magnitude_is_exact() -> None:
    values = np.array([0.25, -1.0, 0.5], np.float32)
    grid = constant_grid(values)
    assert grid.steps(values).min() == -32767
    assert constant_grid(np.zeros(3, np.float32)).scale > 0


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    quantized = quantize_graph(silu_network(tmp_path / "m.onnx"))
    with OutputFolder(tmp_path / "run") as out:
        out.write_json(GRIDS_FILE, grids_document(quantized))
    assert read_wide_grids(tmp_path / "run", quantized.graph) == quantized.wide_grids
    document = grids_document(quantized)["tensors"]
    assert {name: entry["bits"] for name, entry in document.items()} == {
        "x": 8, "active_out": 8, "normal_out": 8, "first_out": 16, "second_out": 16,
    }  # fmt: skip


def test_a_missing_file_is_told_of_where_it_is_needed(tmp_path: Path, residual_model: Path) -> None:
    assert read_wide_grids(tmp_path, prepare(residual_model)) == {}
    with pytest.raises(BadInput, match="grids cannot be read"):
        read_wide_grids(tmp_path, prepare(silu_network(tmp_path / "m.onnx")))


def test_samples_beyond_the_range_do_not_wrap(tmp_path: Path) -> None:
    quantized = quantize_graph(silu_network(tmp_path / "m.onnx"))
    large = {"x": 50 * inputs(quantized.graph, 2)["x"]}
    assert_equal_to_reference(lower(quantized), large)


def test_what_a_gate_multiplies_is_rounded_once(tmp_path: Path) -> None:
    """The mean in a squeeze-and-excite block reads its tensor as it is; the product alone gets 8 bits."""
    g = models.GraphBuilder()
    x = g.node("HardSwish", [g.conv("x", "first", 3, 8)], "act")
    gate = g.node("HardSigmoid", [g.conv(g.node("GlobalAveragePool", [x], "mean"), "squeeze", 8, 8, 1)], "gate")
    y = g.conv(g.node("Mul", [x, gate], "gated"), "last", 8, 2)
    graph = prepare(models.save(g.model(["N", 3, 8, 8], y, ["N", 2, 8, 8]), tmp_path / "m.onnx"))
    assert graph.activations == ("x", "mean_out", "gated_out")
    assert graph.wide == ("first_out", "act_out", "squeeze_out", "gate_out")


def test_a_constant_behind_a_function_is_part_of_it(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    two, one = g.constant(np.float32(2), "two"), g.constant(np.float32(1), "one")
    y = g.node("Mul", [g.node("HardSwish", [g.conv("x", "first", 3, 8)], "act"), two], "scaled")
    y = g.conv(g.node("Add", [y, one], "moved"), "last", 8, 2)
    graph = prepare(models.save(g.model(["N", 3, 8, 8], y, ["N", 2, 8, 8]), tmp_path / "m.onnx"))
    assert graph.activations == ("x", "moved_out")
    assert graph.wide == ("first_out",)
