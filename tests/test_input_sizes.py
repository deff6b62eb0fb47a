"""--input-shape: sizes for what the exporter left open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from ompq_deploy.errors import BadInput
from ompq_deploy.graph.index import GraphIndex
from ompq_deploy.passes.input_sizes import open_axes
from ompq_deploy.prepare import prepare
from tests import models


def upsampling(path: Path, size: list[Any]) -> Path:
    """Two convolutions around a Resize to the sizes of the input, which the graph computes."""
    g = models.GraphBuilder()
    small = g.conv("x", "first", 3, 4, strides=[2, 2])
    larger = g.node("Resize", [small, "", "", g.node("Shape", [g.conv("x", "side", 3, 4)], "sizes")], "larger")
    return models.save(g.model(size, g.conv(larger, "last", 4, 2), [size[0], 2, *size[2:]]), path)


def inputs(path: Path) -> list[list[int | str]]:
    return [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.load(path).graph.input
    ]


def test_sizes_given_are_those_of_the_graph(tmp_path: Path) -> None:
    path = upsampling(tmp_path / "m.onnx", ["N", 3, "H", "W"])
    assert open_axes(prepare(path).model) == ["x"]
    graph = prepare(path, ["Nx3x8x12"])
    assert open_axes(graph.model) == []
    assert graph.batch is None
    shapes = GraphIndex(graph.model).shapes
    assert shapes["larger_out"] == (None, 4, 8, 12)
    assert shapes["y"] == (None, 2, 8, 12), "the outputs share the symbols"
    assert prepare(path, ["x:2x3x8x12"]).batch == 2


def test_a_size_of_minus_one_is_open(tmp_path: Path) -> None:
    graph = prepare(upsampling(tmp_path / "m.onnx", [-1, 3, -1, -1]))
    assert graph.batch is None
    assert GraphIndex(graph.model).shapes["x"] == (None, 3, None, None)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("Nx3x8", "does not fit input 'x', which is Nx3xNxN"),
        ("Nx4x8x8", "does not fit input 'x'"),
        ("Nx3x8x-8", "is no shape"),
        ("Nx3x8x0", "is no shape"),
        ("y:Nx3x8x8", "no input 'y'"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape: str, message: str, tmp_path: Path) -> None:
    path = upsampling(tmp_path / "m.onnx", ["N", 3, "H", "W"])
    with pytest.raises(BadInput, match=message):
        prepare(path, [shape])


def test_of_several_inputs_one_is_named(tmp_path: Path) -> None:
    g = models.GraphBuilder()
    y = g.node("Add", [g.conv("x", "first", 3, 4), g.conv("z:0", "second", 3, 4)], "sum")
    model = g.model(["N", 3, "H", 8], y, ["N", 4, "H", 8])
    model.graph.input.append(helper.make_tensor_value_info("z:0", TensorProto.FLOAT, ["N", 3, "H", 8]))
    path = models.save(model, tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="which input"):
        prepare(path, ["Nx3x8x8"])
    shapes = GraphIndex(prepare(path, ["z:0:Nx3x6x8"]).model).shapes
    assert shapes["z:0"] == shapes["x"] == (None, 3, 6, 8), "they share a symbol"


def test_the_flag_reaches_every_stage(tmp_path: Path, run: Any) -> None:
    path = upsampling(tmp_path / "m.onnx", ["N", 3, "H", "W"])
    out = tmp_path / "out"
    flags = ("--size", "99%", "--metric", "size", "--effort", "quick", "--samples", 2, "--out", out)
    code, _, errors = run(path, *flags, "--target", "integer")
    assert code == 4
    assert "Resize" in errors
    assert "--input-shape" in errors
    code, _, errors = run(path, *flags, "--target", "onnx", "--target", "integer", "--input-shape", "Nx3x16x12")
    assert code == 0, errors
    assert inputs(out / "model.int.onnx") == [["N", 3, 16, 12]]
    assert run("verify", out)[0] == 0
